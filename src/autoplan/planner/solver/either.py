"""A bound on several models of the same strategies and rows: what is proved under one set of prices about each of them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from autoplan.planner.solver.eliminate import Elimination
from autoplan.planner.solver.model import Array, Model
from autoplan.planner.solver.passing import Passing


class Either:
    """One engine for each model, all under the same prices. A choice counts in the model that bounds least."""

    def __init__(self, engines: Sequence[Passing | Elimination]) -> None:
        assert len({engine.priced.scale for engine in engines}) == 1, "prices are rounded to the scale"
        self.engines = engines
        self.weakest = engines[0]

    @property
    def model(self) -> Model:
        """The model that bounds least."""
        return self.weakest.model

    @property
    def bound(self) -> int:
        """The bound on the cost of every choice within the limits, in any of the models."""
        return self.weakest.bound

    @property
    def exact(self) -> bool:
        """Whether no more can be proved under the prices as they are."""
        return self.weakest.exact

    def set_prices(self, rows: Array, *, whole: bool = False) -> None:
        """Other prices of the rows, in cost per unit of use."""
        for engine in self.engines:
            engine.set_prices(rows, whole=whole)

    def improve(self, sweeps: int, deadline: float | None = None) -> None:
        """Improve each bound."""
        for engine in self.engines:
            engine.improve(sweeps, deadline)
        self.weakest = min(self.engines, key=lambda engine: engine.bound)

    def decode(self) -> tuple[int, ...]:
        """A good choice of the model that bounds least."""
        return self.weakest.decode()

    def leaning(self) -> Sequence[Sequence[int]]:
        """What the bound leans on in the model that bounds least."""
        return self.weakest.leaning()

    def narrowed(self, kept: Sequence[Array]) -> Either:
        """The same with only the strategies `kept` of each node; only for engines of messages."""
        engines = [engine.narrowed(kept) for engine in self.engines if isinstance(engine, Passing)]
        assert len(engines) == len(self.engines), "tables have no messages to go on with"
        found = Either(engines)
        found.weakest = engines[self.engines.index(self.weakest)]
        return found

    def conditionals(self) -> list[Array]:
        """For each strategy the bound on the cost of the choices that use it, in any of the models."""
        return [np.minimum.reduce(costs) for costs in zip(*(engine.conditionals() for engine in self.engines), strict=True)]
