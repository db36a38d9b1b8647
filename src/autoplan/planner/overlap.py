"""Whether parameters travel ahead of their blocks, and what blocks then wait for them: an objective that is not linear, by linear ones.

What the blocks of a kind wait is the greater of two linear functions of the choice (`Terms.ahead`). Weighing the two makes a
linear function that is no more than the greater, so that the least of it bounds all plans; with the right weights it is the
optimum, or close below it. Mostly all is hidden that can be, and the first weights are the last.

Travelling ahead takes the memory of one block more; plans that do without are in the search as well.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from time import perf_counter

from autoplan.errors import OutOfTime
from autoplan.graph.segments import Segment
from autoplan.planner.build import Built, build_problem
from autoplan.planner.problem import cost_of
from autoplan.planner.recompute import Outcome, cheapest

WEIGHINGS = 5  # at most: each halves what is not known of a weight
CLOSE = 1e-3  # of the cost: a gap of no more is not worth another search, costs are not known so well
Report = Callable[[int, int], None]


def cheapest_overlapped(
    start: Built, limit_bytes: int, time_limit_s: float, *, hint: Sequence[int] | None = None, on_progress: Report | None = None
) -> Outcome | None:
    """The cheapest plan within the limit, gathered ahead or not, or the best found in time; None where nothing fits.

    `start` is the problem in which nothing is gathered ahead nor recomputed, `hint` a choice to begin with. Raises OutOfTime when the
    time limit passes before any plan is found.
    """
    prices = start.terms.prices
    if not prices.hides:
        return cheapest([start], limit_bytes, time_limit_s, hint=hint, on_progress=on_progress)
    deadline = perf_counter() + time_limit_s
    weights = _Weights(sorted(prices.prefixes))
    best: Outcome | None = None
    proved, proved_with = -1, dict(weights.now)
    for _ in range(WEIGHINGS):
        terms = start.terms.ahead(weights.now)
        starts = (build_problem(terms, limit_bytes), start)
        try:
            found = cheapest(starts, limit_bytes, deadline - perf_counter(), hint=hint, on_progress=on_progress)
        except OutOfTime:
            if best is None:
                raise
            break
        if found is None:
            return None
        true, waits = _true(found, start, limit_bytes)
        bound = found.solution.bound - (0 if weights.are_whole else terms.rounding)
        if bound > proved:
            proved, proved_with = bound, dict(weights.now)
        best = true if best is None or true.solution.cost < best.solution.cost else best
        is_close = proved > best.solution.cost - max(start.problem.tie, CLOSE * best.solution.cost)
        if is_close or perf_counter() > deadline or not weights.move(waits):
            break
    assert best is not None
    cost = best.solution.cost
    status = "optimal" if proved > cost - start.problem.tie else "feasible"
    return replace(best, solution=replace(best.solution, bound=min(proved, cost), status=status), waiting=proved_with)


def waits_of(start: Built, limit_bytes: int, recomputed: Sequence[Segment], choice: Sequence[int]) -> tuple[int, dict[str, int]]:
    """What a choice that gathers ahead costs where all is hidden that can be, and how much longer than that blocks of each kind wait."""

    def cost(waiting: Mapping[str, float]) -> int:
        return cost_of(build_problem(start.terms.ahead(waiting), limit_bytes, recomputed).problem, choice)

    least = cost({})
    return least, {kind: cost({kind: 1.0}) - least for kind in sorted(start.terms.prices.prefixes)}


def _true(found: Outcome, start: Built, limit_bytes: int) -> tuple[Outcome, dict[str, int]]:
    """The same plan at what it truly costs, and how long its blocks wait."""
    if not found.built.terms.prefetch:
        return found, {}
    least, waits = waits_of(start, limit_bytes, found.built.recomputed, found.solution.choice)
    cost = least + sum(max(0, wait) for wait in waits.values())
    return replace(found, solution=replace(found.solution, cost=cost)), waits


class _Weights:
    """By kind of blocks the weight of waiting for all communication that is longer than computing, and between which it is sought."""

    def __init__(self, kinds: Sequence[str]) -> None:
        self.now = dict.fromkeys(kinds, 0.0)
        self._between = dict.fromkeys(kinds, (0.0, 1.0))

    @property
    def are_whole(self) -> bool:
        """Whether each is all or nothing: then terms are as they are, else rounded."""
        return set(self.now.values()) <= {0.0, 1.0}

    def move(self, waits: Mapping[str, int]) -> bool:
        """More weight for those that wait for it, less for the others: all or nothing first, then half of what is left. Whether any moved."""
        before = dict(self.now)
        for kind, wait in waits.items():
            low, high = self._between[kind]
            now = self.now[kind]
            low, high = (now, high) if wait > 0 else (low, now)
            if low < high:
                self._between[kind] = low, high
                self.now[kind] = 1.0 if wait > 0 and now == 0 and high == 1 else (low + high) / 2
        return self.now != before
