"""The search: reduce, bound, drop what cannot be in a good choice, and search through what is left.

Guess a threshold a little above the bound. A choice at or under it uses only strategies whose own bound is at or under it,
so all others go, and `branching` looks at the rest. The best choice it finds is the optimum; if there is none, the optimum is
above the threshold, and the next guess is higher.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import inf
from time import perf_counter

import numpy as np

from autoplan.planner.solver.bound import Bound, bound
from autoplan.planner.solver.branching import Branching
from autoplan.planner.solver.core import Way, close_to, engine_for, glance, restricted
from autoplan.planner.solver.gather import Gathering, is_far
from autoplan.planner.solver.improve import Improver, Met
from autoplan.planner.solver.model import FORBIDDEN, Array, Found, Model
from autoplan.planner.solver.neighbourhood import Neighbourhoods
from autoplan.planner.solver.passing import FEW, Passing
from autoplan.planner.solver.reduce import Infeasible, reduce
from autoplan.planner.solver.trail import Trail

BANDS = (
    1e-6,
    1e-5,
    3e-5,
    1e-4,
    2e-4,
    5e-4,
    1e-3,
    2e-3,
    *[3e-3] * 5,
    *[5e-3] * 4,
    1e-2,
    3e-2,
    0.1,
    0.3,
    1.0,
    10.0,
)  # how far above what is proved the next threshold is guessed
UNLIMITED = 1 << 55
REDUCING, FIRST_CHOICE, BOUNDING, LOOKING, BRANCHING = 0.6, 0.1, 0.22, 0.4, 0.3  # parts of the time left, at most
WALKING, GATHERING = (0.3, 0.2), 0.8  # the same, of each walk, and of bringing the ends of more together
NEARBY, WALKING_NEARBY = (1e-3, 5e-3), 0.1  # of what is proved, and the same of a walk among choices at most so far above it
EASY = 15_000  # pairs of strategies
NEAR = 0.01  # of what is proved
PATIENCE = (60, 300)  # steps of each walk that lead to nothing better
GATHERED = 12  # the same, walks
NEIGHBOURHOODS = 3, 60  # the same, neighbourhoods: at first, and at most
PARTS = 4  # of a model that are looked at, bounded and cut, in the time that a neighbourhood takes

Outer = Callable[[int], Bound | None]


@dataclass(frozen=True, slots=True)
class Result:
    """The best choice, None if none was met; none costs less than `bound`. `finished`: not cut short; `interrupted`: so by Ctrl-C."""

    choice: tuple[int, ...] | None
    cost: int | None
    bound: int
    finished: bool
    interrupted: bool = False


class _Best:
    """The best choice met so far, in the numbers of the model it was asked for."""

    def __init__(self, cutoff: int | None = None) -> None:
        self.choice: tuple[int, ...] | None = None
        self.cost: int | None = None
        self.cutoff = cutoff

    @property
    def below(self) -> int | None:
        """What a choice must cost less than to be of interest."""
        return self.cutoff if self.cost is None else self.cost

    def meet(self, choice: Sequence[int] | None, cost: int | None) -> None:
        """Remember a choice if it is the best."""
        if choice is not None and cost is not None and (self.below is None or cost < self.below):
            self.choice, self.cost = tuple(choice), cost


def minimise_cost(
    model: Model,
    deadline: float | None,
    *,
    known: Sequence[int] | None = None,
    outer: Outer | None = None,
    proved: int | None = None,
    cutoff: int | None = None,
    gap: int = 0,
    on_progress: Callable[[int, int], None] | None = None,
) -> Result | None:
    """The cheapest choice within the limits, to within `gap`; None where nothing fits. `known` is a choice to begin with.

    `outer(threshold)` bounds the model's strategies in choices of at most the threshold, if they are bounded already: closer than
    in all, at UNLIMITED, or None; no choice costs less than `proved`. Only choices
    cheaper than `cutoff` are looked for: a result without a choice whose bound reaches it says that there is none. Ctrl-C ends
    the search like the deadline, unless no choice is known yet.
    """
    search = _Search(model, deadline, cutoff, gap, on_progress)
    search.proved = max(search.proved, search.proved if proved is None else proved)
    if known is not None and model.fits(known):
        search.best.meet(known, model.cost_of(known))
    try:
        return search.run(outer)
    except Infeasible:
        return None
    except KeyboardInterrupt:
        if search.best.choice is None:
            raise
        return replace(search.result(finished=False), interrupted=True)


class _Search:
    """The best choice of a model and what is proved about all, while both come closer."""

    def __init__(
        self, model: Model, deadline: float | None, cutoff: int | None, gap: int, on_progress: Callable[[int, int], None] | None
    ) -> None:
        self.model, self.deadline, self.cutoff, self.gap, self.on_progress = model, deadline, cutoff, gap, on_progress
        self.best = _Best(cutoff)
        self.proved = model.constant + sum(int(costs.min()) for costs in model.costs) + sum(int(e.cost.min()) for e in model.edges.values())
        self.reduced, self.trail = model, Trail(nodes=tuple(range(len(model.costs))))
        self.met: tuple[int, ...] | None = None  # the best choice of the reduced model
        self.walk: Improver | None = None  # from what is close to the bound
        self.cheap: Sequence[int] | None = None  # what is cheap without prices of memory
        self.gathering: Gathering | None = None
        self.patience = 0  # none while a choice that came with the problem is the best
        self.looks = 0  # times that neighbourhoods were looked at: each time others

    def run(self, outer: Outer | None) -> Result:
        """Bounds, choices, and bands between both; raises Infeasible."""
        if outer is None:
            self.reduced, self.trail = reduce(self.model, self._share(REDUCING))
        below = (outer and outer(UNLIMITED)) or self._bound()
        self.proved = max(self.proved, below.value)
        improved = outer is not None and self.best.cost is not None
        for slack, following in zip((*BANDS, None), (*BANDS[1:], None, None), strict=True):
            if outer is None and slack is not None and self._is_easy(below, self._threshold(following)):
                continue
            if not self._is_easy(below, self._threshold(slack)):
                if not improved:
                    self._improve(below)
                    improved, self.patience = True, NEIGHBOURHOODS[0]
                self._look_around(self.patience, self._share(LOOKING))
            if self.best.below is not None and self.best.below - self.proved <= (0 if self.best.cost is None else self.gap):
                break
            threshold, closer = self._guess(slack, below, outer)
            known = self.best.choice if outer else self.met
            assert self._allows(closer, threshold, known), "a bound is above what a known choice costs"
            end = self.deadline if outer or self._is_near() or self._is_easy(closer, threshold) else self._share(BRANCHING)
            branching = Branching(threshold, end, gap=self.gap, meet=self._take, on_progress=self.on_progress)
            found = branching.cheapest(self.reduced, closer)
            if self.patience:  # in no more time than the search took
                self.patience = min(max(1, branching.parts // PARTS), NEIGHBOURHOODS[1])
            if not found.finished:
                self.proved = max(self.proved, min(found.bound or self.proved, threshold))
                if self.deadline is not None:
                    self._polish(self.deadline)
                return self.result(finished=False)
            if found.choice is not None:
                assert found.bound is not None
                return Result(self.best.choice, self.best.cost, found.bound, True)
            if threshold == UNLIMITED and self.best.cost is None:
                raise Infeasible
            self.proved = threshold if threshold == self.best.cost else threshold + 1
        return self.result(finished=True)

    def _guess(self, slack: float | None, below: Bound, outer: Outer | None) -> tuple[int, Bound]:
        """A threshold, and bounds on choices of at most that: what the best choice costs if it is near, and there are such bounds."""
        for guess in (None, slack) if outer and self._is_near() else (slack,):
            threshold = self._threshold(guess)
            closer = outer(threshold) if outer else None
            if closer is not None:
                return threshold, closer
        return threshold, below

    def _threshold(self, slack: float | None) -> int:
        """So far above what is proved, but no higher than what the best choice costs, or what is looked for."""
        threshold = UNLIMITED if slack is None else min(UNLIMITED, self.proved + max(1, int(slack * abs(self.proved))))
        if self.best.cost is not None:
            threshold = min(threshold, self.best.cost)
        return threshold if self.cutoff is None else min(threshold, self.cutoff - 1)

    def _is_easy(self, below: Bound, threshold: int) -> bool:
        """Whether so few pairs of strategies are left at or under a threshold that the search through them comes to an end soon."""
        left = [int(np.count_nonzero(conditional <= threshold)) for conditional in below.conditional]
        return sum(left[u] * left[w] for u, w in self.reduced.edges) <= EASY

    def _is_near(self) -> bool:
        """Whether the best choice is so close to what is proved that there is no need to guess lower thresholds first."""
        return self.best.below is not None and self.best.below - self.proved <= NEAR * abs(self.proved)

    def result(self, *, finished: bool) -> Result:
        """What is known now."""
        best = self.best
        return Result(best.choice, best.cost, self.proved if best.cost is None else min(self.proved, best.cost), finished)

    def _allows(self, below: Bound, threshold: int, known: Sequence[int] | None) -> bool:
        """Whether bounds on choices of at most `threshold` admit the best one, `known` in the numbers of what is bounded, if it is one."""
        cost = self.best.cost
        if known is None or cost is None or cost > threshold:
            return True
        return all(costs[s] <= cost for costs, s in zip(below.conditional, known, strict=True))

    def _share(self, part: float) -> float | None:
        """The end of a part of the time that is left."""
        now = perf_counter()
        return None if self.deadline is None else now + part * max(0.0, self.deadline - now)

    def _meet(self, choice: Sequence[int], used: Array) -> int | None:
        if (used <= self.reduced.limits).all():
            cost = self.reduced.cost_of(choice)
            if cost is not None and (self.best.below is None or cost < self.best.below):
                self.met = tuple(choice)
                self.best.meet(self.trail.expand(choice), cost)
                if self.on_progress is not None:
                    self.on_progress(cost, self.proved)
        return self.best.below

    def _take(self, choice: Sequence[int], cost: int) -> None:
        """A choice of the reduced model within the limits."""
        if self.best.below is None or cost < self.best.below:
            self.met = tuple(choice)
            self.best.meet(self.trail.expand(choice), cost)

    def _bound(self) -> Bound:
        """The bounds by messages and prices; then a first choice within the limits, in case that there is no time for more."""
        passing, prices = Passing(self.reduced, glance(self.reduced)), np.zeros(len(self.reduced.limits))
        met: list[Sequence[int]] = []

        def meet(choice: Sequence[int], used: Array) -> int | None:
            met.append(choice)
            return self._meet(choice, used)

        below = bound(passing, prices, meet, self._share(BOUNDING))
        self.walk, self.cheap = self._walk(below, passing.decode(), below.prices), met[0]
        if self.best.cost is None or self.best.cost > below.value:
            self.walk.run(PATIENCE[0], self._share(FIRST_CHOICE))
        return below

    def _walk(self, below: Bound, choice: Sequence[int], prices: Array) -> Improver:
        return Improver(self.reduced, max(1, abs(below.value)), choice, prices, self._meet)

    def _improve(self, below: Bound) -> None:
        """Better choices while they are found: walks from what is close to the bound, and from what is cheap, then neighbourhoods."""
        if self.walk is None:
            least = [int(conditional.argmin()) for conditional in below.conditional]
            self.walk = self._walk(below, least, below.prices)
        for slack in NEARBY:
            if self._is_far():
                self._walk_nearby(below, self._threshold(slack))
        self.walk.run(PATIENCE[0], self._share(WALKING[0]))
        if self.cheap is not None and self._is_far():
            self._walk(below, self.cheap, np.zeros(len(self.reduced.limits))).run(PATIENCE[1], self._share(WALKING[1]))
        self.gathering = Gathering(self.reduced, below, self.walk, self._take)
        self._gather(GATHERED)

    def _walk_nearby(self, below: Bound, threshold: int) -> None:
        """A walk among the strategies that choices at or under a threshold may use: what is far from the best is left out of it."""
        try:
            core, way, prices = close_to(self.reduced, below, threshold, self._share(WALKING_NEARBY))
        except Infeasible:
            return  # there are none
        met = Met(core, None if core.costs else (core.constant, ()))
        if core.costs:
            least = [int(costs.argmin()) for costs in core.costs]
            Improver(core, abs(below.value), least, prices, met.meet).run(PATIENCE[0], self._share(WALKING_NEARBY))
        if met.best is not None:
            self._take(way.back(met.best[1]), met.best[0])

    def _is_far(self) -> bool:
        """Whether the best choice is far above what is proved, or there is none."""
        return self.best.below is None or is_far(self.best.below, self.proved)

    def _polish(self, deadline: float) -> None:
        """Better choices until the time is over."""
        self._gather(inf)
        self._look_around(inf, deadline)

    def _gather(self, patience: float) -> None:
        """Ends of more walks, brought together until so many walks in a row have led to nothing better, if the best is not near yet."""
        if self.gathering is not None and self.met is not None and self.best.cost is not None and not self._is_near():
            self.gathering.add(self.best.cost, self.met)
            self.gathering.run(patience, self._share(GATHERING), self.proved)

    def _look_around(self, patience: float, end: float | None) -> None:
        """Neighbourhoods of the best choice until so many in a row have led to nothing better."""
        if self.met is None or self.best.cost is None or self.best.cost - self.proved <= self.gap or not self.reduced.costs:
            return
        around, idle = Neighbourhoods(self.reduced, self.met, seed=self.looks), 0
        self.looks += 1
        while idle < patience and (end is None or perf_counter() < end):
            idle = 0 if around.step(end) else idle + 1
            if not idle:
                self._meet(around.choice, around.used)


def minimise_peak(model: Model, deadline: float | None, enough: int | None = None) -> Result | None:
    """The choice whose greatest row is least, whatever it costs; None where every choice is forbidden. Its cost is that row.

    The search ends as soon as that row is known to be at most `enough`, or above.
    """
    top = int(model.most_used().max(initial=0))
    free = replace(
        model,
        costs=[np.where(costs >= FORBIDDEN, FORBIDDEN, 0) for costs in model.costs],
        edges={pair: replace(edge, cost=np.where(edge.cost >= FORBIDDEN, FORBIDDEN, 0)) for pair, edge in model.edges.items()},
        limits=np.full(len(model.limits), top),
        constant=0,
    )
    try:
        reduced, trail = reduce(free, deadline, limited=False)
    except Infeasible:
        return None
    best = _Best()

    def meet(choice: Sequence[int], used: Array) -> int | None:
        if reduced.cost_of(choice) is not None:
            best.meet(trail.expand(choice), int((used - reduced.limits).max()))
        return best.cost

    rows = len(reduced.limits)
    prices = np.full(rows, 1 / rows)
    engine = engine_for(reduced, top)
    if enough is not None:  # a first choice may do
        engine.set_prices(prices, whole=True)
        engine.improve(FEW, deadline)
        choice = engine.decode()
        meet(choice, reduced.used_by(choice))
        if best.cost is not None and best.cost + top <= enough:
            return Result(best.choice, best.cost + top, min(best.cost + top, engine.bound + top), True)
    below = bound(engine, prices, meet, deadline, simplex=True)
    proved, finished = below.value, True
    slacks = iter(BANDS)

    def is_settled() -> bool:
        at_most = inf if best.cost is None else best.cost
        return proved >= at_most or (enough is not None and not proved + top <= enough < at_most + top)

    while finished and not is_settled():
        threshold = min(proved + int(next(slacks, 1.0) * (top + proved)), best.cost - 1 if best.cost is not None else 0)
        found = _smallest_within(reduced, below, threshold, deadline)
        finished = found.finished
        if found.choice is not None:
            best.meet(trail.expand(found.choice), int((reduced.used_by(found.choice) - reduced.limits).max()))
        if found.bound is not None:
            proved = max(proved, min(found.bound, threshold + 1))
        elif finished and threshold == 0:
            return None
    cost = None if best.cost is None else best.cost + top
    return Result(best.choice, cost, min(proved + top, cost) if cost is not None else proved + top, finished)


def _smallest_within(model: Model, below: Bound, threshold: int, deadline: float | None) -> Found:
    """A choice whose excess over every limit is at most `threshold` (less than nought: below the limits), the least there is."""
    try:
        core, kept = restricted(model, below, threshold)
        core, trail = reduce(replace(core, limits=core.limits + threshold))
        way = Way().then(kept, trail)
        if not core.costs:
            return Found(way.back(()), threshold, True)
        rows = len(core.limits)
        closer = bound(
            engine_for(core, int(abs(model.limits).max())), np.full(rows, 1 / rows), lambda choice, used: None, deadline, simplex=True
        )
        core, kept = restricted(core, closer, 0)
        core, trail = reduce(core)
        prices = trail.prices(closer.prices)
        way = way.then(kept, trail)
    except Infeasible:
        return Found(None, threshold + 1, True)
    if not core.costs:
        return Found(way.back(()), threshold, True)
    from autoplan.planner.solver import cpsat

    found = cpsat.least_excess(core, np.flatnonzero(prices > 0).tolist(), deadline)
    bound_ = threshold + 1 if found.choice is None and found.finished else None if found.bound is None else found.bound + threshold
    return Found(None if found.choice is None else way.back(found.choice), bound_, found.finished)
