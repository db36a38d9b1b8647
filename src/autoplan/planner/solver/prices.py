"""Where to look next for the prices of memory that bound best: cutting planes (Kelley, 1960) within a region of trust.

What a bound is at some prices, and what the choices behind it use above each limit, says how much it can be at others. The prices
that all such statements allow most are looked at next, near the best so far: far away statements are poor. Messages that have not
come to rest make a statement too low, so each is lifted to what is proved at the best prices. Only rows that some choice
exceeded most have a price.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from autoplan.planner.solver.model import Array

FIRST_RADIUS = 1 / 16  # of what doubles the bound
CLOSE = 1e-7  # of the bound: prices that might improve it by no more are good enough
REMEMBERED = 24  # statements
WIDENING, NARROWING = 0.5, 0.1  # parts of what was promised: if more is reached, the region grows; if less, it shrinks


@dataclass(frozen=True, slots=True)
class _Cut:
    """At `prices` the bound was `value`; it changes by `excess` with them."""

    value: float
    prices: Array
    excess: Array


class Cuts:
    """The best prices so far, the region around them, and what was seen. With `simplex` prices add up to 1, else each is from 0 up."""

    def __init__(self, prices: Array, *, simplex: bool) -> None:
        self.simplex = simplex
        self.cuts: list[_Cut] = []
        self.sizes: dict[int, float] = {}  # of the prices of rows that have one: what changes the bound by about itself
        self.radius = np.inf if simplex else FIRST_RADIUS
        self.center, self.value = prices, -np.inf
        self.promised = np.inf

    def add(self, prices: Array, value: float, excess: Array) -> None:
        """A bound at some prices, and what the choices behind it use above every limit."""
        if value > self.value:
            if self.value > -np.inf:
                part = (value - self.value) / max(1.0, self.promised - self.value)
                self.radius *= 2 if part > WIDENING else 1 if part > NARROWING else 0.5
            self.center, self.value = prices, value
        else:
            self.radius /= 2
        self.cuts = [*self.cuts[-REMEMBERED + 1 :], _Cut(value, prices, excess)]
        wanted = [] if self.simplex else np.flatnonzero(prices).tolist()
        if len(excess) and (self.simplex or excess.max() > 0):
            wanted.append(int(excess.argmax()))
        for row in wanted:
            if row not in self.sizes:
                size = max(1.0, abs(self.value)) / max(1.0, abs(float(excess[row])))
                self.sizes[row] = 1.0 if self.simplex else min([size, *self.sizes.values()])

    def stay(self, value: float, excess: Array) -> None:
        """Forget what was seen but at the best prices, where messages have moved on."""
        self.cuts, self.value = [_Cut(value, self.center, excess)], max(value, self.value)
        self.radius /= 2

    def best(self) -> Array | None:
        """The prices that promise most; None where none promise more than the best, or the solver of this cannot tell."""
        from ortools.linear_solver import pywraplp  # here, since it takes half a second

        lp = pywraplp.Solver.CreateSolver("GLOP")
        more = lp.NumVar(-lp.infinity(), lp.infinity(), "")
        unit = max([1.0, *(abs(float(cut.excess[row])) * size for cut in self.cuts for row, size in self.sizes.items())])
        base = self.center.copy()
        if self.simplex:
            base[[row for row in range(len(base)) if row not in self.sizes]] = 0
        moves = {}
        for row, size in self.sizes.items():
            at = float(base[row]) / size
            moves[row] = lp.NumVar(max(-at, -self.radius), self.radius, "")
        for cut in self.cuts:
            here = max(0.0, cut.value + float(cut.excess @ (self.center - cut.prices)) - self.value) + float(
                cut.excess @ (base - self.center)
            )
            lp.Add(more - sum(float(cut.excess[row]) * self.sizes[row] / unit * move for row, move in moves.items()) <= here / unit)
        if self.simplex:
            lp.Add(sum(moves.values()) == 1 - float(base.sum()))
        lp.Maximize(more)
        if lp.Solve() != pywraplp.Solver.OPTIMAL or more.solution_value() * unit <= CLOSE * abs(self.value):
            return None
        self.promised = self.value + more.solution_value() * unit
        for row, move in moves.items():
            base[row] = max(0.0, base[row] + move.solution_value() * self.sizes[row])
        return base
