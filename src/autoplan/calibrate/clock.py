"""Seconds of a run as a device has them that is at work: again and again, nothing waited for in between."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from statistics import median
from typing import Any

import torch

FIRST = 5
LEAST_RUNS, MOST_RUNS = 2 * FIRST, 2000

Run = Callable[[], Any]


def times(run: Run, seconds: float, before: Run | None = None, count: Callable[[int], int] = lambda own: own) -> list[float]:
    """Seconds of each of as many runs as fit into `seconds`; `before` each of them something may run that is not timed.

    `count` may change the number of runs: where ranks run together, all must do as many.
    """
    clocked = _on_cuda if torch.cuda.is_available() else _on_cpu
    clocked(run, before, 2)
    start = time.perf_counter()
    clocked(run, before, 1)
    once_s = time.perf_counter() - start
    return clocked(run, before, count(max(LEAST_RUNS, min(MOST_RUNS, int(seconds / once_s)))))


def at_work(taken: Sequence[float]) -> float:
    """The median of what was taken once the device was warm: of the last two thirds. Never nothing, as coarse clocks may have it."""
    return max(1e-9, median(taken[len(taken) // 3 :]))


def _on_cuda(run: Run, before: Run | None, count: int) -> list[float]:
    """Events around each run."""
    marks = []
    for _ in range(count):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        if before:
            before()
        start.record()
        run()
        end.record()
        marks.append((start, end))
    torch.cuda.synchronize()
    return [1e-3 * start.elapsed_time(end) for start, end in marks]


def _on_cpu(run: Run, before: Run | None, count: int) -> list[float]:
    taken = []
    for _ in range(count):
        if before:
            before()
        start = time.perf_counter()
        run()
        taken.append(time.perf_counter() - start)
    return taken
