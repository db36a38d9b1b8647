"""A large part of a graph that is narrow: few nodes are left as they are, such that all others can be chosen at once, exactly.

Nodes are taken out one after another, always one whose table is small. Where only large tables are left, a node with many
neighbours stays as it is instead, and the graph around it falls apart.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from heapq import heapify, heappop, heappush
from math import log
from random import Random

import numpy as np

from autoplan.planner.solver.eliminate import steps_of
from autoplan.planner.solver.model import FORBIDDEN, Array

JITTER = 0.5  # of the logarithm of a table's size, at random, so that parts differ
LEAST_DEGREE = 0.3  # what a degree counts at least when the node with the most neighbours is looked for: up to 1.3, at random


class ThinPart:
    """The steps that take out all nodes but some; `is_fixed[u]`: u stays as it is."""

    def __init__(self, near: Sequence[Sequence[int]], sizes: Sequence[int], random: Random, largest: int) -> None:
        """`near` are the neighbours, `sizes` the strategies of each node, `largest` is how many entries a table may have."""
        order, scopes = _take_out(near, sizes, random, largest)
        self.sizes = sizes
        self.is_fixed = np.ones(len(near), dtype=bool)
        self.is_fixed[order] = False
        self.steps = steps_of(order, scopes, near)

    def choose(self, choice: Array, alone: Sequence[Array], edge: Callable[[int, int], Array]) -> None:
        """Write the best strategies of all nodes but the fixed into `choice`.

        `alone[u]` is what the strategies of u cost with those of the fixed nodes, `edge(u, w)` the matrix of an edge.
        """
        tables: list[Array] = []
        results: list[Array] = []
        for step in self.steps:
            axes = (*step.scope, step.node)
            table = np.empty([self.sizes[u] for u in axes], dtype=np.int64)
            table[...] = alone[step.node]
            for w in step.edges:
                table += edge(w, step.node).reshape(self._shape((w, step.node), axes))
            np.minimum(table, FORBIDDEN, out=table)
            for child in step.children:
                result = results[child]  # its first axis is the node's, the others are in the order of ours
                turned = result.transpose((*range(1, result.ndim), 0))
                table += turned.reshape(self._shape(self.steps[child].scope, axes))
                np.minimum(table, FORBIDDEN, out=table)
            least = table.min(-1)
            results.append(least - least.min())
            tables.append(table)
        for step, table in zip(reversed(self.steps), reversed(tables), strict=True):
            choice[step.node] = table[tuple(choice[list(step.scope)])].argmin()

    def _shape(self, among: Sequence[int], axes: Sequence[int]) -> list[int]:
        """Of a table of the nodes `among` that is to be added to one of the nodes `axes`."""
        return [self.sizes[u] if u in among else 1 for u in axes]


def _take_out(near: Sequence[Sequence[int]], sizes: Sequence[int], random: Random, largest: int) -> tuple[list[int], list[set[int]]]:
    """The nodes in the order in which they are taken out, and the neighbours that each has then."""
    around = [set(others) for others in near]
    logs = [log(size) for size in sizes]
    weight = [logs[u] + sum(logs[w] for w in around[u]) for u in range(len(near))]
    by_weight = [(weight[u] + JITTER * random.random(), u, weight[u]) for u in range(len(near))]
    by_degree = [(-len(around[u]) * (LEAST_DEGREE + random.random()), u, len(around[u])) for u in range(len(near))]
    heapify(by_weight)
    heapify(by_degree)
    order: list[int] = []
    scopes: list[set[int]] = []
    gone = [False] * len(near)

    def take(u: int) -> None:
        gone[u] = True
        for w in around[u]:
            around[w].discard(u)
            weight[w] -= logs[u]
            heappush(by_weight, (weight[w] + JITTER * random.random(), w, weight[w]))

    while by_weight:
        _, u, before = by_weight[0]
        if gone[u] or before != weight[u]:
            heappop(by_weight)
        elif before <= log(largest):
            order.append(u)
            scopes.append(set(around[u]))
            for w in around[u]:
                joining = around[u] - around[w]
                joining.discard(w)
                around[w] |= joining
                weight[w] += sum(logs[x] for x in joining)
            take(u)
        else:
            _, u, degree = heappop(by_degree)
            if not gone[u] and degree == len(around[u]):
                take(u)
            elif not gone[u]:
                heappush(by_degree, (-len(around[u]) * (LEAST_DEGREE + random.random()), u, len(around[u])))
    return order, scopes
