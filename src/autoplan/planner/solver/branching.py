"""The cheapest choice at or under a threshold: prune and bound by turns; what stays too large is cut in two, and CP-SAT takes the rest.

Where memory is tight, the bound under prices of memory is attained by a mixture of choices: some use too much, the others cost
too much. A node whose strategies tell the two apart is cut between them, so that the bounds of both halves rise. Halves are
looked at in the order of their bounds, so that what is proved rises with each.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import count
from time import perf_counter

import numpy as np

from autoplan.planner.solver.bound import Bound, bound
from autoplan.planner.solver.core import Way, engine_for, restricted
from autoplan.planner.solver.eliminate import LARGEST_AMONG_FEW, Elimination
from autoplan.planner.solver.model import FORBIDDEN, Array, Found, Model
from autoplan.planner.solver.passing import MANY, Passing
from autoplan.planner.solver.reduce import Infeasible, reduce

SHRINKING = 0.8  # of the strategies: if more are left, bounding once more would not help
SMALL = 4_000  # pairs of strategies: up to so many, CP-SAT comes to an end soon
LARGEST = 150_000  # beyond, cutting would not come to an end in any time limit
HOPELESS = 600_000  # beyond, not even reductions would come to an end that helps
LOWER, HIGHER = 0.9, 1.1  # of the prices: under which strategies that take much memory are told from those that cost much

Meet = Callable[[Sequence[int], int], None]
Report = Callable[[int, int], None]
Cut = tuple[int, Array]
"""A node, and which of its strategies belong to the first half."""


@dataclass(frozen=True, slots=True, order=True)
class _Branch:
    """A part that is still to be cut: nothing in it costs less than `bound`."""

    bound: int
    number: int  # of the same bound, in the order in which they came
    core: Model = field(compare=False)
    way: Way = field(compare=False)
    below: Bound = field(compare=False)
    cut: Cut = field(compare=False)


class Branching:
    """The search in a model for choices that cost at most `threshold`, and less than the best met by more than `gap`."""

    def __init__(
        self, threshold: int, deadline: float | None, *, gap: int = 0, meet: Meet | None = None, on_progress: Report | None = None
    ) -> None:
        """`meet` is told each better choice and its cost."""
        self.top, self.deadline, self.gap, self.meet, self.on_progress = threshold, deadline, gap, meet, on_progress
        self.choice: tuple[int, ...] | None = None
        self.cost: int | None = None
        self.closed = FORBIDDEN  # nothing that was given up on as too dear costs less
        self.open: list[_Branch] = []
        self.order = count()
        self.finished = True
        self.parts = 0  # looked at

    def cheapest(self, model: Model, below: Bound) -> Found:
        """The cheapest choice; `below` bounds the model's strategies in choices of at most the threshold."""
        self._look(model, Way(), below)
        while self.open and self.finished:
            if self._is_late():
                self.finished = False
                break
            branch = heapq.heappop(self.open)
            if branch.bound > self.top:
                self._close(branch.bound)
                continue
            for half in _halves(branch.below, branch.cut):
                if self.finished:
                    self._look(branch.core, branch.way, half, branch.bound)
                else:
                    self._close(branch.bound)
        if self.finished and self.choice is None:
            return Found(None, None, True)
        proved = min([self.closed, *(branch.bound for branch in self.open)])
        return Found(self.choice, proved if self.cost is None else min(proved, self.cost), self.finished)

    def _is_late(self) -> bool:
        return self.deadline is not None and perf_counter() > self.deadline

    def _close(self, proved: int) -> None:
        self.closed = min(self.closed, proved)

    def _met(self, core: Model, way: Way, choice: Sequence[int]) -> None:
        """A choice of a core within the limits."""
        cost = core.cost_of(choice)
        if cost is not None and cost <= self.top:
            self.choice, self.cost, self.top = way.back(choice), cost, cost - self.gap - 1
            if self.meet is not None:
                self.meet(self.choice, cost)

    def _look(self, core: Model, way: Way, below: Bound, proved: int = -FORBIDDEN) -> None:
        """Prune and bound a part by turns while that helps; then it is given to CP-SAT or remembered."""
        self.parts += 1

        def meet(choice: Sequence[int], used: Array) -> int | None:
            if (used <= core.limits).all():
                self._met(core, way, choice)
            return None if self.cost is None else self.top + 1

        while True:
            before = core.strategies
            self._close(self.top + 1)
            try:
                core, kept = restricted(core, below, self.top)
                if self.deadline is not None and _pairs(core) > HOPELESS:
                    self.finished = False
                    return self._close(max(proved, below.value))
                core, trail = reduce(core, self.deadline)
                prices = trail.prices(below.prices)
            except Infeasible:
                return
            way = way.then(kept, trail)
            if not core.costs:
                return self._met(core, way, ())
            engine = engine_for(core, self.top, LARGEST_AMONG_FEW)
            is_last = core.strategies > SHRINKING * before
            if is_last and isinstance(engine, Passing) and not _is_cut(core):
                break
            below = bound(engine, prices, meet, self.deadline, target=self.top + 1)
            proved = max(proved, below.value)
            if below.value > self.top:
                return self._close(below.value)
            if is_last or self._is_late():
                break
        if not _is_cut(core):
            return self._solve(core, way, proved, prices)
        if self._is_late() or self._is_hopeless(core):
            self.finished = False
            return self._close(proved)
        heapq.heappush(self.open, _Branch(proved, next(self.order), core, way, below, _cut(engine, below)))

    def _is_hopeless(self, core: Model) -> bool:
        """Whether cutting would not come to an end in any time limit."""
        return self.deadline is not None and _pairs(core) > LARGEST

    def _solve(self, core: Model, way: Way, proved: int, prices: Array) -> None:
        """A small core, by CP-SAT."""
        from autoplan.planner.solver import cpsat  # here, since ortools loads pandas, and most problems are solved before

        watched = np.flatnonzero(prices > 0).tolist()
        try:
            found = cpsat.cheapest(core, self.top, watched, self.deadline, gap=self.gap, on_progress=self._progress())
        except cpsat.Interrupted as stop:
            if stop.found.choice is not None:
                self._met(core, way, stop.found.choice)
            raise
        self._close(self.top + 1 if found.bound is None else max(proved, found.bound))
        if found.choice is not None:
            self._met(core, way, found.choice)
        self.finished = self.finished and found.finished

    def _progress(self) -> Report | None:
        """What CP-SAT proves of a part holds for all of it but the parts that are open."""
        report = self.on_progress
        if report is None or not self.open:
            return report
        rest = min(self.closed, self.open[0].bound)
        return lambda cost, proved: report(cost, min(proved, rest))


