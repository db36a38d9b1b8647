"""What a profiler's trace of some steps says: where the GPU's time went, how much communication was hidden, when it was idle."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile, record_function

Interval = tuple[float, float]
"""Begin and end, in microseconds."""

GPU_WORK = ("kernel", "gpu_memcpy", "gpu_memset")
STEP = "benchmark_step"


def profiled(step: Callable[[], object], steps: int) -> dict[str, Any]:
    """The summary of `steps` steps on this rank; times are milliseconds a step."""
    cuda = torch.cuda.is_available()
    with profile(activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]) as profiler:
        for _ in range(steps):
            with record_function(STEP):
                step()
            if cuda:
                torch.cuda.synchronize()
    with TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(path))
        events = json.loads(path.read_text())["traceEvents"]
    return summary([event for event in events if event.get("ph") == "X"], steps)


def summary(events: Sequence[dict[str, Any]], steps: int, top: int = 25) -> dict[str, Any]:
    """Of the complete events of a Chrome trace: `top` kernels, time in collectives and how much of it compute hides, idle time.

    `host_ms` is how long the host takes to issue a step, waiting included where it must.
    """
    work = [event for event in events if event.get("cat") in GPU_WORK]
    talk = [event for event in work if is_collective(event)]
    compute = [event for event in work if not is_collective(event)]
    covered, spoken, computed = (union(map(interval, chosen)) for chosen in (work, talk, compute))
    host = union(interval(event) for event in events if event.get("cat") == "user_annotation" and event["name"] == STEP)
    span = covered[-1][1] - covered[0][0] if covered else 0.0
    by_name: Counter[str] = Counter()
    calls: Counter[str] = Counter()
    for event in work:
        by_name[event["name"]] += event["dur"]
        calls[event["name"]] += 1

    def ms(microseconds: float) -> float:
        return round(microseconds / 1e3 / steps, 3)

    return {
        "span_ms": ms(span),
        "compute_ms": ms(length(computed)),
        "collectives_ms": ms(length(spoken)),
        "collectives_hidden_ms": ms(length(spoken) + length(computed) - length(covered)),
        "idle_ms": ms(span - length(covered)),
        "idle_gaps_over_10us": sum(after[0] - before[1] > 10 for before, after in zip(covered, covered[1:], strict=False)) // steps,
        "host_ms": ms(length(host)),
        "kernels": len(work) // steps,
        "streams_ms": {str(stream): ms(time) for stream, time in times_of_streams(work).items()},
        "top": [{"ms": ms(time), "calls": calls[name] / steps, "name": name[:110]} for name, time in by_name.most_common(top)],
    }


def is_collective(event: dict[str, Any]) -> bool:
    """Whether ranks talk to each other in it."""
    return "nccl" in event["name"].lower() or event["name"] == "paced"  # the kernel of emulated.py


def interval(event: dict[str, Any]) -> Interval:
    return event["ts"], event["ts"] + event["dur"]


def times_of_streams(work: Iterable[dict[str, Any]]) -> Counter[object]:
    """Microseconds of work by CUDA stream."""
    found: Counter[object] = Counter()
    for event in work:
        found[event.get("args", {}).get("stream", "?")] += event["dur"]
    return found


def union(intervals: Iterable[Interval]) -> list[Interval]:
    """The same moments in intervals that do not touch, in order."""
    merged: list[Interval] = []
    for begin, end in sorted(intervals):
        if merged and begin <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(merged[-1][1], end))
        else:
            merged.append((begin, end))
    return merged


def length(intervals: Iterable[Interval]) -> float:
    return sum(end - begin for begin, end in intervals)
