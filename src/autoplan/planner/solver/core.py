"""What is left of a model once strategies that cannot matter are gone, and the way back from a choice of it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from autoplan.planner.solver.bound import Bound
from autoplan.planner.solver.eliminate import LARGEST_TABLE, Elimination, TooWide
from autoplan.planner.solver.model import Array, Model, chosen_from, in_full
from autoplan.planner.solver.passing import Passing
from autoplan.planner.solver.priced import BITS
from autoplan.planner.solver.reduce import Infeasible, reduce
from autoplan.planner.solver.trail import Trail

GLANCE = 5  # sweeps, to see how much a good choice may cost


def engine_for(model: Model, magnitude: int, largest: int = LARGEST_TABLE) -> Passing | Elimination:
    """The stronger bound where it is possible with tables of so many entries at most."""
    try:
        return Elimination(model, max(1, magnitude), largest)
    except TooWide:
        return Passing(model, max(1, magnitude))


def glance(model: Model) -> int:
    """About what a good choice costs, if not more than that: the magnitude that bounds are scaled by."""
    passing = Passing(model, 1 << BITS)
    for _ in range(GLANCE):
        passing.sweep()
    return max(1, abs(passing.bound - model.constant))


class Way:
    """From a choice of a core back to one of the model it was cut from."""

    def __init__(self, legs: tuple[tuple[list[Array], Trail], ...] = ()) -> None:
        self.legs = legs

    def then(self, kept: list[Array], trail: Trail) -> Way:
        """One leg more."""
        return Way((*self.legs, (kept, trail)))

    def back(self, choice: Sequence[int]) -> tuple[int, ...]:
        """The choice of the model at the beginning."""
        for kept, trail in reversed(self.legs):
            choice = in_full(trail.expand(choice), kept)
        return tuple(choice)


def restricted(model: Model, below: Bound, threshold: int) -> tuple[Model, list[Array]]:
    """The model with only those strategies that a choice at or under the threshold may use, and their former numbers."""
    kept = [np.flatnonzero(conditional <= threshold) for conditional in below.conditional]
    if not all(map(len, kept)):
        raise Infeasible
    return chosen_from(model, kept), kept


def close_to(model: Model, below: Bound, threshold: int, deadline: float | None) -> tuple[Model, Way, Array]:
    """The core of those strategies, reduced as far as it comes in time, the way back from it, and the prices of its rows.

    Raises Infeasible where there is no choice at or under the threshold.
    """
    core, kept = restricted(model, below, threshold)
    core, trail = reduce(core, deadline)
    return core, Way().then(kept, trail), trail.prices(below.prices)