def _pairs(core: Model) -> int:
    return sum(edge.cost.size for edge in core.edges.values())


def _is_cut(core: Model) -> bool:
    """Whether a core is cut; CP-SAT gets what is small."""
    return _pairs(core) > SMALL


def _halves(below: Bound, cut: Cut) -> Iterator[Bound]:
    """The bounds of a core cut in two: the strategies of the other half are out of the question."""
    node, first = cut
    for dropped in (~first, first):
        conditional = list(below.conditional)
        conditional[node] = np.where(dropped, FORBIDDEN, conditional[node])
        yield replace(below, conditional=tuple(conditional))


def _cut(engine: Passing | Elimination, below: Bound) -> Cut:
    """Between the strategies that take much memory, which are cheap under lower prices, and the others, cheap under higher ones.

    What must then be paid for the strategies of one half under the lower prices, and for those of the other under the higher,
    bounds the halves: where the lower of both is highest is cut; where none rises, where most strategies are much dearer.
    """
    lower, higher = (_conditionals(engine, factor * below.prices) for factor in (LOWER, HIGHER))
    best: tuple[int, float, int, Array] | None = None
    for u, (low, high) in enumerate(zip(lower, higher, strict=True)):
        order = np.argsort(low, kind="stable")
        if len(order) < 2:
            continue
        first, second = (np.maximum(costs, below.value) for costs in (np.minimum.accumulate(high[order])[:-1], low[order][1:]))
        sizes = np.arange(1, len(order))
        least = np.minimum(first, second)
        share = np.where(first < second, 1 - sizes / len(order), sizes / len(order))
        gain = share * (np.maximum(first, second) - below.value)
        k = int(np.lexsort((gain, least))[-1])
        if best is None or (least[k], gain[k]) > best[:2]:
            best = int(least[k]), float(gain[k]), u, np.isin(np.arange(len(order)), order[: k + 1])
    assert best is not None, "a core has a node of two strategies"
    return best[2], best[3]


def _conditionals(engine: Passing | Elimination, prices: Array) -> list[Array]:
    engine.set_prices(prices)
    engine.improve(MANY)
    return engine.conditionals()
