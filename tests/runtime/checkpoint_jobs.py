"""What ranks run in the tests of checkpoints and weight files: each function is one rank's part."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import process_jobs
import torch
from runtime_cases import Seeded, graph_of, mesh_of, plan_of, random_assignment
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

import autoplan
from autoplan.assignment import Assignment
from autoplan.placement import Mesh, Placements
from autoplan.plan.schema import Plan
from autoplan.runtime import checkpoint
from autoplan.runtime.states import model_tensors, optimizer_tensors


def plan_with_stored(build: Seeded, mesh: Mesh, seed: int, stored: dict[str, Placements]) -> Plan:
    """A random plan that stores some parameters as given."""
    found = random_assignment(graph_of(build), mesh, seed)
    values = {parameter.fqn: parameter.value for parameter in found.graph.parameters}
    sources = {**found.sources, **{values[fqn]: placements for fqn, placements in stored.items()}}
    return plan_of(Assignment(found.graph, mesh, found.strategies, sources, found.outputs), build().module)


@dataclass(frozen=True)
class Trained:
    """What steps from `done` on gave: losses and learning rates; whole tensors of model and optimizer before and after."""

    done: int
    losses: list[float]
    rates: list[float]
    before: dict[str, Tensor]
    after: dict[str, Tensor]


def train(build: Seeded, plan: Plan, folder: str, until: int, save: bool = True, optimizer: str = "adamw") -> Trained:
    """A user's own loop that goes on from the last checkpoint in `folder`, to the step `until`."""
    module, model, mesh = process_jobs.parallel(build, plan)
    made = optimizer_of(module, optimizer)
    scheduler = torch.optim.lr_scheduler.StepLR(made, 1, gamma=0.8)
    done = autoplan.load_checkpoint(folder, module, made, also={"scheduler": scheduler})
    before = whole(module, made)
    args = autoplan.shard_inputs(plan, mesh, model.args)
    losses, rates = [], []
    for _ in range(done, until):
        rates.append(scheduler.get_last_lr()[0])
        loss = module(*args)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        made.step()
        scheduler.step()
        made.zero_grad()
        losses.append(loss.item())
    if save:
        autoplan.save_checkpoint(folder, module, made, until, also={"scheduler": scheduler})
    return Trained(done, losses, rates, before, whole(module, made))


def optimizer_of(module: nn.Module, name: str) -> Optimizer:
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    if name == "adamw":
        return torch.optim.AdamW([{"params": trained[:3], "weight_decay": 0.1}, {"params": trained[3:]}], lr=1e-2)
    return torch.optim.SGD(trained, lr=1e-2, momentum=0.9 if name == "momentum" else 0.0)


def whole(module: nn.Module, optimizer: Optimizer | None) -> dict[str, Tensor]:
    """Model and optimizer states, gathered."""
    tensors = model_tensors(module) | optimizer_tensors(module, optimizer)
    return {name: (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).clone() for name, tensor in tensors.items()}


def resume_other(build: Seeded, plan: Plan, folder: str, optimizer: str | None) -> int:
    """A checkpoint read by a run that may not be its own."""
    module, _, _ = process_jobs.parallel(build, plan)
    return checkpoint.resume(folder, module, optimizer and optimizer_of(module, optimizer))


def save_steps(build: Seeded, plan: Plan, folder: str, steps: list[int], keep: int = checkpoint.KEPT) -> list[str]:
    """Saves the same model as that of several steps; what the folder then holds."""
    module, _, _ = process_jobs.parallel(build, plan)
    for step in steps:
        checkpoint.save(folder, module, None, step, keep=keep)
    return sorted(path.name for path in Path(folder).iterdir())


def one_rank_plan(build: Seeded) -> Plan:
    return plan_of(random_assignment(graph_of(build), mesh_of(1), 0), build().module)


def read_model(build: Seeded, plan: Plan, folder: str) -> dict[str, Tensor]:
    """The parameters of a checkpoint, read over others."""
    module, _, _ = process_jobs.parallel(build, plan)
    for parameter in module.parameters():
        nn.init.zeros_(parameter)
    checkpoint.resume(folder, module, None)
    return whole(module, None)
