"""Models linked in chains: one model, the *rest*, and others of which as many copies follow each other as one likes, each choosing for itself.

A copy meets the rest of the world at two nodes, its *entry* and its *exit*; the exit of one copy is the entry of the next. What a copy
costs at least, for each pair of strategies there, is a table. Its product with itself, in which sums take the place of products and
minima that of sums, is the table of two copies in a row; the table of all, as one edge of the rest, makes what is left a small model.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np

from autoplan.planner.solver.eliminate import Elimination
from autoplan.planner.solver.model import FORBIDDEN, Array, Edge, Model, chosen_from, in_full
from autoplan.planner.solver.priced import BITS, CAP

LARGEST_TABLE = 4_000_000  # entries
LARGEST_PRODUCT = 400_000_000  # additions for the tables of all numbers of copies


class TooLong(Exception):
    """The products would be too much work."""


@dataclass(frozen=True, slots=True)
class Link:
    """Copies of a model between two nodes of the rest: the first one's entry is `first`, the last one's exit is `last`."""

    model: Model
    entry: int
    exit: int
    count: int
    first: int
    last: int


@dataclass(frozen=True, slots=True)
class Least:
    """`value` bounds everything from below, `rest[u][s]` and `copies[link][u][s]` all that use a strategy, in any of the copies."""

    value: int
    rest: tuple[Array, ...]
    copies: tuple[tuple[Array, ...], ...]


class Walks:
    """The cheapest choices of a rest and its links; raises TooWide, TooLong."""

    def __init__(self, rest: Model, links: Sequence[Link]) -> None:
        self.bare, self.links = rest, links
        self.powers = [_powers(_between(link.model, link.entry, link.exit), link.count) for link in links]
        self.engine = _eliminated(self._rest(range(len(links))))
        self.value = self.engine.bound

    def least(self) -> Least:
        """The bounds on all strategies."""
        around = [_with_edge(link.model, link.entry, link.exit, self._around(k)) for k, link in enumerate(self.links)]
        return Least(self.value, tuple(self.engine.conditionals()), tuple(tuple(_eliminated(model).conditionals()) for model in around))

    def choices(self) -> tuple[tuple[int, ...], list[list[tuple[int, ...]]]]:
        """A cheapest choice of the rest, and by link that of each copy, in order."""
        chosen = self.engine.decode()
        return chosen, [self._choices(k, chosen) for k in range(len(self.links))]

    def _choices(self, k: int, chosen: Sequence[int]) -> list[tuple[int, ...]]:
        link, powers = self.links[k], self.powers[k]
        path = [chosen[link.last]]
        for before in reversed(powers[:-1]):
            path.append(int((before[chosen[link.first]] + powers[1][:, path[-1]]).argmin()))
        pairs = list(pairwise(reversed(path)))
        found = {pair: _inside(link, *pair) for pair in dict.fromkeys(pairs)}
        return [found[pair] for pair in pairs]

    def _around(self, k: int) -> Array:
        """[entry, exit]: the least that all but one copy of link k cost, wherever in its chain that copy is."""
        link, powers = self.links[k], self.powers[k]
        outside = _between(self._rest(other for other in range(len(self.links)) if other != k), link.first, link.last)
        found = np.full_like(outside, CAP)
        for before in range(link.count):
            to_entry = _product(powers[before].T, outside)  # [entry, last]
            np.minimum(found, _product(to_entry, powers[link.count - 1 - before].T), out=found)
        return found

    def _rest(self, links: Iterable[int]) -> Model:
        """The rest with the tables of some links as edges."""
        model = self.bare
        for k in links:
            model = _with_edge(model, self.links[k].first, self.links[k].last, self.powers[k][-1])
        return model


def _eliminated(model: Model, last: Sequence[int] = ()) -> Elimination:
    engine = Elimination(model, 1 << BITS, LARGEST_TABLE, last)  # a scale of 1: costs are integers, and nothing has a price
    engine.improve(1)
    return engine


def _inside(link: Link, entry: int, exit_: int) -> tuple[int, ...]:
    """The cheapest choice of a copy between two strategies at its borders."""
    kept = [np.arange(len(costs)) for costs in link.model.costs]
    kept[link.entry], kept[link.exit] = np.array([entry]), np.array([exit_])
    chosen = _eliminated(chosen_from(link.model, kept)).decode()
    return in_full(chosen, kept)


def _between(model: Model, first: int, last: int) -> Array:
    """[s, t]: the least that a choice costs with strategy s of one node and t of another."""
    linked = _with_edge(model, first, last, np.zeros((len(model.costs[first]), len(model.costs[last])), dtype=np.int64))
    table = _eliminated(linked, (first, last)).last_table((first, last))
    return np.minimum(table, CAP)


def _with_edge(model: Model, u: int, w: int, cost: Array) -> Model:
    """The model with so much more for a pair of nodes."""
    key, cost = ((u, w), cost) if u < w else ((w, u), cost.T)
    before = model.edges.get(key)
    edge = Edge(cost) if before is None else replace(before, cost=np.minimum(before.cost + cost, FORBIDDEN))
    return replace(model, edges={**model.edges, key: edge})


def _powers(table: Array, count: int) -> list[Array]:
    """The tables of 0, 1, ..., `count` copies in a row."""
    if len(table) ** 3 * count > LARGEST_PRODUCT:
        raise TooLong
    nothing = np.full_like(table, CAP)
    np.fill_diagonal(nothing, 0)
    found = [nothing, table]
    while len(found) <= count:
        found.append(_product(found[-1], table))
    return found


def _product(first: Array, second: Array) -> Array:
    """[s, t]: the least of first[s, m] + second[m, t] over all m."""
    found = np.full((len(first), second.shape[1]), CAP)
    for m in range(len(second)):
        np.minimum(found, first[:, m, None] + second[m], out=found)
    return found
