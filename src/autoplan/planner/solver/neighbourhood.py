"""Better choices from a choice: a few nodes at a time are chosen anew, exactly and within the limits, the others stay."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from random import Random
from time import perf_counter

import numpy as np

from autoplan.planner.solver.model import FORBIDDEN, Array, Edge, Found, Model
from autoplan.planner.solver.reduce import Infeasible, reduce

FIRST_SIZE = 20  # nodes chosen anew
GROWTH = 1.1  # of that number after a neighbourhood without a better choice, seen through in half the time for one
SHRINKAGE = 0.8  # after one that was not
PATIENCE_S = 2.0  # for one neighbourhood


class Neighbourhoods:
    """The choice and what it uses; `size` adapts to how large a neighbourhood can be looked at in time."""

    def __init__(self, model: Model, choice: Sequence[int], seed: int = 0) -> None:
        """`choice` is within the limits."""
        self.model, self.choice = model, list(choice)
        self.used = model.used_by(choice)
        self.random = Random(seed)
        self.size = float(FIRST_SIZE)
        self.near = model.neighbours()

    def step(self, deadline: float | None) -> bool:
        """Look at one neighbourhood; whether there was a better choice in it."""
        from autoplan.planner.solver import cpsat  # here, since ortools loads pandas, and most problems never come to this

        nodes = self._nodes()
        part = part_of(self.model, self.near, self.choice, self.used, nodes)
        now = [self.choice[u] for u in nodes]
        cost = part.cost_of(now)
        assert cost is not None
        start = perf_counter()
        latest = start + PATIENCE_S if deadline is None else min(deadline, start + PATIENCE_S)
        try:
            core, trail = reduce(part)
        except Infeasible:
            raise AssertionError("a choice within the limits was pruned") from None
        found = cpsat.cheapest(core, cost - 1, [], latest) if core.costs else Found((), core.constant, True)
        self.size *= GROWTH if found.finished and perf_counter() - start < PATIENCE_S / 2 else SHRINKAGE
        better = None if found.choice is None else core.cost_of(found.choice)
        if found.choice is None or better is None or better >= cost:
            return False
        for u, s in zip(nodes, trail.expand(found.choice), strict=True):
            self.choice[u] = s
        self.used = self.model.used_by(self.choice)
        return True

    def _nodes(self) -> list[int]:
        """Around a random node, or around some that use what a full row has."""
        size = min(len(self.near), max(2, int(self.size)))
        starts = [self.random.randrange(len(self.near))]
        if self.used.any() and self.random.random() < 0.5:
            row = self.random.choices(range(len(self.used)), (self.used / np.maximum(1, self.model.limits)) ** 8)[0]
            using = [u for u, usage in enumerate(self.model.usage) if any(row in range(*span) for span in usage)]
            starts = self.random.sample(using, min(len(using), 1 + size // 6)) or starts
        found = dict.fromkeys(starts)
        queue = list(found)
        while len(found) < size and queue:
            u = queue.pop(self.random.randrange(min(len(queue), 4)))
            for w in self.near[u]:
                if w not in found and len(found) < size:
                    found[w] = None
                    queue.append(w)
        return sorted(found)


def part_of(model: Model, near: Sequence[Sequence[int]], choice: Sequence[int], used: Array, nodes: Sequence[int]) -> Model:
    """The model of these nodes alone, the others as `choice` has them, which uses `used`; `near` are the neighbours of each."""
    number = {u: position for position, u in enumerate(nodes)}
    costs = [model.costs[u].copy() for u in nodes]
    usage = [dict(model.usage[u]) for u in nodes]
    edges: dict[tuple[int, int], Edge] = {}
    limits = model.limits - used
    for u in nodes:
        for span, amounts in model.usage[u].items():
            limits[span.rows] += amounts[choice[u]]
        for w in near[u]:
            edge = model.edges[u, w] if u < w else model.edges[w, u].seen_from_second()
            if w not in number or u < w:
                for span, amounts in edge.usage.items():
                    limits[span.rows] += amounts[choice[u], choice[w]]
            if w not in number:
                costs[number[u]] = np.minimum(costs[number[u]] + edge.cost[:, choice[w]], FORBIDDEN)
                for span, amounts in edge.usage.items():
                    own = usage[number[u]]
                    own[span] = own.get(span, 0) + amounts[:, choice[w]]
            elif u < w:
                edges[number[u], number[w]] = edge
    return replace(model, costs=costs, usage=usage, edges=edges, limits=limits, constant=0)
