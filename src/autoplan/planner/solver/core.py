"""What is left of a model once strategies that cannot matter are gone, and the way back from a choice of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from autoplan.planner.solver.bound import Bound
from autoplan.planner.solver.eliminate import Elimination, TooWide
from autoplan.planner.solver.model import Array, Model
from autoplan.planner.solver.passing import Passing
from autoplan.planner.solver.priced import BITS
from autoplan.planner.solver.reduce import Infeasible
from autoplan.planner.solver.trail import Trail

GLANCE = 5  # sweeps, to see how much a good choice may cost


def engine_for(model: Model, magnitude: int) -> Passing | Elimination:
    """The stronger bound where it is possible."""
    try:
        return Elimination(model, max(1, magnitude))
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


def in_full(choice: Sequence[int], kept: Sequence[Array]) -> tuple[int, ...]:
    """A choice among the strategies that were kept of each node, in their former numbers."""
    return tuple(int(strategies[s]) for strategies, s in zip(kept, choice, strict=True))


def chosen_from(model: Model, kept: Sequence[Array]) -> Model:
    """The model with only the strategies `kept` of each node."""
    edges = {}
    for (u, w), edge in model.edges.items():
        usage = {span: amounts[kept[u]][:, kept[w]] for span, amounts in edge.usage.items()}
        edges[u, w] = replace(edge, cost=edge.cost[kept[u]][:, kept[w]], usage=usage)
    return replace(
        model,
        costs=[costs[keep] for costs, keep in zip(model.costs, kept, strict=True)],
        usage=[{span: amounts[keep] for span, amounts in usage.items()} for usage, keep in zip(model.usage, kept, strict=True)],
        edges=edges,
    )
