"""Choices that no prices of memory alone lead to: each node pays its own multiple of them, and messages say what suits them all.

Where a few nodes take most of the memory, equal ones among them should often not be treated equally, and under the same prices they
are. So multiples are drawn, the messages' choice under them is improved by forests, and prices move as in any walk. Multiples
that led to a good choice are kept but for some drawn anew (an evolution strategy with one parent).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from autoplan.planner.solver.improve import Improver, Meet
from autoplan.planner.solver.model import Array, Model
from autoplan.planner.solver.passing import Passing

SPREAD = 1.0  # of the multiples' logarithm
ROUNDS = 10  # moves of prices under the same multiples
SWEEPS, FORESTS = 2, 2  # in each
KEPT = 0.7  # of all times the best multiples so far are kept ...
ANEW = 0.2  # ... but for so many, and else all are drawn anew


class Uneven(Improver):
    """A walk of which each step begins at the choice that messages suggest."""

    def __init__(self, model: Model, magnitude: int, prices: Array, meet: Meet, seed: int = 0) -> None:
        super().__init__(model, magnitude, [0] * len(model.costs), prices, meet, seed)
        self.passing = Passing(model, self.magnitude)
        self.drawn = np.random.default_rng(seed)
        self.multiples = self._draw()
        self.best: tuple[int, Array, Array] | None = None  # cost, multiples, prices

    def _draw(self) -> Array:
        return np.exp(self.drawn.normal(size=len(self.model.tally.sizes)) * SPREAD)

    def _vary(self) -> None:
        self.multiples = self._draw()
        if self.best is not None and self.drawn.random() < KEPT:
            _, multiples, prices = self.best
            self.multiples = np.where(self.drawn.random(len(multiples)) < ANEW, self.multiples, multiples)
            self.prices = prices.copy()

    def _step(self) -> None:
        if self.steps % ROUNDS == 0:
            self._vary()
        self.steps += 1
        self._move_prices()
        self._charge(self.multiples)
        self.passing.set_prices(self.prices, weights=self.multiples)
        for _ in range(SWEEPS):
            self.passing.sweep()
        self._meet(self.passing.decode())
        for _ in range(FORESTS):
            self._choose_forest(())
            self._meet(self.choice)

    def _meet(self, choice: Sequence[int]) -> None:
        self.choice, self.used = list(choice), self.model.used_by(choice)
        self.meet(self.choice, self.used)
        if (self.used <= self.model.limits).all():
            cost = self.model.cost_of(self.choice)
            if cost is not None and (self.best is None or cost <= self.best[0]):
                self.best = cost, self.multiples, self.prices.copy()
