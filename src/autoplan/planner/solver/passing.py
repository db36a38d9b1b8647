"""Message passing (TRW-S): a lower bound on every choice and on every strategy, in integers from beginning to end.

Costs move between nodes and edges such that no choice's total changes; then the minima of nodes and edges add up to a lower
bound. Each visit of a node collects what its edges hold and hands equal shares on to the nodes to come (Kolmogorov,
"Convergent Tree-reweighted Message Passing for Energy Minimization", 2006). Any integer messages give an exact bound, so
nothing is lost to rounding but strength: costs are multiplied by `scale` first to keep it.

Memory joins by prices: for non-negative prices of the rows, cost + price x (used - limit) is at most the cost of any choice
within the limits.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from time import perf_counter

import numpy as np

from autoplan.planner.solver.model import FORBIDDEN, Array, Edge, Model, chosen_from
from autoplan.planner.solver.priced import CAP, Priced

FEW, SOME, MANY = 3, 15, 150  # sweeps, at most: between two moves of prices, before the first, and once prices are settled
WORTH_GROUPING = 10_000  # entries of an edge: with fewer, looking for strategies that are alike does not pay
AT_ONCE = 4_000  # entries: fans of no more are handed on at once, others edge by edge, since what is copied must stay near


@dataclass(slots=True)
class _Groups:
    """An edge between nodes of which many strategies are alike to the other: where an output is, not how it came to be there."""

    order: Array  # the node's strategies, group by group
    starts: Array  # [group], in that order
    first: tuple[Array, Array]  # [group], a strategy of each, of the node and of the other
    of_row: Array  # [row], the group of each strategy of the other
    matrix: Array  # [group, group of the other]

    @classmethod
    def of(cls, alike: Alike, matrix: Array) -> _Groups | None:
        """The groups by what is alike of both nodes, if they are few; `matrix` is what the edge is charged."""
        first_own, own = np.unique(alike[0], return_index=True, return_inverse=True)[1:]
        first_row, row = np.unique(alike[1], return_index=True, return_inverse=True)[1:]
        if 2 * len(first_own) * len(first_row) > matrix.size:
            return None
        order = np.argsort(own, kind="stable")
        starts = np.searchsorted(own[order], np.arange(len(first_own)))
        first = first_own, first_row
        return cls(order, starts, first, row, matrix[np.ix_(*first)])

    def messages(self, own: Array) -> Array:
        """To every strategy of the other node, where `own` came from the node's."""
        most = np.maximum.reduceat(own[self.order], self.starts)
        return np.minimum.reduce(self.matrix - most[:, None], 0)[self.of_row]


Alike = tuple[Array, Array]
"""By strategy of the first and of the second node of an edge, a number that those share which are alike to the other node."""


def _alike_at(edge: Edge) -> Alike | None:
    """What is alike, where it is worth looking for it."""
    if edge.cost.size < WORTH_GROUPING:
        return None
    layers = [edge.cost, *edge.usage.values()]
    return _equal_rows(layers), _equal_rows([layer.T for layer in layers])


def _alike_among(alike: Alike, first: Array, second: Array) -> Alike | None:
    """What is alike among these of the strategies of both nodes."""
    return None if len(first) * len(second) < WORTH_GROUPING else (alike[0][first], alike[1][second])


def _equal_rows(layers: list[Array]) -> Array:
    """[row]: the number of the rows that are the same in every layer."""
    bits = [layer.astype(np.uint64) for layer in layers]
    spread = [array ^ (array >> np.uint64(29)) for array in bits]  # FORBIDDEN is one high bit, of which products leave little
    for seed in count():
        random = np.random.default_rng(seed)
        keys = sum(array @ random.integers(1 << 64, size=array.shape[1], dtype=np.uint64) for array in spread)
        _, first, numbers = np.unique(keys, return_index=True, return_inverse=True)
        if all((layer == layer[first[numbers]]).all() for layer in layers):  # else different rows have the same key by chance
            return numbers
    raise AssertionError("keys are random")


