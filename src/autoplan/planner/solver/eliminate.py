"""Exact minimisation under given prices of memory, by taking out node after node (dynamic programming over a tree of tables).

Possible where the graph of the problem is narrow, as transformers are once few strategies are left. The minimum is then the
strongest bound that these prices give, the choice is one that attains it, and every strategy gets the exact minimum over all
choices that use it. All in integers, as in `passing`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence, Set
from dataclasses import dataclass, field
from math import prod
from types import EllipsisType

import numpy as np

from autoplan.planner.solver.model import Array, Model
from autoplan.planner.solver.priced import Priced

LARGEST_TABLE = 2_000_000  # entries
LARGEST_AMONG_FEW = 8_000_000  # the same where only some strategies are left: bounds are closer than by messages, and worth more time
PART = 1 << 17  # entries of a table that are looked at together: a processor's cache holds so many
TABLES = 12  # of that size, at most


class TooWide(Exception):
    """The tables would be too large."""


@dataclass(slots=True)
class Step:
    """Taking out `node`: its table has an axis for each node of `scope`, all taken out later, and the last for its own strategies."""

    node: int
    scope: tuple[int, ...]
    edges: list[int] = field(default_factory=list)  # neighbours of the model
    children: list[int] = field(default_factory=list)  # steps whose results come in here


class Elimination:
    """Takes out all nodes under changing prices; raises TooWide where that is too much work."""

    exact = True  # under the prices as they are, no more can be proved

    def __init__(self, model: Model, magnitude: int, largest: int = LARGEST_TABLE, last: Collection[int] = ()) -> None:
        """`magnitude` is about the cost of a good choice, for scaling; `largest` is how many entries a table may have.

        The nodes `last` are taken out after all others.
        """
        self.priced = Priced(model, magnitude)
        self.sizes = [len(costs) for costs in model.costs]
        self.steps = steps_for(model.neighbours(), self.sizes, largest, last)
        self.results: list[Array] = []
        self.value = 0

    @property
    def model(self) -> Model:
        """Whose nodes are taken out."""
        return self.priced.model

    @property
    def bound(self) -> int:
        """The bound on the cost of every choice within the limits."""
        return self.priced.unscaled(self.value)

    def set_model(self, model: Model) -> None:
        """Go on with a model of the same nodes, strategies and edges, without prices."""
        self.priced.set_model(model)

    def set_prices(self, rows: Array, *, whole: bool = False) -> None:
        """Other prices of the rows, in cost per unit of use."""
        self.priced.set_prices(rows, whole=whole)

    def improve(self, sweeps: int, deadline: float | None = None) -> None:
        """Take out all nodes under the prices as they are: the work is bounded, whatever the deadline, and done but once."""
        self.results = []
        self.value = self.priced.offset
        for step in self.steps:
            result = np.full(self._shape(step.scope), self.priced.cap)
            for part, table in self._tables(step):
                np.minimum(table.min(-1), result[part], out=result[part])
            self.results.append(result)
            if not step.scope:
                self.value += int(result)

    def decode(self) -> tuple[int, ...]:
        """A choice that attains the minimum."""
        chosen = [0] * len(self.steps)
        for step in reversed(self.steps):
            total = sum(array[tuple(slice(None) if w == step.node else chosen[w] for w in axes)] for axes, array in self._addends(step))
            chosen[step.node] = int(np.argmin(total))
        return tuple(chosen)

    def last_table(self, nodes: tuple[int, int]) -> Array:
        """[s, t]: the least that a choice costs with these strategies of two nodes, which have an edge and were taken out last."""
        before, after = self.steps[-2:]
        assert before.scope == (after.node,) and {before.node, after.node} == set(nodes)
        table, last = (np.empty(self._shape((*step.scope, step.node)), dtype=np.int64) for step in (before, after))
        for step, whole in ((before, table), (after, last)):
            for part, entries in self._tables(step):
                whole[part] = entries
        both = table + (last - self.results[-2])[:, None] + (self.value - int(self.results[-1]))
        return both if after.node == nodes[0] else both.T

    def leaning(self) -> list[tuple[int, ...]]:
        """What the bound leans on: the choice that attains it."""
        return [self.decode()]

    def conditionals(self) -> list[Array]:
        """For each strategy the bound on the cost of the choices that use it."""
        least: list[Array] = [np.zeros(0, dtype=np.int64)] * len(self.steps)
        above: list[Array] = [np.zeros((), dtype=np.int64)] * len(self.steps)
        for number in reversed(range(len(self.steps))):
            step = self.steps[number]
            if not step.scope:
                above[number] = above[number] + (self.value - int(self.results[number]))
            axes = (*step.scope, step.node)
            minima = self._minima(step, above[number])
            whose, low = next(iter(minima.items()))
            least[step.node] = low.min(tuple(axis for axis, node in enumerate(whose) if node != step.node))
            for child in step.children:
                scope = self.steps[child].scope
                whose = tuple(node for node in axes if node in scope)
                above[child] = minima[whose].transpose(_order(whose, scope)) - self.results[child]
        return [self.priced.unscaled_all(costs) for costs in least]

    def _minima(self, step: Step, above: Array) -> dict[tuple[int, ...], Array]:
        """The least that the table of `step` together with what is `above` has by the axes of each child, or by the node alone."""
        axes = (*step.scope, step.node)
        scopes = [self.steps[child].scope for child in step.children] or [(step.node,)]
        wanted = [tuple(node for node in axes if node in scope) for scope in scopes]
        found = {some: np.full(self._shape(some), self.priced.cap) for some in wanted}
        for part, table in self._tables(step):
            table += above[part][..., None]
            for some, least in found.items():
                here = least[part] if some[0] == axes[0] else least
                np.minimum(table.min(tuple(axis for axis, node in enumerate(axes) if node not in some)), here, out=here)
        return found

    def _tables(self, step: Step) -> Iterator[tuple[slice | EllipsisType, Array]]:
        """The table of a step in parts of its first axis, since a whole one may not fit in a cache, or at all."""
        axes = (*step.scope, step.node)
        shape = self._shape(axes)
        total: dict[frozenset[int], Array] = {}
        for among, array in self._addends(step):
            wide = spread(array, among, axes)
            key = frozenset(among)
            total[key] = total[key] + wide if key in total else wide
        fixed = [array for key, array in total.items() if axes[0] not in key or not step.scope]
        moving = [array for key, array in total.items() if axes[0] in key and step.scope]
        base = sum(fixed[1:], start=fixed[0])
        if not step.scope:
            yield ..., base.copy()
            return
        length = min(shape[0], max(1, PART // prod(shape[1:])))
        room = np.empty((length, *shape[1:]), dtype=np.int64)
        for start in range(0, shape[0], length):
            part = slice(start, min(start + length, shape[0]))
            table = np.add(base, moving[0][part], out=room[: part.stop - start])
            for array in moving[1:]:
                table += array[part]
            yield part, table

    def _addends(self, step: Step) -> Iterator[tuple[tuple[int, ...], Array]]:
        """What adds up to the table of a step, each with the nodes that it has axes for."""
        yield (step.node,), self.priced.nodes[step.node]
        for other in step.edges:
            yield (other, step.node), self.priced.edge(other, step.node)
        for child in step.children:
            yield self.steps[child].scope, self.results[child]

    def _shape(self, axes: Sequence[int]) -> tuple[int, ...]:
        return tuple(self.sizes[node] for node in axes)


def spread(array: Array, among: Sequence[int], axes: Sequence[int]) -> Array:
    """The array, which has axes for the nodes `among`, with its axes where `axes` has them."""
    sizes = dict(zip(among, array.shape, strict=True))
    array = array.transpose(_order(among, [node for node in axes if node in sizes]))
    return array.reshape([sizes.get(node, 1) for node in axes])


def _order(have: Sequence[int], want: Sequence[int]) -> list[int]:
    """The axes of an array for the nodes `have` such that they are for `want`."""
    return [list(have).index(node) for node in want]


def steps_for(
    neighbours: Sequence[Collection[int]], sizes: Sequence[int], largest: int = LARGEST_TABLE, last: Collection[int] = ()
) -> list[Step]:
    """The order in which to take nodes out: always the one whose table is smallest, but `last` behind all others; raises TooWide."""
    near = {u: set(around) for u, around in enumerate(neighbours)}

    def table(u: int) -> float:
        return prod((float(sizes[w]) for w in near[u]), start=float(sizes[u]))

    weight = {u: table(u) for u in near}
    total = 0.0
    order: list[int] = []
    scopes: list[set[int]] = []
    while near:
        u = min(weight, key=lambda node: (node in last, weight[node], node))
        total += weight[u]
        if weight[u] > largest or total > TABLES * largest:
            raise TooWide
        around = near.pop(u)
        del weight[u]
        order.append(u)
        scopes.append(around)
        for w in around:
            near[w] |= around
            near[w] -= {w, u}
        for w in around:
            weight[w] = table(w)
    return steps_of(order, scopes, neighbours)


def steps_of(order: Sequence[int], scopes: Sequence[Set[int]], near: Sequence[Collection[int]]) -> list[Step]:
    """The steps that take out nodes in this order, each with the neighbours that it has then, but those that are never taken out."""
    position = {u: number for number, u in enumerate(order)}
    steps = []
    for u, scope in zip(order, scopes, strict=True):
        later = tuple(sorted((w for w in scope if w in position), key=position.__getitem__))
        steps.append(Step(u, later, [w for w in later if w in near[u]]))
    for number, step in enumerate(steps):
        if step.scope:
            steps[position[step.scope[0]]].children.append(number)
    return steps
