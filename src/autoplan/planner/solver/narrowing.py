"""A bound by messages that goes on without the strategies that no choice of interest can use: the fewer, the faster."""

from __future__ import annotations

import numpy as np

from autoplan.planner.solver.either import Either
from autoplan.planner.solver.model import FORBIDDEN, Array, Model, in_full

CLOSER = 0.85  # of the distance from the bound to what is of interest: then it is worth looking which strategies are left
WORTH_DROPPING = 0.8  # of the strategies: if no more are left, it goes on with these


class Narrowing:
    """An engine in the numbers of all strategies, over one with fewer and fewer of them."""

    exact = False  # more sweeps may bound more

    def __init__(self, engine: Either) -> None:
        self.model: Model = engine.model
        self.engine = engine
        self.kept = [np.arange(len(costs)) for costs in engine.model.costs]
        self.known = [np.full(len(costs), -FORBIDDEN) for costs in engine.model.costs]  # bounds on strategies when some were dropped last
        self.beyond = FORBIDDEN  # what choices cost at least that use what was dropped
        self.distance = FORBIDDEN

    @property
    def bound(self) -> int:
        """The bound on the cost of every choice within the limits."""
        return min(self.beyond, self.engine.bound)

    def set_prices(self, rows: Array, *, whole: bool = False) -> None:
        """Other prices of the rows, in cost per unit of use."""
        self.engine.set_prices(rows, whole=whole)

    def improve(self, sweeps: int, deadline: float | None = None) -> None:
        """Sweep until the bound stands still, so many times at most."""
        self.engine.improve(sweeps, deadline)

    def decode(self) -> tuple[int, ...]:
        """A choice that suits the messages."""
        return in_full(self.engine.decode(), self.kept)

    def leaning(self) -> list[tuple[int, ...]]:
        """What the bound leans on."""
        return [in_full(choice, self.kept) for choice in self.engine.leaning()]

    def conditionals(self) -> list[Array]:
        """For each strategy the bound on the cost of the choices that use it."""
        found = [known.copy() for known in self.known]
        for bounds, kept, costs in zip(found, self.kept, self.engine.conditionals(), strict=True):
            bounds[kept] = np.maximum(bounds[kept], np.minimum(costs, self.beyond))
        return found

    def narrow(self, at_most: int) -> None:
        """Only choices that cost at most so much are of interest any more: drop strategies, if enough of them are in no such choice."""
        distance = at_most - self.bound
        if distance > CLOSER * self.distance or distance < 0:
            return
        self.distance = distance
        self.known = self.conditionals()
        left = [np.flatnonzero(known[kept] <= at_most) for known, kept in zip(self.known, self.kept, strict=True)]
        if all(map(len, left)) and sum(map(len, left)) <= WORTH_DROPPING * sum(map(len, self.kept)):
            self.engine = self.engine.narrowed(left)
            self.kept = [kept[some] for kept, some in zip(self.kept, left, strict=True)]
            self.beyond = min(self.beyond, at_most + 1)
