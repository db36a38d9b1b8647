"""Jobs that the workers of a pool run."""

from __future__ import annotations

from statistics import median

import torch
import torch.distributed as dist

from autoplan.calibrate import host, measure
from autoplan.calibrate.evidence import Measured, Site
from autoplan.calibrate.shapes import collectives
from autoplan.calibrate.works import Multiply, Product, Work


def bench(free_bytes: int = 2**40) -> measure.Bench:
    ranks = dist.get_world_size()
    return measure.Bench(Site("cpu", "a CPU", 2**34, free_bytes, ranks, ranks, ranks, "torch", "2026-11-24"), 0.001)


def measured_ops(free_bytes: int = 2**40) -> Measured:
    ours = bench(free_bytes)
    for work in (Multiply(1024, "float32"), Product(16, 16, 16, "float32", "backward")):
        ours.time(work)
    return ours.measured


def measured_links() -> Measured:
    ours = bench()
    for work in collectives("cpu", 4, 4, 4, quick=True):
        if work.full_bytes <= 4096:
            ours.time(work)
    return ours.measured


def measured_with_a_failure() -> Measured:
    ours = bench()
    whole = ours._times

    def times(work: Work) -> list[float]:
        if dist.get_rank() == 1 and isinstance(work, Product):
            raise RuntimeError("no kernel for this\nand a long story")
        return whole(work)

    ours._times = times  # type: ignore[method-assign]
    for work in (Product(8, 8, 8, "float32"), Multiply(64, "float32")):
        ours.time(work)
    return ours.measured


def started() -> list[tuple[str, str, float]]:
    """Kinds, ways and seconds of starts; a few, since gloo takes milliseconds for each."""
    host.STEPS = host.CHAIN = host.WARM_UP = 2
    return [(work.kind, work.way, median(taken)) for work, taken in host.starts(dist.get_world_size(), torch.device("cpu"))]
