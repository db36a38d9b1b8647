"""Where to look next for the prices of memory that bound best: cutting planes (Kelley, 1960).

Every choice x bounds what prices p can reach: cost(x) + p . excess(x). The prices that these bounds allow most are looked at
next; what is found there is one bound more, until both meet. Only rows that some choice exceeded most have a price.
"""

from __future__ import annotations

import numpy as np

from autoplan.planner.solver.model import Array

STEEPEST = 4.0  # times the cost per unit of excess that would double the bound: how high prices may be until a choice fits


class Cuts:
    """The bounds seen so far. With `simplex` the prices add up to 1, else each is from 0 up."""

    def __init__(self, rows: int, *, simplex: bool) -> None:
        self.simplex = simplex
        self.costs: list[float] = []
        self.excesses: list[Array] = []
        self.priced: list[int] = []
        self.highest = np.zeros(rows)

    def add(self, cost: float, excess: Array, scale: float) -> None:
        """A choice, by its cost and what it uses above every limit; `scale` is about what all costs."""
        self.costs.append(cost)
        self.excesses.append(excess.astype(float))
        worst = int(excess.argmax())
        if (self.simplex or excess[worst] > 0) and worst not in self.priced:
            self.priced.append(worst)
            self.highest[worst] = STEEPEST * max(scale, 1.0) / max(float(excess[worst]), 1.0)

    def best(self) -> tuple[float, Array] | None:
        """The most that the bounds allow, and the prices that might reach it; None where the solver of this cannot tell."""
        from ortools.linear_solver import pywraplp  # here, since it takes half a second

        lp = pywraplp.Solver.CreateSolver("GLOP")
        value = lp.NumVar(-lp.infinity(), lp.infinity(), "")
        unit = max(1.0, *map(abs, self.costs))
        sizes = {row: 1.0 if self.simplex else unit / max(1.0, *(abs(float(e[row])) for e in self.excesses)) for row in self.priced}
        if self.simplex:
            unit = max(1.0, *(float(np.abs(excess).max()) for excess in self.excesses))
        prices = {row: lp.NumVar(0, 1 if self.simplex else self.highest[row] / size, "") for row, size in sizes.items()}
        for cost, excess in zip(self.costs, self.excesses, strict=True):
            lp.Add(value - sum(float(excess[row]) * sizes[row] / unit * price for row, price in prices.items()) <= cost / unit)
        if self.simplex:
            lp.Add(sum(prices.values()) == 1)
        lp.Maximize(value)
        if lp.Solve() != pywraplp.Solver.OPTIMAL:
            return None
        found = np.zeros(len(self.highest))
        for row, price in prices.items():
            found[row] = max(0.0, price.solution_value()) * sizes[row]
        return value.solution_value() * unit, found
