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

from autoplan.errors import OutOfTime
from autoplan.planner.bound import Bound, bound, memory_bound
from autoplan.planner.problem import Group, Problem, ProblemNode, ProblemValue, Reader, Solution, evaluate, is_feasible
from autoplan.planner.solve_cpsat import solve_cpsat, solve_memory_cpsat

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

    `hint` is a choice to begin with, such as an older plan's. Raises OutOfTime when the time limit passes before any choice is found.
    """
    start = perf_counter()
    below = bound(problem)
    if not np.isfinite(below.value):
        return None
    incumbent = _cheapest(_met(problem, below.choice), _met(problem, hint))
    if incumbent is None:
        smallest = memory_bound(problem)
        if smallest.value * (1 - ROUNDING) > max(problem.limits):
            return None
        incumbent = _met(problem, smallest.choice)
    proved = max(0, int(below.value - ROUNDING * abs(below.value)))
    tried: tuple[tuple[int, ...], ...] | None = None
    for slack in BANDS:
        threshold = below.value + slack * max(abs(below.value), 1.0)
        if incumbent is not None:
            threshold = min(threshold, incumbent.cost)
        kept = _within(below, threshold)
        if all(kept) and kept != tried:
            tried = kept
            left = None if time_limit_s is None else max(0.1, time_limit_s - (perf_counter() - start))
            found = _solve_within(problem, kept, left, on_progress)
            if found == TIMEOUT:
                break
            if isinstance(found, Solution):
                incumbent = _cheapest(incumbent, found)
                if found.status != "optimal":
                    proved = max(proved, min(found.bound, int(threshold)))
                    break
                if found.cost <= threshold:
                    return found
        if threshold == float("inf"):
            return None
        proved = max(proved, int(threshold))
    if incumbent is None:
        raise OutOfTime(f"no plan found in {time_limit_s:g} s", next_step="raise --time-limit")
    proved = min(proved, incumbent.cost)
    return replace(incumbent, bound=proved, status="optimal" if proved == incumbent.cost else "feasible")


TIMEOUT = "timeout"


def _solve_within(
    problem: Problem,
    kept: tuple[tuple[int, ...], ...],
    time_limit_s: float | None,
    on_progress: Callable[[int, int], None] | None,
) -> Solution | str | None:
    """The best choice among the `kept` strategies; None where none fits, TIMEOUT where none was found in time."""
    try:
        found = solve_cpsat(_restrict(problem, kept), time_limit_s, on_progress=on_progress)
    except OutOfTime:
        return TIMEOUT
    return found and _unrestricted(found, kept)


def smallest_memory(problem: Problem, time_limit_s: float | None = None) -> Solution | None:
    """The choice whose greatest row of memory is least; its `cost` and `bound` are in memory units. None: nothing is possible."""
    below = memory_bound(problem)
    if not np.isfinite(below.value):
        return None
    if below.choice is None:
        return solve_memory_cpsat(problem, time_limit_s)
    peak = max(evaluate(problem, below.choice).memory)
    kept = _within(below, peak)
    met = Solution(below.choice, peak, int(below.value), "feasible")
    try:
        found = solve_memory_cpsat(_restrict(problem, kept), time_limit_s)
    except OutOfTime:
        return met
    return met if found is None or found.cost > peak else _unrestricted(found, kept)


def _met(problem: Problem, choice: Sequence[int] | None) -> Solution | None:
    """A choice that is known before the search, if it is feasible."""
    if choice is None or not is_feasible(problem, choice):
        return None
    cost = evaluate(problem, choice).cost
    assert cost is not None
    return Solution(tuple(choice), cost, 0, "feasible")


def _cheapest(*solutions: Solution | None) -> Solution | None:
    return min(filter(None, solutions), key=lambda solution: solution.cost, default=None)


def _unrestricted(found: Solution, kept: Sequence[tuple[int, ...]]) -> Solution:
    return replace(found, choice=tuple(strategies[s] for strategies, s in zip(kept, found.choice, strict=True)))


def _within(below: Bound, threshold: float) -> tuple[tuple[int, ...], ...]:
    """For each node the strategies that a choice of at most `threshold` may use."""
    margin = ROUNDING * max(abs(below.value), 1.0) if np.isfinite(below.value) else 0.0
    return tuple(tuple(np.flatnonzero((costs <= threshold + margin) & np.isfinite(costs)).tolist()) for costs in below.conditional)


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
