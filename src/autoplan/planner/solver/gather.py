"""Good choices come by in different ways, and what each of them is good at brought together.

A walk ends where none of its steps leads on, and where that is depends on chance; several ends together lead on (see `combine`).
Where the best end is far above what is proved, prices of memory do not tell what is good: there most walks are uneven.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from time import perf_counter

from autoplan.planner.solver.bound import Bound
from autoplan.planner.solver.combine import combined
from autoplan.planner.solver.core import close_to
from autoplan.planner.solver.improve import End, Improver, Met
from autoplan.planner.solver.model import Model
from autoplan.planner.solver.reduce import Infeasible
from autoplan.planner.solver.uneven import ROUNDS, Uneven

FAR = 0.2  # of what is proved: where the best is further above, other walks are worth their time
OTHERWISE = 8  # one turn of so many goes to the other kind of walk
PATIENCE = 30  # steps of an even walk that lead to nothing better
TURN = 0.3  # of the time left, at most
REMEMBERED = 6  # ends

Take = Callable[[Sequence[int], int], None]


class Gathering:
    """`ends` of walks through a model, cheapest first. `take` is told each better choice and its cost."""

    def __init__(self, model: Model, below: Bound, walk: Improver, take: Take) -> None:
        """Even walks are `walk` again, with other seeds; `below` are bounds on the model."""
        self.model, self.below, self.walk, self.take = model, below, walk, take
        self.magnitude = max(1, abs(below.value))
        self.ends: list[End] = []
        self.turns = 0
        self.late_s = 0.0  # by which a turn ended after its time, at most: what is made for it cannot be cut short
        self.uneven: _Uneven | None = None

    def add(self, cost: int, choice: Sequence[int]) -> bool:
        """Remember a choice within the limits; whether it is new and among the best."""
        end = cost, tuple(choice)
        if end in self.ends:
            return False
        self.ends = sorted([*self.ends, end])[:REMEMBERED]
        return end in self.ends

    def run(self, patience: float, deadline: float | None, proved: int) -> None:
        """Take turns until so many in a row have led to nothing better; an end is known already, none costs less than `proved`."""
        self.uneven, idle = None, 0
        while idle < patience and self.ends[0][0] > proved and (deadline is None or perf_counter() + self.late_s < deadline):
            before = self.ends[0][0]
            self.turns += 1
            turn = _turn(deadline)
            try:
                end = (self._uneven_walk if is_far(before, proved) == bool(self.turns % OTHERWISE) else self._even_walk)(turn)
            except Infeasible:
                return  # nothing is better
            if turn is not None:
                self.late_s = max(self.late_s, perf_counter() - turn)
            if end is not None and self.add(*end):
                self._combine(_turn(deadline))
            idle = 0 if self.ends[0][0] < before else idle + 1
            if not idle:
                self.take(self.ends[0][1], self.ends[0][0])

    def _even_walk(self, deadline: float | None) -> End | None:
        met = Met(self.model)
        self.walk.again(met.meet, self.turns).run(PATIENCE, deadline)
        return met.best

    def _uneven_walk(self, deadline: float | None) -> End | None:
        if self.uneven is None:
            self.uneven = _Uneven(self.model, self.below, self.ends[0][0] - 1, self.magnitude, self.turns, deadline)
        return self.uneven.run(deadline)

    def _combine(self, deadline: float | None) -> None:
        better = combined(self.model, [choice for _, choice in self.ends], self.magnitude, deadline, self.turns)
        if better is not None:
            cost = self.model.cost_of(better)
            assert cost is not None, "choices combined are possible"
            self.add(cost, better)


class _Uneven:
    """An uneven walk among the strategies that a choice of at most some cost may use; raises Infeasible where there are none."""

    def __init__(self, model: Model, below: Bound, threshold: int, magnitude: int, seed: int, deadline: float | None) -> None:
        core, self.way, prices = close_to(model, below, threshold, deadline)
        self.met = Met(core)
        self.walk = Uneven(core, magnitude, prices, self.met.meet, seed)

    def run(self, deadline: float | None) -> End | None:
        """As long as multiples stay the same."""
        self.met.best = None
        self.walk.run(ROUNDS, deadline)
        return None if self.met.best is None else (self.met.best[0], self.way.back(self.met.best[1]))


def is_far(cost: int, proved: int) -> bool:
    """Whether a choice of this cost is so far above what is proved that prices of memory have led astray."""
    return cost - proved > FAR * abs(proved)


def _turn(deadline: float | None) -> float | None:
    now = perf_counter()
    return None if deadline is None else now + TURN * (deadline - now)
