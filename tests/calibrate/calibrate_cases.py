"""Timings as a machine of a known profile would have them."""

from __future__ import annotations

import random
from collections.abc import Sequence

from autoplan.calibrate.evidence import Evidence, Measured, Site
from autoplan.calibrate.shapes import collectives, works_of_device
from autoplan.calibrate.works import EagerStep, Start, Timing, Work
from autoplan.cost.hardware import Hardware, load_hardware

GPU = Site("cuda", "NVIDIA H200", 140 * 2**30, 130 * 2**30, 8, 8, 8, "torch 2.11.0, NCCL 2.28.9", "2026-11-24")


def works(ranks: int = 8, per_host: int = 8, *, quick: bool = True, others: Sequence[str] = ()) -> list[Work]:
    """All that is timed on a GPU."""
    starts = [Start(kind, "forward") for kind in ("all-gather", "all-reduce")]
    links = collectives("cuda", ranks, per_host, 2, quick=quick) if ranks > 1 else ()
    return [*works_of_device("cuda", "bfloat16", others, quick=quick), *links, EagerStep(145), EagerStep(433), *starts]


def timed(some: Sequence[Work], truth: Hardware, noise: float = 0.0) -> Measured:
    """As the profile `truth` predicts, but for lognormal noise."""
    drawn = random.Random(0)
    return Measured([Timing(work, work.seconds(truth) * drawn.lognormvariate(0.0, noise), 100) for work in some])


def evidence(base: str, measured: Measured, site: Site = GPU, *, same_device: bool = False) -> Evidence:
    return Evidence(load_hardware(base), same_device, site, measured)
