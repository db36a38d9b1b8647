"""The problems of one start that differ only in how many copies of each block recompute, and what solving them gives."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from autoplan.planner.build import Built, build_problem
from autoplan.planner.numbers import Box, Copies, Numbers
from autoplan.planner.problem import Problem, Solution
from autoplan.planner.shares import Shares
from autoplan.planner.terms import Terms


@dataclass(frozen=True, slots=True)
class Outcome:
    """The best plan: the numbers of copies that recompute, the problem in which just these do, and the solution of it.

    The solution's bound holds for all numbers. `shares` bound the problem without limits best; `terms`, `waiting` and `host` are those
    and the weights under which it was proved (`overlap`).
    """

    numbers: Numbers
    built: Built
    solution: Solution
    shares: Mapping[str, Shares] = field(default_factory=dict)
    terms: Terms | None = None
    waiting: Mapping[str, float] = field(default_factory=dict)
    host: float = 0.0


class Family:
    """The problems of one start, by the numbers of copies that recompute."""

    def __init__(self, start: Built, limit_bytes: int) -> None:
        self.start, self.limit_bytes = start, limit_bytes
        self.copies = Copies(start.terms)
        self.limit = max(start.problem.limits)  # in memory units
        self._fixed: dict[Numbers, Built] = {}
        self._ends: dict[Box, Problem] = {}

    def root(self) -> Box:
        """All numbers that pins allow."""
        pinned = self.start.candidates.recompute
        copies = {prefix: len(segments) for prefix, segments in self.copies.by_prefix.items()}
        return Box(tuple(pinned.get(p, 0) for p in copies), tuple(pinned.get(p, n) for p, n in copies.items()))

    def fixed(self, numbers: Numbers) -> Built:
        """The problem in which just so many copies recompute."""
        if not any(numbers):
            return self.start
        if numbers not in self._fixed:
            self._fixed[numbers] = build_problem(self.start.terms, self.limit_bytes, self.copies.segments(numbers))
        return self._fixed[numbers]

    def below(self, box: Box, *, down: bool = False) -> Built:
        """The problem in which every term costs and takes what is least in the box."""
        most = self.copies.segments(box.most)
        return build_problem(self.start.terms, self.limit_bytes, self.copies.segments(box.least), most, down=down)

    def end(self, box: Box) -> Problem:
        """The problem, rounded down, at an end of a range, which is often one of its halves' too."""
        if box not in self._ends:
            self._ends[box] = self.below(box, down=True).problem
        return self._ends[box]
