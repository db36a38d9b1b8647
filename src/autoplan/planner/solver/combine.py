"""Better choices from several: where they agree they are left alone, where they differ each node may do what one of them does.

Good choices that were come by in different ways are good in different places. What is left of a large problem between a few
of them is small, so that the best of each comes together at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from time import perf_counter

import numpy as np

from autoplan.planner.solver.improve import Improver, Met
from autoplan.planner.solver.model import Model, chosen_from, in_full
from autoplan.planner.solver.neighbourhood import part_of
from autoplan.planner.solver.reduce import Infeasible, reduce

PATIENCE = 100  # steps of the walk between the choices that lead to nothing better
SMALL = 3_000  # pairs of strategies: up to so many, CP-SAT mostly comes to an end in time
PATIENCE_S = 1.0  # for that


def combined(model: Model, choices: Sequence[Sequence[int]], magnitude: int, deadline: float | None, seed: int = 0) -> list[int] | None:
    """A choice cheaper than the first of `choices`, in which each node does as in one of them; None where none was found.

    The first is within the limits. `magnitude` is about the cost of a good choice.
    """
    first, everything = choices[0], np.array(choices)
    nodes = np.flatnonzero((everything != everything[0]).any(0)).tolist()
    if not nodes:
        return None
    part = part_of(model, model.neighbours(), first, model.used_by(first), nodes)
    kept = [np.unique(everything[:, u]) for u in nodes]
    between = chosen_from(part, kept)
    known = between.cost_of([int(np.searchsorted(keep, first[u])) for u, keep in zip(nodes, kept, strict=True)])
    assert known is not None
    try:
        core, trail = reduce(between, deadline)
    except Infeasible:
        raise AssertionError("a choice within the limits was pruned") from None
    found = _cheapest(core, known, magnitude, deadline, seed)
    if found is None:
        return None
    better = list(first)
    for u, s in zip(nodes, in_full(trail.expand(found), kept), strict=True):
        better[u] = s
    return better


def _cheapest(core: Model, known: int, magnitude: int, deadline: float | None, seed: int) -> Sequence[int] | None:
    """A choice cheaper than `known`: what a walk comes to, or, if the core is small, the cheapest of all."""
    if not core.costs:
        return () if core.constant < known else None
    met = Met(core, (known, ()))
    least = [int(costs.argmin()) for costs in core.costs]
    Improver(core, magnitude, least, np.zeros(len(core.limits)), met.meet, seed).run(PATIENCE, deadline)
    assert met.best is not None
    cost, choice = met.best
    if sum(edge.cost.size for edge in core.edges.values()) <= SMALL:
        from autoplan.planner.solver import cpsat

        start = perf_counter()
        latest = start + PATIENCE_S if deadline is None else min(deadline, start + PATIENCE_S)
        found = cpsat.cheapest(core, cost - 1, [], latest)
        if found.choice is not None:
            return found.choice
    return choice if cost < known else None
