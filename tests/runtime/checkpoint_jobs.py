"""What ranks run in the tests of checkpoints and weight files: each function is one rank's part."""

from __future__ import annotations

import resource
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import process_jobs
import torch
import torch.distributed as dist
from runtime_cases import Seeded, graph_of, mesh_of, plan_of, random_assignment
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

import autoplan
from autoplan.assignment import Assignment
from autoplan.errors import UsageError
from autoplan.load import build_on, load_target
from autoplan.placement import Mesh, Placements
from autoplan.plan.schema import Plan
from autoplan.runtime.storage import checkpoint, tensor_files
from autoplan.runtime.storage.states import model_tensors, optimizer_tensors


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
        rates.append(float(scheduler.get_last_lr()[0]))
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
        groups: list[dict[str, Any]] = [{"params": trained[:3], "weight_decay": 0.1}, {"params": trained[3:]}]
        return torch.optim.AdamW(groups, lr=1e-2)
    return torch.optim.SGD(trained, lr=1e-2, momentum=0.9 if name == "momentum" else 0.0)


def whole(module: nn.Module, optimizer: Optimizer | None) -> dict[str, Tensor]:
    """Model and optimizer states, gathered."""
    tensors = model_tensors(module) | optimizer_tensors(module, optimizer)
    return {name: (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).clone() for name, tensor in tensors.items()}


def resume_other(build: Seeded, plan: Plan, folder: str, optimizer: str | None) -> int:
    """A checkpoint read by a run that may not be its own."""
    module, _, _ = process_jobs.parallel(build, plan)
    return checkpoint.resume(folder, module, None if optimizer is None else optimizer_of(module, optimizer))


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


def hugging_face(config: str) -> tuple[nn.Module, tuple[Any, ...], dict[str, Any]]:
    """The model of a config.json with its example of a batch."""
    built = build_on(load_target(config, batch=4, seq=16))
    return built.module, built.args, dict(built.kwargs)


@dataclass(frozen=True)
class Read:
    """Bytes that `load_weights` says it read, those asked of the files, those of the local parameters; the loss with them."""

    read_bytes: int
    asked_bytes: int
    held_bytes: int
    loss: float


def read_and_run(build: Seeded, plan: Plan, paths: list[str], trains: bool = True) -> list[Read]:
    """The loss with the weights of several files, each read over nothing."""
    module, model, mesh = process_jobs.parallel(build, plan)
    module.train(trains)
    inputs = autoplan.shard_inputs(plan, mesh, dict(model.kwargs))
    return [_read_one(module, inputs, path) for path in paths]


def _read_one(module: nn.Module, inputs: dict[str, Tensor], path: str) -> Read:
    for parameter in module.parameters():
        nn.init.constant_(parameter, float("nan"))
    asked = 0

    def counted(opened: Any, name: str) -> tensor_files.Stored:
        stored = of_safetensors(opened, name)

        def read(index: tuple[slice, ...]) -> Tensor:
            nonlocal asked
            part = stored.read(index)
            asked += part.nbytes
            return part

        return tensor_files.Stored(stored.shape, read)

    of_safetensors = tensor_files._of_safetensors
    with patch.object(tensor_files, "_of_safetensors", counted):
        read_bytes = autoplan.load_weights(module, path)
    held = sum(parameter.to_local().nbytes for parameter in module.parameters() if isinstance(parameter, DTensor))
    return Read(read_bytes, asked, held, module(**inputs).item())


def export(build: Seeded, plan: Plan, file: str) -> None:
    autoplan.export_weights(process_jobs.parallel(build, plan)[0], file)


def export_to_a_full_disk(build: Seeded, plan: Plan, file: str) -> str:
    """What is said where rank 0 may write half a kilobyte to a file; ranks then do as before."""
    module, _, _ = process_jobs.parallel(build, plan)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    if dist.get_rank() == 0:
        resource.setrlimit(resource.RLIMIT_FSIZE, (512, before[1]))
    try:
        autoplan.export_weights(module, file)
    except UsageError as error:
        return str(error)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    return ""


def read_whole(build: Seeded, plan: Plan, file: str) -> dict[str, Tensor]:
    """The parameters of a file, read over others and gathered."""
    module, _, _ = process_jobs.parallel(build, plan)
    for parameter in module.parameters():
        nn.init.zeros_(parameter)
    autoplan.load_weights(module, file)
    return whole(module, None)