@dataclass(slots=True)
class _Fan:
    """The edges between a node and those after it, or those before it: behind one another, a row for each strategy of the others."""

    others: list[int]
    parts: list[Array]  # [edge], [own, row]
    together: Array | None  # [own, row], where they are so small that they are handed on at once
    own: Array  # [edge, own], a view of the messages to the node
    edge: Array  # [row]
    starts: Array  # [edge], its first row
    theta: Array  # [row], where the costs of the other node's strategies are
    back: Array  # [row], where the messages to them are
    groups: list[_Groups | None]  # [edge], where strategies are alike

    def rows(self, number: int) -> slice:
        """The rows of an edge."""
        return slice(self.starts[number], self.starts[number + 1] if number + 1 < len(self.starts) else None)


class Passing:
    """The messages over a model under changing prices. `value` is the bound; `conditional[u][s]` that of strategy s, scaled."""

    exact = False  # more sweeps may bound more

    def __init__(self, model: Model, magnitude: int, alike: Mapping[tuple[int, int], Alike | None] | None = None) -> None:
        """`magnitude` is about the cost of a good choice, for scaling; `alike` is what is, by edge, where that is known."""
        degree = np.bincount([end for pair in model.edges for end in pair], minlength=1).max()
        self.priced = Priced(model, magnitude, min(CAP, (1 << 61) // (int(degree) + 4)))
        self.magnitude, self.prices = magnitude, np.zeros(len(model.limits))
        self.charged: dict[int, Array] = {}
        sizes = [len(costs) for costs in model.costs]
        self.first = np.cumsum([0, *sizes])[:-1]
        self.costs = np.concatenate([np.zeros(0, dtype=np.int64), *self.priced.nodes])
        self.theta = [self.costs[first : first + size] for first, size in zip(self.first.tolist(), sizes, strict=True)]
        self.conditional = [np.full(size, -FORBIDDEN) for size in sizes]
        self.visited = [[0] * len(sizes) for _ in range(2)]
        later: list[list[int]] = [[] for _ in sizes]
        earlier: list[list[int]] = [[] for _ in sizes]
        for u, w in model.edges:
            later[u].append(w)
            earlier[w].append(u)
        self.place: dict[tuple[int, int], int] = {}  # of the messages to the first from the edge with the second
        length = 0
        for u, size in enumerate(sizes):
            for w in (*later[u], *earlier[u]):
                self.place[u, w] = length
                length += size
        self.messages = np.zeros(length, dtype=np.int64)
        self.alike = {pair: _alike_at(edge) for pair, edge in model.edges.items()} if alike is None else alike
        self.later = [self._fan(u, others) for u, others in enumerate(later)]
        self.earlier = [self._fan(u, others) for u, others in enumerate(earlier)]
        self._pull(model.edges)

    def _fan(self, u: int, others: list[int]) -> _Fan:
        model, size = self.model, len(self.model.costs[u])
        rows = [len(model.costs[w]) for w in others]
        parts = [self.priced.edge(u, w) for w in others]
        at_once = len(others) > 1 and size * sum(rows) <= AT_ONCE
        place = self.place[u, others[0]] if others else 0
        own = self.messages[place : place + len(others) * size].reshape(len(others), size)
        theta = [np.arange(self.first[w], self.first[w] + count) for w, count in zip(others, rows, strict=True)]
        back = [np.arange(self.place[w, u], self.place[w, u] + count) for w, count in zip(others, rows, strict=True)]
        none = np.zeros(0, dtype=np.int64)
        starts = np.cumsum([0, *rows])[:-1]
        edge = np.repeat(np.arange(len(rows)), rows)
        groups = [self._groups(u, w) for w in others]
        together = np.concatenate(parts, axis=1) if at_once else None
        return _Fan(others, parts, together, own, edge, starts, np.concatenate([none, *theta]), np.concatenate([none, *back]), groups)

    def _groups(self, u: int, w: int) -> _Groups | None:
        """The groups of the first of two nodes."""
        alike = self.alike[min(u, w), max(u, w)]
        return None if alike is None else _Groups.of(alike if u < w else alike[::-1], self.priced.edge(u, w))

    @property
    def model(self) -> Model:
        """Over which messages pass."""
        return self.priced.model

    @property
    def value(self) -> int:
        """The bound, scaled, without the model's constant."""
        least = np.minimum.reduceat(self.costs, self.first) if len(self.first) else self.costs
        return self.priced.offset + sum(least.tolist())

    @property
    def bound(self) -> int:
        """The bound on the cost of every choice within the limits."""
        return self.priced.unscaled(self.value)

    def improve(self, sweeps: int, deadline: float | None = None) -> None:
        """Sweep until the bound stands still, so many times at most."""
        last = self.value
        for _ in range(sweeps):
            self.sweep()
            if deadline is not None and perf_counter() > deadline:
                break
            if self.value - last <= abs(self.value) >> (22 if sweeps == FEW else 27):
                break
            last = self.value

    def conditionals(self, sweeps: int = 2) -> list[Array]:
        """For each strategy the bound on the cost of the choices that use it, the best of so many more sweeps."""
        self.conditional = [np.full(len(costs), -FORBIDDEN) for costs in self.theta]
        for _ in range(sweeps):
            self.sweep(collect=True)
        return [self.priced.unscaled_all(costs) for costs in self.conditional]

    def sweep(self, *, collect: bool = False) -> None:
        """Forwards and backwards through all nodes, once; with `collect` the bounds on strategies are noted on the way."""
        nodes = range(len(self.theta))
        for order, fans, best in ((nodes, self.later, self.visited[0]), (reversed(nodes), self.earlier, self.visited[1])):
            value = self.value if collect else 0
            for u in order:
                theta, fan = self.theta[u], fans[u]
                best[u] = int(theta.argmin())
                if collect:
                    np.maximum(self.conditional[u], theta + (value - int(theta[best[u]])), out=self.conditional[u])
                    value -= self._least(u, fan)
                if fan.others:
                    self._hand_on(u, fan)
                if collect:
                    value += self._least(u, fan)

    def _least(self, u: int, fan: _Fan) -> int:
        """What a node and those of a fan add to the bound."""
        others = np.minimum.reduceat(self.costs[fan.theta], fan.starts).tolist() if fan.others else []
        return int(self.theta[u].min()) + sum(others)

    def _hand_on(self, u: int, fan: _Fan) -> None:
        theta = self.theta[u]
        share = theta // max(len(self.later[u].others), len(self.earlier[u].others))
        own = fan.own
        own -= share
        if fan.together is not None:
            messages = np.minimum.reduce(fan.together - own.T[:, fan.edge], 0)
        else:
            messages = np.concatenate(
                [
                    groups.messages(to) if groups is not None else np.minimum.reduce(part - to[:, None], 0)
                    for part, to, groups in zip(fan.parts, own, fan.groups, strict=True)
                ]
            )
        self.costs[fan.theta] += messages - self.messages[fan.back]
        self.messages[fan.back] = messages
        theta -= share * len(own)

    def decode(self) -> tuple[int, ...]:
        """Node by node the strategy that suits those decided and, by the messages, those to come."""
        chosen: list[int] = []
        for u, theta in enumerate(self.theta):
            fan = self.earlier[u]
            total = theta
            if fan.others:
                total = theta + sum(part[:, chosen[w]] for part, w in zip(fan.parts, fan.others, strict=True)) - fan.own.sum(0)
            chosen.append(int(total.argmin()))
        return tuple(chosen)

    def leaning(self) -> list[list[int]]:
        """What the bound leans on: the cheapest strategy of each node when it was visited last, forwards and backwards."""
        return self.visited

    def received(self, u: int, w: int) -> Array:
        """The messages to a node from the edge with another."""
        place = self.place[u, w]
        return self.messages[place : place + len(self.theta[u])]

    def receive(self, messages: Mapping[tuple[int, int], Array]) -> None:
        """Go on with these messages to the first node from the edge with the second, and with the others as they are."""
        for (u, w), message in messages.items():
            before = self.received(u, w)
            self.theta[u] += message - before
            before[:] = message
        self._pull(self.model.edges)

    def narrowed(self, kept: Sequence[Array]) -> Passing:
        """The same messages under the same prices, between only the strategies `kept` of each node."""
        alike = {(u, w): None if known is None else _alike_among(known, kept[u], kept[w]) for (u, w), known in self.alike.items()}
        found = Passing(chosen_from(self.model, kept), self.magnitude, alike)
        found.set_prices(self.prices)
        found.receive({(u, w): self.received(u, w)[kept[u]] for u, w in self.place})
        for u, more in self.charged.items():
            found.charge(u, more[kept[u]])
        return found

    def charge(self, u: int, costs: Array) -> None:
        """Let a node cost so much more, by strategy, for as long as the model and the prices stay."""
        self.charged[u] = self.charged.get(u, 0) + costs
        self.theta[u] += costs * self.priced.scale
        self.priced.nodes[u] = self.priced.nodes[u] + costs * self.priced.scale

    def charge_only(self, charged: Mapping[int, Array]) -> None:
        """Let nodes cost so much more as they did when `charged` was this."""
        for u, more in self.charged.copy().items():
            self.charge(u, charged.get(u, 0) - more)

    def set_model(self, model: Model) -> None:
        """Go on with a model of the same nodes, strategies and edges, without prices; what the messages have moved stays moved."""
        before = list(self.priced.nodes)
        self.priced.set_model(model)
        self.alike = {pair: _alike_at(edge) for pair, edge in model.edges.items()}
        self._recharge(range(len(before)), before, model.edges, regroup=True)

    def set_prices(self, rows: Array, *, whole: bool = False, weights: Array | None = None) -> None:
        """Go on under other prices of the rows (in cost per unit of use); what the messages have moved stays moved.

        With `weights` some pay more than others (see Priced), and nothing is bounded.
        """
        self.prices = rows
        before = list(self.priced.nodes)
        self.priced.set_prices(rows, whole=whole, weights=weights)
        self._recharge(self.priced.charged_nodes, before, self.priced.charged_edges)

    def _recharge(self, nodes: Iterable[int], before: list[Array], edges: Collection[tuple[int, int]], *, regroup: bool = False) -> None:
        """Take over what nodes, charged as `before`, and edges are charged now."""
        for u in nodes:
            self.theta[u] += self.priced.nodes[u] - before[u]
        for u, w in edges:
            matrix = self.priced.edges[u, w]
            for fan, own, other, charged in ((self.later[u], u, w, matrix), (self.earlier[w], w, u, matrix.T)):
                number = fan.others.index(other)
                fan.parts[number] = charged
                if fan.together is not None:
                    fan.together[:, fan.rows(number)] = charged
                groups = fan.groups[number]
                if regroup:
                    fan.groups[number] = self._groups(own, other)
                elif groups is not None:
                    groups.matrix = charged[np.ix_(*groups.first)]
        self._pull(edges)

    def _pull(self, edges: Iterable[tuple[int, int]]) -> None:
        """Move what edges hold to their ends, so that their minima are 0."""
        for u, w in edges:
            matrix, theta_u, theta_w = self.priced.edges[u, w], self.theta[u], self.theta[w]
            to_u = self.messages[self.place[u, w] :][: len(theta_u)]
            to_w = self.messages[self.place[w, u] :][: len(theta_w)]
            message = (matrix - to_u[:, None]).min(0)
            theta_w += message - to_w
            to_w[:] = message
            message = (matrix - to_w).min(1)
            theta_u += message - to_u
            to_u[:] = message
