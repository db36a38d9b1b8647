"""How many copies of each block recompute, and with which strategies: branch and bound over the numbers.

With the numbers fixed the problem is linear, and solved. Where memory is ample that is one problem: the cheapest choice of all
fits with nothing recomputed. Else a range of numbers is bounded by its two ends: every amount changes evenly from one to
the other, so what is proved of both under the same prices of memory holds in between (`solver.either`). What is proved also
says which strategies a better plan may still use, so that ranges get smaller in two ways, until single numbers are solved.

There may be several families of such problems, of which one costs more and takes less memory: all are searched together.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import count
from math import ceil
from time import perf_counter
from typing import TypedDict, overload

import numpy as np

from autoplan.errors import OutOfTime
from autoplan.planner.build import Built
from autoplan.planner.family import Family, Outcome
from autoplan.planner.messages import Messages
from autoplan.planner.numbers import Box, Numbers
from autoplan.planner.pairwise import Place, Row
from autoplan.planner.prices import Array
from autoplan.planner.problem import NoneCheaper, Problem, Solution, cost_of, evaluate, is_feasible, restricted
from autoplan.planner.shares import SharedBound, Shares
from autoplan.planner.smallest import Smallest
from autoplan.planner.solve import smallest_memory, solve
from autoplan.planner.solver.bound import Bound
from autoplan.planner.solver.model import in_full
from autoplan.planner.solver.search import UNLIMITED

VENTURE, MARGIN = 0.02, 0.1  # of what is proved: how much more plans are looked for first, and how far bounds without limits reach
PATIENCE_S = 8.0  # what a single number may take at first, when others are open: a cheap plan of one of these bounds it too
FIRST_SHARE = 0.5  # of the time that is left: what single numbers may take while no plan is known
UNKNOWN = -(1 << 62)
Kept = tuple[Array, ...]
"""By node, the strategies that a better plan may use."""


@dataclass(frozen=True, slots=True, order=True)
class _Open:
    """A box of one family that is still to be looked at: nothing in it costs less than `bound`, and only what costs `at_most` matters here."""

    bound: int
    late: bool  # of the same bound; single numbers are, since ranges soon say how much a good plan costs
    number: int  # then in the order in which they came
    family: Family = field(compare=False)
    box: Box = field(compare=False)
    kept: Kept = field(compare=False)
    shares: Mapping[str, Shares] = field(compare=False)
    at_most: int = field(compare=False)
    patience_s: float = field(default=PATIENCE_S, compare=False)  # while others are open


@overload
def cheapest(
    starts: Sequence[Built],
    limit_bytes: int,
    time_limit_s: float,
    *,
    hint: Sequence[int] | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> Outcome | None: ...
@overload
def cheapest(
    starts: Sequence[Built],
    limit_bytes: int,
    time_limit_s: float,
    *,
    cutoff: int,
    hint: Sequence[int] | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> Outcome | NoneCheaper | None: ...
def cheapest(
    starts: Sequence[Built],
    limit_bytes: int,
    time_limit_s: float,
    *,
    cutoff: int | None = None,
    hint: Sequence[int] | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> Outcome | NoneCheaper | None:
    """The cheapest choice of strategies and of recomputed copies within the limit, or the best found in time; None where nothing fits.

    `starts` are the problems in which nothing is recomputed, of the same decisions: no choice costs less in one than in the one before
    it, which may take more memory. `hint` is a choice to begin with. With a `cutoff` only what is cheaper is looked for, and NoneCheaper is
    the answer where that is not found. Raises OutOfTime when without one the time limit passes before any choice is found.
    """
    return _Cheapest([Family(start, limit_bytes) for start in starts], time_limit_s, on_progress, cutoff).run(hint)


class _Experience(TypedDict):
    prices: Mapping[Row, float]
    messages: Messages | None
    places: Sequence[Place]


class _Cheapest:
    """The search for the cheapest."""

    def __init__(
        self,
        families: Sequence[Family],
        time_limit_s: float,
        on_progress: Callable[[int, int], None] | None,
        cutoff: int | None = None,
    ) -> None:
        self.families, self.time_limit_s, self.on_progress, self.cutoff = families, time_limit_s, on_progress, cutoff
        self.deadline = perf_counter() + time_limit_s
        self.tie = families[0].start.problem.tie
        self.order = count()
        self.cost = cutoff
        self.best: tuple[Family, Numbers, tuple[int, ...]] | None = None
        self.fallback: tuple[Family, Numbers, tuple[int, ...]] | None = None  # fits, whatever it costs
        self.open: list[_Open] = []
        self.shared: SharedBound | None = None  # of the problem without limits, which costs no more than any
        self.ample: Bound | None = None  # what is proved by that of the choices that are cheaper than the best
        self.ample_cost: int | None = None  # what the best cost then
        self.prices: Mapping[Row, float] = {}  # under which a box was bounded best, the last one
        self.messages: Messages | None = None  # that bound the problem without limits best
        self.given_up: int | None = None  # the least bound of what time did not allow to finish
        self.interrupted = False

    @property
    def left_s(self) -> float:
        """Seconds."""
        return self.deadline - perf_counter()

    def run(self, hint: Sequence[int] | None) -> Outcome | NoneCheaper | None:
        """Ample memory first, then box after box, the one with the least bound first."""
        first = self.families[0]
        root = first.root()
        if hint is not None:
            any(self._meet(family, numbers, hint) for family in self.families for numbers in (root.least, root.most))
        bound = self._ample(first, root)
        if bound is not None:
            everything = tuple(np.arange(len(node.costs)) for node in first.start.problem.nodes)
            for family in filter(self._can_fit, self.families):
                for box in family.copies.pieces(root):
                    self._push(family, box, bound, everything, self._shares(), UNLIMITED)
        while self.open and not self._is_enough(self.open[0].bound):
            if self.left_s <= 0:
                self._give_up(self.open[0].bound)
                break
            self._visit_until_interrupted(self._next())
        if self.best is None and self.given_up is not None and self.fallback is not None:
            self._meet(*self.fallback)
        if self.best is None and self.cutoff is not None:
            return NoneCheaper(self.cutoff if self.given_up is None else min(self.cutoff, self.given_up), self.interrupted)
        if self.best is None and self.given_up is not None:
            raise OutOfTime(f"no plan found in {self.time_limit_s:g} s", next_step="raise --time-limit")
        return self._outcome()

    def _visit_until_interrupted(self, open_: _Open) -> None:
        """As `_visit`; Ctrl-C ends the search like the deadline, unless no plan is known yet."""
        try:
            self._visit(open_)
        except KeyboardInterrupt:
            if self.best is None and self.cutoff is None:
                raise
            self.interrupted, self.deadline = True, perf_counter()
            self._give_up(open_.bound)

    def _ample(self, family: Family, root: Box) -> int | None:
        """The least that any choice costs, whatever it takes; None if the cheapest of these fits, so that nothing is left to do."""
        built = family.fixed(root.least)
        free = replace(built.problem, limits=(), peaks=())
        self.shared = SharedBound(free, perf_counter() + self.left_s * FIRST_SHARE, self.cutoff, margin=MARGIN)
        self.ample = self.shared.below
        self.messages = self.shared.messages
        if self.cutoff is not None and self._is_enough(self.ample.value):
            return None
        found: Solution | NoneCheaper | None
        try:
            if self.cutoff is None:
                found = solve(free, self.left_s * FIRST_SHARE, shared=self.shared)
            else:
                found = solve(free, self.left_s * FIRST_SHARE, cutoff=self.cutoff, shared=self.shared)
        except OutOfTime:
            return UNKNOWN
        if isinstance(found, NoneCheaper):
            self.interrupted = found.interrupted
            if not self._is_enough(found.bound):
                self._give_up(found.bound)
            return None
        if found is None:
            return None
        if not self._meet(family, root.least, found.choice):
            if found.interrupted:
                raise KeyboardInterrupt
            return found.bound
        self.interrupted = found.interrupted
        if found.status != "optimal":
            self._give_up(found.bound)
        return None

    def _can_fit(self, family: Family) -> bool:
        """Whether anything does, for all that is known: soon said, while how cheap a plan can be takes long to prove if there is none.

        Not asked where something that fits is known: what has a cutoff is soon bounded.
        """
        if self.cutoff is not None:
            return True
        try:
            least = Smallest(family, self.left_s * FIRST_SHARE).run(enough=family.limit)
        except OutOfTime:
            return True
        if least is None or least.solution.bound > family.limit:
            return False
        if least.solution.cost <= family.limit:
            self.fallback = family, least.numbers, least.solution.choice
        return True

    def _next(self) -> _Open:
        """The box with the least bound; while no plan is known, of single numbers those that fit most easily: the last family, the most copies."""
        if self.cost is not None or not self.open[0].late:
            return heapq.heappop(self.open)
        found = max(self.open, key=lambda open_: (open_.late, self.families.index(open_.family), sum(open_.box.most), -open_.number))
        self.open.remove(found)
        heapq.heapify(self.open)
        return found

    def _push(self, family: Family, box: Box, bound: int, kept: Kept, shares: Mapping[str, Shares], at_most: int) -> None:
        like_ample = self.messages is not None and not any(box.most)  # begins with messages that fit
        heapq.heappush(self.open, _Open(bound, box.is_one and not like_ample, next(self.order), family, box, kept, shares, at_most))

    def _is_enough(self, bound: int) -> bool:
        """Whether what has this bound has nothing that is cheaper than the best by more than preferences."""
        return self.cost is not None and bound > self.cost - self.tie

    def _give_up(self, bound: int) -> None:
        self.given_up = bound if self.given_up is None else min(self.given_up, bound)

    def _shares(self) -> Mapping[str, Shares]:
        """Those that bound the problem without limits best, as far as it was bounded."""
        return {} if self.shared is None else self.shared.shares

    def _visit(self, open_: _Open) -> None:
        """A box bounded and cut, or a single problem solved."""
        open_ = self._ventured(self._limited(open_))
        if not all(map(len, open_.kept)):
            return None
        if open_.box.is_one:
            return self._solve(open_)
        family, box, kept = open_.family, open_.box, open_.kept
        k = box.longest
        ends = [restricted(family.end(box.part(k, n, n)), kept) for n in (box.least[k], box.most[k])]
        slack = family.start.terms.rounding

        def meet(choice: Sequence[int]) -> int | None:
            self._meet_between(family, box, ends, choice, kept)
            return self._cutoff(open_, slack)

        shared = SharedBound(ends, self.deadline, self._cutoff(open_, slack), meet, open_.shares, **self._experience(kept))
        cutoff = self._cutoff(open_, slack)
        below = (shared.exactly(cutoff) if shared.is_wide and cutoff is not None else None) or shared.below
        self.prices = shared.prices
        bound = max(open_.bound, below.value - slack)
        top = min(open_.at_most, UNLIMITED if self.cost is None else self.cost)
        left = tuple(kept[u][costs - slack <= top] for u, costs in enumerate(below.conditional))
        if bound <= top and not self._is_enough(bound) and all(map(len, left)):
            known = self.best[1][k] if self.best is not None and self.best[0] is family else -1
            for part in box.around(known):  # mostly the best number is known by then, and its neighbours' bounds say that it is
                self._push(family, part, bound, left, shared.shares, open_.at_most)
        return None

    def _limited(self, open_: _Open) -> _Open:
        """With only the strategies that a plan cheaper than the best may use, by what is proved without limits."""
        if self.shared is None or self.ample is None or self.cost is None:
            return open_
        if self.ample_cost is None or self.cost < self.ample_cost:
            self.ample, self.ample_cost = self.shared.exactly(self.cost) or self.ample, self.cost
        return replace(open_, kept=self._cheap(open_.kept, self.cost))

    def _ventured(self, open_: _Open) -> _Open:
        """While no plan is known, of a wide problem only choices little above what is proved; the others are put off."""
        if self.cost is not None or self.messages is None or self.ample is None:
            return open_
        least = self.ample.value
        at_most = int(2 * max(open_.bound, least) - (1 - VENTURE) * least)  # twice as far as before, and a little
        if at_most >= min(open_.at_most, (1 + MARGIN) * least):
            return open_
        self._push(open_.family, open_.box, at_most + 1, open_.kept, open_.shares, open_.at_most)
        return replace(open_, kept=self._cheap(open_.kept, at_most), at_most=at_most)

    def _cheap(self, kept: Kept, at_most: int) -> Kept:
        """Which of these strategies a choice that costs at most so much may use."""
        assert self.ample is not None
        return tuple(strategies[self.ample.conditional[u][strategies] <= at_most] for u, strategies in enumerate(kept))

    def _experience(self, kept: Kept) -> _Experience:
        """What other boxes' bounds ended up with, for that of one with only these strategies."""
        nodes = self.families[0].start.problem.nodes
        places = [Place(u, len(node.costs), strategies) for u, (node, strategies) in enumerate(zip(nodes, kept, strict=True))]
        return {"prices": self.prices, "messages": self.messages, "places": places}

    def _cutoff(self, open_: _Open, slack: int = 0) -> int | None:
        """What a choice must cost less than to be of interest, with so much more where costs are rounded down; None while there is none."""
        known = [cost for cost in (self.cost, open_.at_most + 1 if open_.at_most < UNLIMITED else None) if cost is not None]
        return min(known) + slack if known else None

    def _solve(self, open_: _Open) -> None:
        """The numbers of a box fixed, the cheapest choice."""
        family = open_.family
        problem = restricted(family.fixed(open_.box.least).problem, open_.kept)
        share = FIRST_SHARE if self.best is None and self.open else 1.0
        end = perf_counter() + self.left_s * share
        may_wait = bool(self.open) and self.cost is not None and open_.patience_s < self.left_s
        if may_wait:
            end = perf_counter() + open_.patience_s
        rest = [other.bound for other in self.open[:1]]

        def report(cost: int, proved: int) -> None:
            if self.on_progress is not None:
                known = [max(proved, open_.bound), *rest, *([] if self.given_up is None else [self.given_up])]
                self.on_progress(cost if self.cost is None else min(cost, self.cost), min(known))

        found: Solution | NoneCheaper | None
        try:
            cutoff = self._cutoff(open_)
            if cutoff is None:
                hint = _fitting(problem, self.left_s * share)
                if hint is None:
                    return None
                shared = SharedBound(problem, end, shares=open_.shares)
                found = solve(problem, end - perf_counter(), hint=hint, shared=shared, proved=open_.bound, on_progress=report)
            else:
                shared = SharedBound(problem, end, cutoff, shares=open_.shares, **self._experience(open_.kept))
                self.prices = shared.prices
                found = solve(problem, end - perf_counter(), cutoff=cutoff, shared=shared, proved=open_.bound, on_progress=report)
        except OutOfTime:
            return self._give_up(open_.bound)
        if found is None:
            return None
        if isinstance(found, Solution):
            self._meet(family, open_.box.least, in_full(found.choice, open_.kept))
        if found.interrupted:
            self.interrupted, self.deadline = True, perf_counter()
        bound = max(open_.bound, found.bound)
        if self._is_enough(bound) or bound > open_.at_most:
            return None
        if may_wait and not self.interrupted:
            heapq.heappush(self.open, replace(open_, bound=bound, number=next(self.order), patience_s=4 * open_.patience_s))
            return None
        return self._give_up(bound)

    def _meet(self, family: Family, numbers: Numbers, choice: Sequence[int]) -> bool:
        """Whether a choice fits with just so many copies; remembered if it is the best."""
        problem = family.fixed(numbers).problem
        if not is_feasible(problem, choice):
            return False
        cost = cost_of(problem, choice)
        if self.cost is None or cost < self.cost:
            self.cost, self.best = cost, (family, numbers, tuple(choice))
        return True

    def _meet_between(self, family: Family, box: Box, ends: Sequence[Problem], choice: Sequence[int], kept: Kept) -> None:
        """Try a choice with the fewest copies with which it fits, by what it takes at both ends."""
        low, high = (evaluate(end, choice) for end in ends)
        if low.cost is None or high.cost is None or any(b > limit for b, limit in zip(high.memory, ends[1].limits, strict=True)):
            return
        over = [(a - limit) / (a - b) for a, b, limit in zip(low.memory, high.memory, ends[0].limits, strict=True) if a > limit]
        share = max(over, default=0.0)
        if self.cost is not None and low.cost + share * (high.cost - low.cost) >= self.cost:
            return
        k = box.longest
        first = box.least[k] + ceil(share * (box.most[k] - box.least[k]))
        for number in range(first, min(first + 2, box.most[k] + 1)):  # one more, since the ends are rounded down
            if self._meet(family, box.part(k, number, number).most, in_full(choice, kept)):
                return

    def _outcome(self) -> Outcome | None:
        if self.best is None or self.cost is None:
            return None
        family, numbers, choice = self.best
        bound = self.cost if self.given_up is None else min(self.cost, self.given_up)
        status = "optimal" if self.cost - bound < self.tie else "feasible"
        solution = Solution(choice, self.cost, bound, status, self.interrupted)
        return Outcome(numbers, family.fixed(numbers), solution, self._shares())


def _fitting(problem: Problem, time_limit_s: float) -> tuple[int, ...] | None:
    """Any choice within the limits, None where there is none: soon known, while how cheap a choice can be takes long to prove."""
    limit = max(problem.limits)
    least = smallest_memory(problem, time_limit_s, enough=limit)
    return None if least is None or least.bound > limit else least.choice
