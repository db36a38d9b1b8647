"""Everything that is timed on this machine, by all ranks at once; the time of a work is the median over the ranks.

A work that fails on any rank is left out on all, with the reason. All ranks meet before each work, so that a host's cores,
memory and power are shared as they are in training.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from itertools import groupby
from statistics import median
from typing import Any

import torch
import torch.distributed as dist

from autoplan.calibrate.clock import at_work, times
from autoplan.calibrate.evidence import Measured, Site
from autoplan.calibrate.host import eager_steps, starts
from autoplan.calibrate.links import collective_times
from autoplan.calibrate.ops import prepared
from autoplan.calibrate.shapes import collectives, works_of_device
from autoplan.calibrate.works import Collective, Timing, Work
from autoplan.graph.ir import ITEM_BYTES

SECONDS = {"cuda": 0.6, "cpu": 0.2}
QUICK_SECONDS = {"cuda": 0.15, "cpu": 0.05}
LINK_SECONDS = {"cuda": 0.1, "cpu": 0.05}  # of one size of one kind: there are a hundred
FILLED = 0.6  # of the memory that is free, at most, by the tensors of one work


def find_site() -> Site:
    """The machine as all ranks see it, once they have joined."""
    ranks = dist.get_world_size()
    per_host = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    on_cuda = torch.cuda.is_available()
    free, total = torch.cuda.mem_get_info() if on_cuda else _memory_of_process(per_host)
    version = f"torch {torch.__version__}"
    if on_cuda:
        with suppress(Exception):  # a build without NCCL has no version
            version += f", NCCL {'.'.join(map(str, torch.cuda.nccl.version()))}"
    return Site(
        "cuda" if on_cuda else "cpu",
        torch.cuda.get_device_name() if on_cuda else _cpu_name(),
        total,
        min(_everyone(free)),
        torch.cuda.device_count() if on_cuda else per_host,
        ranks,
        per_host,
        version,
        f"{datetime.now(UTC):%Y-%m-%d}",
    )


def measure(site: Site, other_dtypes: Sequence[str], *, quick: bool, on_stage: Callable[[str], None] = lambda name: None) -> Measured:
    """All timings of this machine. `on_stage` hears what begins. Collective: every rank calls it."""
    bench = Bench(site, (QUICK_SECONDS if quick else SECONDS)[site.kind])
    works: list[Work] = list(works_of_device(site.kind, site.dtype, other_dtypes, quick=quick))
    if site.ranks > 1:
        works += collectives(site.kind, site.ranks, site.per_host, ITEM_BYTES[site.dtype], quick=quick)
    for stage, members in groupby(works, lambda work: work.family.split()[0]):
        on_stage(stage)
        for work in members:
            bench.time(work)
    if site.kind == "cuda":
        on_stage("host")
        bench.time_all("host ops", lambda: eager_steps(bench.device))
        bench.time_all("host redistributions", lambda: starts(site.ranks, bench.device))
    return bench.measured


class Bench:
    """This rank's part of the timing; what it has `measured` is the same on all."""

    def __init__(self, site: Site, seconds: float) -> None:
        self.site, self.seconds, self.measured = site, seconds, Measured()
        self.device = torch.device("cuda", torch.cuda.current_device()) if site.kind == "cuda" else torch.device("cpu")

    def time(self, work: Work) -> None:
        """One work on all ranks."""
        if work.memory_bytes > FILLED * self.site.free_bytes:
            self.measured.left_out[f"{work.family}: {work}"] = "too large for the memory that is free"
            return
        self._note(f"{work.family}: {work}", [(work, self._attempt(lambda: self._times(work)))])

    def time_all(self, name: str, run: Callable[[], Iterator[tuple[Work, list[float]]]]) -> None:
        """Works that are known once they have run: all of them, or none."""
        found = self._attempt(lambda: list(run()))
        ours = found if isinstance(found, list) else [(None, found)]
        self._note(name, ours)

    def _times(self, work: Work) -> list[float]:
        if isinstance(work, Collective):
            return collective_times(work, self.site.dtype, self.device, LINK_SECONDS[self.site.kind])
        run, before = prepared(work, self.device)
        return times(run, self.seconds, before)

    def _attempt(self, run: Callable[[], Any]) -> Any:
        """What comes of it, or the reason why nothing does: whatever is missing here, the other works can do without."""
        try:
            return run()
        except Exception as error:
            if self.site.kind == "cuda":
                torch.cuda.empty_cache()
            said = "".join(each if each.isprintable() else " " for each in next(iter(str(error).strip().splitlines()), ""))
            return f"{type(error).__name__}: {said[:200]}"  # it goes into the file, where control characters are no comment

    def _note(self, name: str, own: Sequence[tuple[Work | None, list[float] | str]]) -> None:
        """The median over the ranks of what each had, unless one of them failed."""
        taken = _everyone([times if isinstance(times, str) else (at_work(times), len(times)) for _, times in own])
        failures = {rank: one for rank, each in enumerate(taken) for one in each if isinstance(one, str)}
        if failures:
            rank, reason = min(failures.items())
            self.measured.left_out[name] = reason if rank == 0 else f"rank {rank}: {reason}"
            return
        for (work, _), everyone in zip(own, zip(*taken, strict=True), strict=True):
            assert work is not None
            self.measured.timings.append(Timing(work, median(seconds for seconds, _ in everyone), min(runs for _, runs in everyone)))


def _everyone(own: Any) -> list[Any]:
    """What every rank has, in rank order; one rank alone needs no numpy for it, as torch's exchange does."""
    if dist.get_world_size() == 1:
        return [own]
    found = [None] * dist.get_world_size()
    dist.all_gather_object(found, own)
    return found


def _memory_of_process(per_host: int) -> tuple[int, int]:
    page = os.sysconf("SC_PAGE_SIZE")
    free, total = (page * os.sysconf(name) // per_host for name in ("SC_AVPHYS_PAGES", "SC_PHYS_PAGES"))
    return free, total


def _cpu_name() -> str:
    """The processor and how many threads of it each process has."""
    name = "CPU"
    with suppress(OSError), open("/proc/cpuinfo") as file:
        name = next((line.partition(":")[2].strip() for line in file if line.startswith("model name")), name)
    threads = torch.get_num_threads()
    return f"{threads} thread{'' if threads == 1 else 's'} of {name}"
