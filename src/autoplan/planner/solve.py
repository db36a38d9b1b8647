"""Solve a `Problem`: as arrays by the solver, its answer checked by the problem's own definition."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from time import perf_counter
from typing import overload

import numpy as np

from autoplan.errors import OutOfTime
from autoplan.planner.pairwise import extended, model_of
from autoplan.planner.problem import NoneCheaper, Problem, Solution, cost_of, evaluate, is_feasible
from autoplan.planner.shares import SharedBound
from autoplan.planner.solver.bound import Bound
from autoplan.planner.solver.model import Model
from autoplan.planner.solver.search import UNLIMITED, minimise_cost, minimise_peak

Report = Callable[[int, int], None]


@overload
def solve(
    problem: Problem,
    time_limit_s: float | None = None,
    *,
    hint: Sequence[int] | None = None,
    shared: SharedBound | None = None,
    proved: int | None = None,
    on_progress: Report | None = None,
) -> Solution | None: ...
@overload
def solve(
    problem: Problem,
    time_limit_s: float | None = None,
    *,
    cutoff: int,
    hint: Sequence[int] | None = None,
    shared: SharedBound | None = None,
    proved: int | None = None,
    on_progress: Report | None = None,
) -> Solution | NoneCheaper | None: ...
def solve(
    problem: Problem,
    time_limit_s: float | None = None,
    *,
    cutoff: int | None = None,
    hint: Sequence[int] | None = None,
    shared: SharedBound | None = None,
    proved: int | None = None,
    on_progress: Report | None = None,
) -> Solution | NoneCheaper | None:
    """The cheapest choice within the limits, or the best found in time with its bound; None where nothing fits.

    `hint` is a choice to begin with, such as an older plan's; `shared` bounds the problem if that is done already; none
    costs less than `proved`. With a `cutoff` only choices cheaper than it are looked for, and
    NoneCheaper is the answer where none is found. Raises OutOfTime when without one the time limit passes before any choice is found.
    """
    deadline = _deadline(time_limit_s)
    model = model_of(problem)
    shared = shared or SharedBound(problem, deadline, cutoff)
    if any(not (conditional < UNLIMITED).any() for conditional in shared.below.conditional):
        return None

    def outer(threshold: int) -> Bound | None:
        closer = shared.below if threshold == UNLIMITED else shared.within(threshold)
        return None if closer is None else _over(model, closer)

    hints = [choice for choice in (shared.choice, hint) if choice is not None and is_feasible(problem, choice)]
    known = extended(model, min(hints, key=lambda choice: evaluate(problem, choice).cost or 0)) if hints else None
    result = minimise_cost(
        model, deadline, known=known, outer=outer, proved=proved, cutoff=cutoff, gap=problem.tie - 1, on_progress=on_progress
    )
    if result is None:
        return None
    if result.choice is None and cutoff is not None:
        return NoneCheaper(result.bound, result.interrupted)
    if result.choice is None:
        raise OutOfTime(f"no plan found in {time_limit_s:g} s", next_step="raise --time-limit")
    choice = result.choice[: len(problem.nodes)]
    cost = cost_of(problem, choice)
    assert cost == result.cost and is_feasible(problem, choice)
    status = "optimal" if cost - result.bound < problem.tie else "feasible"
    return Solution(choice, cost, result.bound, status, result.interrupted)


def _over(model: Model, below: Bound) -> Bound:
    """A bound on the problem's nodes as one on the model's: those it added are not bounded by more than the whole."""
    added = [np.full(len(costs), below.value) for costs in model.costs[len(below.conditional) :]]
    return Bound(below.value, (*below.conditional, *added), below.prices)


def smallest_memory(problem: Problem, time_limit_s: float | None = None, *, enough: int | None = None) -> Solution | None:
    """The choice whose greatest row of memory is least; its `cost` and `bound` are in memory units. None: nothing is possible.

    Where it only matters whether so much is `enough`, the search ends as soon as the cost is at most that, or the bound above it.
    Raises OutOfTime when the time limit passes before any choice is found.
    """
    result = minimise_peak(model_of(problem), _deadline(time_limit_s), enough)
    if result is None:
        return None
    if result.choice is None:
        raise OutOfTime(f"no plan found in {time_limit_s:g} s", next_step="raise --time-limit")
    choice = result.choice[: len(problem.nodes)]
    needed = evaluate(problem, choice)
    assert needed.cost is not None
    peak = max(needed.memory)
    return Solution(choice, peak, min(result.bound, peak), "optimal" if peak <= result.bound else "feasible")


def _deadline(time_limit_s: float | None) -> float | None:
    return None if time_limit_s is None else perf_counter() + time_limit_s
