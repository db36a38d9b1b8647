"""How many copies of each block recompute, and with which strategies: branch and bound over the numbers.

With the numbers fixed the problem is linear. A box of numbers is bounded by one problem, in which every term costs and takes
what is least in the box. If its optimum fits with the fewest recomputed copies of the box, it is the box's optimum; else the
box is split where the optimum begins to fit. Where memory is ample, that is one problem and no split.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import count
from time import perf_counter

from autoplan.errors import OutOfTime
from autoplan.graph.segments import Segment
from autoplan.planner.build import Built, build_problem
from autoplan.planner.problem import NoneCheaper, Solution, evaluate, is_feasible
from autoplan.planner.solve import smallest_memory, solve

Numbers = tuple[int, ...]
"""How many of the first copies of each prefix recompute."""

FIRST_SHARE = 0.5  # of the time that is left: what a box of several numbers may take while no plan is known
UNKNOWN = -(1 << 62)


@dataclass(frozen=True, slots=True)
class Outcome:
    """The best plan: a problem with its numbers of recomputed copies fixed, and the solution of it.

    The solution's bound holds for all numbers.
    """

    built: Built
    solution: Solution


@dataclass(frozen=True, slots=True)
class _Box:
    """All numbers from `least` to `most`."""

    least: Numbers
    most: Numbers

    @property
    def is_one(self) -> bool:
        return self.least == self.most

    def split(self, at: Numbers) -> list[_Box]:
        """The box cut in its longest direction into what is below `at`, at it and above it.

        No copy at all is apart first: what is there while a copy recomputes bounds all other numbers.
        """
        k = max(range(len(self.least)), key=lambda i: self.most[i] - self.least[i])
        low, middle, high = self.least[k], at[k], self.most[k]
        parts = ((0, 0), (1, high)) if low == 0 else ((low, middle - 1), (middle, middle), (middle + 1, high))
        return [_Box(_with(self.least, k, low), _with(self.most, k, high)) for low, high in parts if low <= high]

    def at(self, share: float) -> Numbers:
        """The numbers at a share of the way from least to most."""
        return tuple(low + round(share * (high - low)) for low, high in zip(self.least, self.most, strict=True))


def _with(numbers: Numbers, position: int, number: int) -> Numbers:
    return (*numbers[:position], number, *numbers[position + 1 :])


def cheapest(
    start: Built,
    limit_bytes: int,
    time_limit_s: float,
    *,
    hint: Sequence[int] | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> Outcome | None:
    """The cheapest choice of strategies and of recomputed copies within the limit, or the best found in time; None where nothing fits.

    `start` is the problem in which nothing is recomputed. `hint` is a choice to begin with. Raises OutOfTime when the time limit passes before any choice is found.
    """
    return _Search(start, limit_bytes, perf_counter() + time_limit_s, time_limit_s, on_progress).run(hint)


@dataclass
class _Search:
    start: Built
    limit_bytes: int
    deadline: float
    time_limit_s: float
    on_progress: Callable[[int, int], None] | None
    cost: int | None = None
    best: tuple[Numbers, Sequence[int]] | None = None
    fixed: dict[Numbers, Built] = field(default_factory=dict)
    given_up: int | None = None  # the least bound of the boxes that time did not allow to finish

    def run(self, hint: Sequence[int] | None) -> Outcome | None:
        root = self._root()
        if hint is not None:
            self._meet(root, hint)
        order = count()
        boxes = [(UNKNOWN, next(order), root)]
        while boxes and not self._is_enough(boxes[0][0]):
            bound, _, box = heapq.heappop(boxes)
            for part, part_bound in self._visit(box, bound, boxes):
                heapq.heappush(boxes, (part_bound, next(order), part))
        if self.best is None and self.given_up is not None:
            raise OutOfTime(f"no plan found in {self.time_limit_s:g} s", next_step="raise --time-limit")
        return self._outcome()

    def _root(self) -> _Box:
        """All numbers that pins allow."""
        pinned = self.start.candidates.recompute
        copies = {prefix: len(segments) for prefix, segments in self._copies.items()}
        return _Box(tuple(pinned.get(p, 0) for p in copies), tuple(pinned.get(p, n) for p, n in copies.items()))

    @cached_property
    def _copies(self) -> dict[str, list[Segment]]:
        found: dict[str, list[Segment]] = {}
        for segment in self.start.terms.prices.segments:
            found.setdefault(segment.prefix, []).append(segment)
        return found

    def _segments(self, numbers: Numbers) -> tuple[Segment, ...]:
        chosen = {s.name for segments, n in zip(self._copies.values(), numbers, strict=True) for s in segments[:n]}
        return tuple(segment for segment in self.start.terms.prices.segments if segment.name in chosen)

    def _fixed(self, numbers: Numbers) -> Built:
        """The problem in which just so many copies recompute."""
        if not any(numbers):
            return self.start
        if numbers not in self.fixed:
            self.fixed[numbers] = build_problem(self.start.terms, self.limit_bytes, self._segments(numbers))
        return self.fixed[numbers]

    def _built(self, box: _Box) -> Built:
        if box.is_one:
            return self._fixed(box.least)
        return build_problem(self.start.terms, self.limit_bytes, self._segments(box.least), self._segments(box.most))

    def _is_enough(self, bound: int) -> bool:
        """Whether boxes of this bound have nothing that is cheaper than the best by more than preferences."""
        return self.cost is not None and bound > self.cost - self.start.problem.tie

    def _visit(self, box: _Box, bound: int, others: Sequence[tuple[int, int, _Box]]) -> list[tuple[_Box, int]]:
        """The parts of a box that are still to be looked at, with their bounds."""
        left = self.deadline - perf_counter()
        problem = self._built(box).problem
        if left <= 0:
            return self._give_up(bound)
        share = FIRST_SHARE if self.best is None and not box.is_one else 1.0
        rest = min((other for other, _, _ in others), default=None)

        def report(cost: int, proved: int) -> None:
            if self.on_progress is not None and self.cost is not None:
                known = [b for b in (max(proved, bound), rest, self.given_up) if b is not None]
                self.on_progress(min(cost, self.cost) if box.is_one else self.cost, min(known))

        known = self.best[1] if self.best is not None else None
        found: Solution | NoneCheaper | None
        try:
            if self.cost is None:
                found = solve(problem, left * share, on_progress=report)
            else:
                found = solve(problem, left * share, cutoff=self.cost, hint=known, on_progress=report)
        except OutOfTime:
            return self._halves(box, bound) if self.best is None and not box.is_one else self._give_up(bound)
        if found is None:
            return []
        bound = max(bound, found.bound)
        if share == 1.0 and isinstance(found, Solution) and found.status != "optimal":
            self.deadline = perf_counter()  # cut short, be it by the user
        if isinstance(found, NoneCheaper):
            return [] if self._is_enough(bound) else self._give_up(bound)
        at = self._meet(box, found.choice)
        if box.is_one or at == box.least:
            return [] if self._is_enough(bound) else self._give_up(bound)
        return [(part, bound) for part in box.split(at if at is not None else box.at(0.5))]

    def _halves(self, box: _Box, bound: int) -> list[tuple[_Box, int]]:
        """Where no choice was found in a box: the most that recomputes first, since that fits most easily."""
        return [(part, bound) for part in reversed(box.split(box.most))]

    def _give_up(self, bound: int) -> list[tuple[_Box, int]]:
        self.given_up = bound if self.given_up is None else min(self.given_up, bound)
        return []

    def _meet(self, box: _Box, choice: Sequence[int]) -> Numbers | None:
        """The fewest copies of the box with which a choice fits, remembered if it is the best; None where it does not fit."""
        steps = max((high - low for low, high in zip(box.least, box.most, strict=True)), default=0)
        low, high = 0, steps + 1  # fits from `high` on, as far as is known
        while low < high:
            middle = (low + high) // 2
            if middle <= steps and not is_feasible(self._fixed(box.at(middle / max(1, steps))).problem, choice):
                low = middle + 1
            else:
                high = middle
        if low > steps:
            return None
        numbers = box.at(low / max(1, steps))
        cost = evaluate(self._fixed(numbers).problem, choice).cost
        assert cost is not None
        if self.cost is None or cost < self.cost:
            self.cost, self.best = cost, (numbers, choice)
        return numbers

    def _outcome(self) -> Outcome | None:
        if self.best is None or self.cost is None:
            return None
        numbers, choice = self.best
        bound = self.cost if self.given_up is None else min(self.cost, self.given_up)
        status = "optimal" if self.cost - bound < self.start.problem.tie else "feasible"
        return Outcome(self._fixed(numbers), Solution(tuple(choice), self.cost, bound, status))


def smallest(start: Built, limit_bytes: int, time_limit_s: float) -> Outcome | None:
    """The choice, and the copies that recompute, whose peak of memory is least; None where nothing is possible.

    The solution's `cost` and `bound` are in memory units.
    """
    return _Smallest(start, limit_bytes, perf_counter() + time_limit_s, time_limit_s, None).run_smallest()


class _Smallest(_Search):
    """The same search for the least peak of memory, all boxes halved."""

    def run_smallest(self) -> Outcome | None:
        root, order = self._root(), count()
        found = [self._solved(_Box(numbers, numbers), 1 / 3) for numbers in dict.fromkeys((root.least, root.most))]
        best = min((outcome for outcome in found if outcome is not None), key=lambda outcome: outcome.solution.cost, default=None)
        if best is None:
            return None
        boxes, proved = [(0, next(order), root)], best.solution.bound
        while boxes and boxes[0][0] < best.solution.cost:
            bound, _, box = heapq.heappop(boxes)
            if perf_counter() > self.deadline:
                proved = min(proved, bound)
                break
            outcome = self._solved(box, 0.5)
            if outcome is None:
                continue
            bound = max(bound, outcome.solution.bound)
            if not box.is_one:
                for part in box.split(box.at(0.5)):
                    heapq.heappush(boxes, (bound, next(order), part))
            elif outcome.solution.cost < best.solution.cost:
                best = outcome
            else:
                proved = min(proved, max(bound, 0)) if bound < best.solution.cost else proved
        bound = min(best.solution.bound, proved)
        return Outcome(best.built, replace(best.solution, bound=bound, status="optimal" if best.solution.cost <= bound else "feasible"))

    def _solved(self, box: _Box, share: float) -> Outcome | None:
        built = self._built(box)
        try:
            solution = smallest_memory(built.problem, max(1.0, share * (self.deadline - perf_counter())))
        except OutOfTime:
            return None
        return None if solution is None else Outcome(built, solution)
