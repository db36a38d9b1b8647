"""The solver: bound, prune, and CP-SAT on what is left.

Message passing bounds every strategy from below (`bound`). Guess a threshold a little above the bound; a choice that costs
no more uses only strategies whose own bound is no more, so CP-SAT need only look at those. The best choice it finds there is
the optimum if it is at or under the threshold; if none is, the threshold is a bound, and the next one is higher.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from time import perf_counter

import numpy as np

from autoplan.planner.bound import Bound, bound
from autoplan.planner.problem import Group, Problem, ProblemNode, ProblemValue, Reader, Solution
from autoplan.planner.solve_cpsat import smallest_memory, solve_cpsat

BANDS = (1e-5, 1e-3, 1e-2, 5e-2, 0.25, 1.0, float("inf"))  # how far above the bound thresholds are guessed
ROUNDING = 1e-6  # of the bound: more than its floating-point error, so that no optimum is ever pruned


def solve(
    problem: Problem,
    time_limit_s: float | None = None,
    *,
    hint: Sequence[int] | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> Solution | None:
    """The cheapest choice within the limits, or the best found in time with its bound; None where nothing fits.

    Raises OutOfTime when the time limit passes before any choice is found.
    """
    start = perf_counter()
    below = bound(problem)
    incumbent: Solution | None = None
    proved = max(0, int(np.floor(below.value * (1 - ROUNDING)))) if np.isfinite(below.value) else 0
    tried: tuple[tuple[int, ...], ...] | None = None
    for slack in BANDS:
        threshold = incumbent.cost if incumbent else below.value + slack * max(abs(below.value), 1.0)
        kept = _within(below, threshold)
        if not all(kept) or kept == tried:
            continue
        tried = kept
        left = None if time_limit_s is None else max(0.01, time_limit_s - (perf_counter() - start))
        found = solve_cpsat(_restrict(problem, kept), left, hint=_restricted_hint(hint, kept), on_progress=on_progress)
        if found is None:
            if threshold == float("inf"):
                return None
            proved = max(proved, int(threshold))
            continue
        found = replace(found, choice=tuple(strategies[s] for strategies, s in zip(kept, found.choice, strict=True)))
        if found.status != "optimal":
            return replace(found, bound=max(proved, min(found.bound, int(min(threshold, found.cost)))))
        if found.cost <= threshold:
            return found
        incumbent = found
    return incumbent


def _within(below: Bound, threshold: float) -> tuple[tuple[int, ...], ...]:
    """For each node the strategies that a choice of at most `threshold` may use."""
    margin = ROUNDING * max(abs(below.value), 1.0) if np.isfinite(below.value) else 0.0
    return tuple(tuple(np.flatnonzero((costs <= threshold + margin) & np.isfinite(costs)).tolist()) for costs in below.conditional)


def _restricted_hint(hint: Sequence[int] | None, kept: Sequence[tuple[int, ...]]) -> tuple[int, ...] | None:
    if hint is None:
        return None
    return tuple(strategies.index(s) if s in strategies else 0 for s, strategies in zip(hint, kept, strict=True))


def _restrict(problem: Problem, kept: Sequence[tuple[int, ...]]) -> Problem:
    """The problem with only the `kept` strategies of each node."""

    def pick(node: int, vector: Sequence) -> tuple:
        return tuple(vector[s] for s in kept[node])

    def restrict_node(u: int, node: ProblemNode) -> ProblemNode:
        return ProblemNode(node.name, pick(u, node.costs), tuple(pick(u, row) for row in node.memory))

    def restrict_value(value: ProblemValue) -> ProblemValue:
        readers = tuple(Reader(reader.node, pick(reader.node, reader.needs)) for reader in value.readers)
        return replace(value, made=pick(value.producer, value.made), readers=readers)

    def restrict_group(group: Group) -> Group:
        return Group(tuple((u, pick(u, amounts)) for u, amounts in group.nodes), group.values)

    return replace(
        problem,
        nodes=tuple(restrict_node(u, node) for u, node in enumerate(problem.nodes)),
        values=tuple(map(restrict_value, problem.values)),
        peaks=tuple(tuple(tuple(map(restrict_group, peak)) for peak in peaks) for peaks in problem.peaks),
    )


__all__ = ["smallest_memory", "solve"]
