"""An evaluator of the public problems by their definition; it shares no code with the solver."""

from __future__ import annotations

from typing import Any


def cost_and_peak(problem: dict[str, Any], choice: list[int]) -> tuple[int, int]:
    """What a choice costs, and the most memory in use at any time step; `problem` is what stands under `problem` in a file."""
    nodes, edges = problem["nodes"], problem["edges"]
    cost = sum(costs[s] for costs, s in zip(nodes["costs"], choice, strict=True))
    for (u, w), entries in zip(edges["nodes"], edges["costs"], strict=True):
        cost += entries[choice[u] * len(nodes["costs"][w]) + choice[w]]
    events: dict[int, int] = {}
    for (lower, upper), usages, s in zip(nodes["intervals"], nodes["usages"], choice, strict=True):
        if lower < upper:
            events[lower] = events.get(lower, 0) + usages[s]
            events[upper] = events.get(upper, 0) - usages[s]
    used = peak = 0
    for time in sorted(events):
        used += events[time]
        peak = max(peak, used)
    return cost, peak
