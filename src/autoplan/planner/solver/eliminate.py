"""Exact minimisation under given prices of memory, by taking out node after node (dynamic programming over a tree of tables).

Possible where the graph of the problem is narrow, as transformers are once few strategies are left. The minimum is then the
strongest bound that these prices give, the choice is one that attains it, and every strategy gets the exact minimum over all
choices that use it. All in integers, as in `passing`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import prod

import numpy as np

from autoplan.planner.solver.model import Array, Model
from autoplan.planner.solver.priced import Priced

LARGEST_TABLE = 2_000_000  # entries
TABLES = 12  # of that size, at most


class TooWide(Exception):
    """The tables would be too large."""


@dataclass(slots=True)
class _Step:
    """Taking out `node`: its table has an axis for each node of `scope`, all taken out later, and the last for its own strategies."""

    node: int
    scope: tuple[int, ...]
    edges: list[int] = field(default_factory=list)  # neighbours of the model
    children: list[int] = field(default_factory=list)  # steps whose results come in here


class Elimination:
    """Takes out all nodes under changing prices; raises TooWide where that is too much work."""

    exact = True  # under the prices as they are, no more can be proved

    def __init__(self, model: Model, magnitude: int, largest: int = LARGEST_TABLE) -> None:
        """`magnitude` is about the cost of a good choice, for scaling; `largest` is how many entries a table may have."""
        self.priced = Priced(model, magnitude)
        self.sizes = [len(costs) for costs in model.costs]
        self.steps = _plan(model, self.sizes, largest)
        self.tables: list[Array] = []
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
        self.tables, self.results = [], []
        self.value = self.priced.offset
        for step in self.steps:
            table = np.broadcast_to(self.priced.nodes[step.node], self._shape(step)).copy()
            for other in step.edges:
                table += self._spread(self.priced.edge(other, step.node), (other, step.node), step)
            for child in step.children:
                table += self._spread(self.results[child], self.steps[child].scope, step)
            np.minimum(table, self.priced.cap, out=table)
            self.tables.append(table)
            self.results.append(table.min(-1))
            if not step.scope:
                self.value += int(self.results[-1])

    def decode(self) -> tuple[int, ...]:
        """A choice that attains the minimum."""
        chosen = [0] * len(self.steps)
        for step, table in zip(reversed(self.steps), reversed(self.tables), strict=True):
            chosen[step.node] = int(table[tuple(chosen[node] for node in step.scope)].argmin())
        return tuple(chosen)

    def leaning(self) -> list[tuple[int, ...]]:
        """What the bound leans on: the choice that attains it."""
        return [self.decode()]

    def conditionals(self) -> list[Array]:
        """For each strategy the bound on the cost of the choices that use it."""
        least: list[Array] = [np.zeros(0, dtype=np.int64)] * len(self.steps)
        above: list[Array] = [np.zeros((), dtype=np.int64)] * len(self.steps)
        for number in reversed(range(len(self.steps))):
            step = self.steps[number]
            whole = self.tables[number] + above[number][..., None]
            if not step.scope:
                whole = whole + (self.value - int(self.results[number]))
            np.minimum(whole, self.priced.cap, out=whole)
            axes = (*step.scope, step.node)
            least[step.node] = whole.min(tuple(range(len(step.scope))))
            for child in step.children:
                scope = self.steps[child].scope
                rest = whole - self._spread(self.results[child], scope, step)
                rest = rest.min(tuple(axis for axis, node in enumerate(axes) if node not in scope))
                above[child] = rest.transpose([[node for node in axes if node in scope].index(node) for node in scope])
        return [self.priced.unscaled_all(costs) for costs in least]

    def _shape(self, step: _Step) -> tuple[int, ...]:
        return tuple(self.sizes[node] for node in (*step.scope, step.node))

    def _spread(self, array: Array, axes: Sequence[int], step: _Step) -> Array:
        """The array with its axes where the table of `step` has them."""
        wanted = [node for node in (*step.scope, step.node) if node in axes]
        array = array.transpose([list(axes).index(node) for node in wanted])
        return array.reshape([self.sizes[node] if node in axes else 1 for node in (*step.scope, step.node)])


def _plan(model: Model, sizes: Sequence[int], largest: int) -> list[_Step]:
    """The order in which to take nodes out: always the one whose table is smallest."""
    near = {u: set(around) for u, around in enumerate(model.neighbours())}
    edges = {u: set(around) for u, around in near.items()}

    def table(u: int) -> float:
        return prod((float(sizes[w]) for w in near[u]), start=float(sizes[u]))

    weight = {u: table(u) for u in near}
    steps, total, gone = [], 0.0, set()
    scopes: list[tuple[int, set[int]]] = []
    while near:
        u = min(weight, key=lambda node: (weight[node], node))
        total += weight[u]
        if weight[u] > largest or total > TABLES * largest:
            raise TooWide
        around = near.pop(u)
        del weight[u]
        steps.append(u)
        scopes.append((u, around))
        gone.add(u)
        for w in around:
            near[w] |= around
            near[w] -= {w, u}
        for w in around:
            weight[w] = table(w)
    position = {u: number for number, u in enumerate(steps)}
    planned = [_Step(u, tuple(sorted(around, key=position.__getitem__))) for u, around in scopes]
    for number, step in enumerate(planned):
        step.edges = [w for w in step.scope if w in edges[step.node]]
        if step.scope:
            planned[position[step.scope[0]]].children.append(number)
    return planned
