"""Collectives on the processes of this run, all groups of an axis at once."""

from __future__ import annotations

import torch
import torch.distributed as dist

from autoplan.calibrate.clock import Run, times
from autoplan.calibrate.works import Collective
from autoplan.collectives.process_group import ProcessGroupCollectives

MOST_RUNS = 200
_ops = torch.ops._c10d_functional  # registered with ProcessGroupCollectives


def collective_times(work: Collective, dtype: str, device: torch.device, seconds: float) -> list[float]:
    """Seconds of each run; every rank makes as many."""
    return times(prepared(work, dtype, device), seconds, count=lambda own: min(MOST_RUNS, _agreed(own, device)))


def prepared(work: Collective, dtype: str, device: torch.device) -> Run:
    """The collective alone, by the ops that the runtime calls; an all-reduce in place, as copies before it are not its own."""
    group = ProcessGroupCollectives(work.mesh, [work.axes])
    item = getattr(torch, dtype)
    full = torch.zeros(work.full_bytes // item.itemsize, dtype=item, device=device)
    match work.kind:
        case "all-gather":
            part = full[: full.numel() // work.ranks].clone()
            return lambda: group.all_gather(part, work.axes)
        case "reduce-scatter":
            return lambda: group.reduce_scatter(full, work.axes)
        case "all-reduce":
            return lambda: _ops.wait_tensor(_ops.all_reduce_(full, "sum", group.names[work.axes]))
    return lambda: group.all_to_all(full, work.axes)


def _agreed(count: int, device: torch.device) -> int:
    """The least that any rank has in mind."""
    least = torch.tensor([count], dtype=torch.int64, device=device)
    dist.all_reduce(least, dist.ReduceOp.MIN)
    return int(least.item())
