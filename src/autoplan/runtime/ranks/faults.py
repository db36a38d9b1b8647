"""What goes wrong in a run, in the user's words: devices with too little memory, losses that are no numbers."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist

from autoplan.errors import DeviceMemoryError, NonFiniteLoss
from autoplan.plan.schema import Plan

GIB = 2**30
_CPU_ALLOCATOR = "DefaultCPUAllocator"  # torch raises a plain RuntimeError that names it


@dataclass(frozen=True)
class DeviceMemory:
    """What a rank's device has, and how much of it nobody has taken, in GiB."""

    device: str
    total_gib: float
    free_gib: float


def device_memory() -> DeviceMemory | None:
    """Of the current CUDA device; None on the CPU, whose memory all processes share."""
    if not torch.cuda.is_available():
        return None
    free, total = torch.cuda.mem_get_info()
    return DeviceMemory(torch.cuda.get_device_name(), total / GIB, free / GIB)


def memory_of_ranks() -> list[DeviceMemory]:
    """Of every rank's device; empty on the CPU."""
    everyone: list[DeviceMemory | None] = [None] * dist.get_world_size()
    dist.all_gather_object(everyone, device_memory())
    return [own for own in everyone if own is not None]


def check_memory(plan: Plan, ranks: Sequence[DeviceMemory]) -> str | None:
    """A note where less is free than the plan predicts to be needed; raises DeviceMemoryError where the devices are too small."""
    peak = plan.predicted.memory_gib.peak
    if small := [rank for rank, own in enumerate(ranks) if own.total_gib < peak]:
        own = ranks[small[0]]
        raise DeviceMemoryError(
            f"the devices are too small: {_ranks(small)} on {own.device} with {own.total_gib:.1f} GiB, {_predicted(plan)}",
            where=plan.provenance.where("predicted", "memory_gib"),
            next_step=f"plan again with --memory-gib {own.total_gib * 0.94:.0f}",  # what context, NCCL and fragments leave (cost/profiles)
        )
    if taken := [rank for rank, own in enumerate(ranks) if own.free_gib < peak]:
        own = ranks[taken[0]]
        return f"note: {_ranks(taken)} may run out of memory: {own.free_gib:.1f} of {own.total_gib:.1f} GiB are free, {_predicted(plan)}"
    return None


@contextlib.contextmanager
def memory_explained(plan: Plan, when: str) -> Iterator[None]:
    """An allocation that fails within becomes a DeviceMemoryError: when, what the device has, what the plan predicts."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        own = device_memory()
        has = (
            f"{own.device} has {own.total_gib:.1f} GiB, of which {_reserved_gib():.1f} are this process's" if own else "the device is full"
        )
        raise _out_of_memory(plan, when, has, error) from error
    except RuntimeError as error:
        if _CPU_ALLOCATOR not in str(error):
            raise
        raise _out_of_memory(plan, when, "the host gives this process no more", error) from error


def check_loss(loss: float, step: int, plan: Plan) -> None:
    """Raises NonFiniteLoss, which names the step, counted from 1."""
    if not math.isfinite(loss):
        raise NonFiniteLoss(
            f"step {step}: the loss is {loss}; the step has changed the parameters, and nothing was saved since",
            step=step,
            loss=loss,
            where=f"precision {plan.options.precision}, optimizer {plan.options.optimizer}",
            next_step="lower --lr, look at the batch of this step, or go on regardless with --allow-nonfinite",
        )


def _out_of_memory(plan: Plan, when: str, has: str, error: BaseException) -> DeviceMemoryError:
    said = str(error).strip().splitlines()[0].split(". GPU")[0]
    return DeviceMemoryError(
        f"out of memory {when}: {has}, {_predicted(plan)}",
        where=f"torch: {said.removesuffix('.')}",
        next_step="plan with a lower --memory-gib, a smaller batch or more devices; if the prediction is far off, `autoplan validate` re-costs the plan",
    )


def _predicted(plan: Plan) -> str:
    memory = plan.predicted.memory_gib
    names = ("parameters", "gradients", "optimizer", "activations", "gathered", "transient")
    parts = ", ".join(f"{name} {getattr(memory, name):.3g}" for name in names)
    kind = " for compiled steps" if plan.options.compile else ""
    return f"the plan predicts a peak of {memory.peak:.3g} GiB{kind} ({parts})"


def _reserved_gib() -> float:
    return torch.cuda.memory_reserved() / GIB


def _ranks(numbers: Sequence[int]) -> str:
    shown = ", ".join(map(str, numbers[:4]))
    return f"rank{'s' if len(numbers) > 1 else ''} {shown}{', ...' if len(numbers) > 4 else ''}"
