"""A user's own training loop, the same on one device and on the ranks of a plan, and what is seen of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from process_jobs import parallel
from runtime_cases import Seeded
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, Replicate
from torch.distributed.tensor.debug import CommDebugMode
from torch.optim import SGD, AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR

import autoplan
from autoplan.plan.schema import Plan
from autoplan.runtime.parallelize import local_forward

STEPS = 10
MICRO_BATCHES = 2
MAX_NORM = 0.3  # below the norm of every step: all of them are clipped
OPTIMIZERS: dict[str, Callable[[list[nn.Parameter]], Optimizer]] = {
    "adamw-fused": lambda parameters: AdamW(parameters, lr=1e-2, fused=True),
    "adamw-foreach": lambda parameters: AdamW(parameters, lr=1e-2, foreach=True),
    "sgd-momentum": lambda parameters: SGD(parameters, lr=0.5, momentum=0.9),
}

Batch = tuple[Tensor, ...]
Call = Callable[[Batch], Tensor]


@dataclass
class Trace:
    """What a loop computed, everything whole: losses of micro batches, and by step norms before clipping, gradients after."""

    losses: list[float] = field(default_factory=list)
    evaluations: list[float] = field(default_factory=list)
    norms: list[float] = field(default_factory=list)
    gradients: list[dict[str, Tensor]] = field(default_factory=list)
    parameters: dict[str, Tensor] = field(default_factory=dict)
    dtypes: set[torch.dtype] = field(default_factory=set)


def batches(build: Seeded) -> list[Batch]:
    """The micro batches of all steps, four different ones in turn, like the model's example: tokens below 64, or normal numbers."""
    generator = torch.Generator().manual_seed(5)
    different = [tuple(_like(tensor, generator) for tensor in build().args) for _ in range(4)]
    return different * (STEPS * MICRO_BATCHES // 4)


def _like(tensor: Tensor, generator: torch.Generator) -> Tensor:
    if tensor.is_floating_point():
        return torch.randn(tensor.shape, generator=generator)
    return torch.randint(0, 64, tensor.shape, generator=generator)


def loop(module: nn.Module, call: Call, data: list[Batch], optimizer: str) -> Trace:
    """Ten steps as people write them: micro batches, clipping, a schedule, and an evaluation after each step."""
    trace = Trace()
    updates = OPTIMIZERS[optimizer]([p for p in module.parameters() if p.requires_grad])
    schedule = LambdaLR(updates, lambda step: min(1.0, (step + 1) / 4) * (1 - step / (2 * STEPS)))
    for step in range(STEPS):
        for micro in range(MICRO_BATCHES):
            loss = call(data[step * MICRO_BATCHES + micro]) / MICRO_BATCHES
            loss.backward()
            trace.losses.append(loss.item() * MICRO_BATCHES)
        trace.norms.append(_whole(torch.nn.utils.clip_grad_norm_(module.parameters(), MAX_NORM)).item())
        trace.gradients.append({name: _whole(p.grad) for name, p in module.named_parameters() if p.grad is not None})
        updates.step()
        schedule.step()
        updates.zero_grad()
        module.eval()
        with torch.no_grad():
            trace.evaluations.append(call(data[0]).item())
        module.train()
    trace.parameters = {name: _whole(p) for name, p in module.named_parameters()}
    states = [value for state in updates.state.values() for key, value in state.items() if key != "step"]
    trace.dtypes = {tensor.dtype for tensor in (*module.parameters(), *states)}
    return trace


def _whole(tensor: Tensor) -> Tensor:
    return (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).detach().clone()


def on_one_device(build: Seeded, optimizer: str) -> Trace:
    module = build().module
    return loop(module, lambda batch: module(*batch), batches(build), optimizer)


def on_one_device_from_masters(build: Seeded, optimizer: str, dtype: torch.dtype) -> Trace:
    """Masters in fp32; forward reads copies of them in `dtype`, through which gradients come back."""
    module = build().module

    def call(batch: Batch) -> Tensor:
        low = {name: parameter.to(dtype) for name, parameter in module.named_parameters()}
        return torch.func.functional_call(module, low, batch).float()

    for name, buffer in module.named_buffers():
        module.get_submodule(name.rpartition(".")[0])._buffers[name.rpartition(".")[2]] = buffer.to(dtype)
    return loop(module, call, batches(build), optimizer)


def on_ranks(build: Seeded, plan: Plan, optimizer: str, backend: str | None = None) -> Trace:
    """Rank 0's trace (the others hold the same whole tensors): an empty one elsewhere."""
    module, _, mesh = parallel(build, plan)
    if backend is not None:
        local_forward(module).compile(backend=backend)
    trace = loop(module, lambda batch: module(*autoplan.shard_inputs(plan, mesh, batch)), batches(build), optimizer)
    return trace if mesh.get_rank() == 0 else Trace(losses=trace.losses)


@dataclass(frozen=True)
class Clipped:
    """A norm that torch clipped by, the norm of the whole gradients before and after, and the all-reduces that it took."""

    norm: float
    before: float
    after: float
    all_reduces: int
    placements: set[str]


def clip(build: Seeded, plan: Plan, norm_type: float, foreach: bool) -> Clipped:
    module, model, mesh = parallel(build, plan)
    module(*autoplan.shard_inputs(plan, mesh, model.args)).backward()
    before = _norm(module, norm_type)
    with CommDebugMode() as communication:
        norm = torch.nn.utils.clip_grad_norm_(module.parameters(), before / 2, norm_type, foreach=foreach)
    counts = {str(op): count for op, count in communication.get_comm_counts().items()}
    placements = {str(p.placements) for p in module.parameters() if isinstance(p, DTensor)}
    assert set(counts) <= {"c10d_functional.all_reduce"}, counts
    return Clipped(_whole(norm).item(), before, _norm(module, norm_type), sum(counts.values()), placements)


def _norm(module: nn.Module, norm_type: float) -> float:
    flat = torch.cat([_whole(p.grad).flatten() for p in module.parameters() if p.grad is not None])
    return torch.linalg.vector_norm(flat.double(), norm_type).item()


def inferred(build: Seeded, plan: Plan) -> tuple[list[tuple[str, ...]], list[Tensor], bool]:
    """Placements and whole values of an inference plan's outputs, and whether any of them asks for gradients."""
    module, model, mesh = parallel(build, plan)
    module.eval()
    output = module(*autoplan.shard_inputs(plan, mesh, model.args))
    outputs = list(output.values()) if isinstance(output, dict) else [output]
    whole = [tensor.redistribute(placements=[Replicate()] * mesh.ndim).to_local() for tensor in outputs]
    return [tuple(map(str, tensor.placements)) for tensor in outputs], whole, any(tensor.requires_grad for tensor in outputs)
