"""Message passing (TRW-S): a lower bound on every choice and on every strategy, in integers from beginning to end.

Costs move between nodes and edges such that no choice's total changes; then the minima of nodes and edges add up to a lower
bound. Each visit of a node collects what its edges hold and hands equal shares on to the nodes to come (Kolmogorov,
"Convergent Tree-reweighted Message Passing for Energy Minimization", 2006). Any integer messages give an exact bound, so
nothing is lost to rounding but strength: costs are multiplied by `scale` first to keep it.

Memory joins by prices: for non-negative prices of the rows, cost + price x (used - limit) is at most the cost of any choice
within the limits.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from time import perf_counter

import numpy as np

from autoplan.planner.solver.model import FORBIDDEN, Array, Model
from autoplan.planner.solver.priced import CAP, Priced

FIRST_SWEEPS = 150  # before prices move for the first time
SWEEPS = 3  # between two moves


@dataclass(slots=True)
class _Link:
    """One edge as a node hands it on: `matrix[other, own]` and the messages to both ends."""

    other: int
    matrix: Array
    to_own: Array
    to_other: Array


class Passing:
    """The messages over a model under changing prices. `value` is the bound; `conditional[u][s]` that of strategy s, scaled."""

    exact = False  # more sweeps may bound more

    def __init__(self, model: Model, magnitude: int) -> None:
        """`magnitude` is about the cost of a good choice, for scaling."""
        degree = np.bincount([end for pair in model.edges for end in pair], minlength=1).max()
        self.priced = Priced(model, magnitude, min(CAP, (1 << 61) // (int(degree) + 4)))
        self.theta = [costs.copy() for costs in self.priced.nodes]
        self.conditional = [np.full(len(costs), -FORBIDDEN) for costs in model.costs]
        self.later: list[list[_Link]] = [[] for _ in model.costs]
        self.earlier: list[list[_Link]] = [[] for _ in model.costs]
        for u, w in model.edges:
            matrix = self.priced.edges[u, w]
            to_u, to_w = np.zeros(len(matrix), dtype=np.int64), np.zeros(matrix.shape[1], dtype=np.int64)
            self.later[u].append(_Link(w, np.ascontiguousarray(matrix.T), to_u, to_w))
            self.earlier[w].append(_Link(u, matrix, to_w, to_u))
        self.visited = [[0] * len(model.costs) for _ in range(2)]
        self._pull(model.edges)

    @property
    def model(self) -> Model:
        """Over which messages pass."""
        return self.priced.model

    @property
    def value(self) -> int:
        """The bound, scaled, without the model's constant."""
        return self.priced.offset + sum(int(theta.min()) for theta in self.theta)

    @property
    def bound(self) -> int:
        """The bound on the cost of every choice within the limits."""
        return self.priced.unscaled(self.value)

    def improve(self, first: bool, deadline: float | None = None) -> None:
        """Sweep until the bound stands still, a few times at most; many times at first."""
        last = self.value
        for _ in range(FIRST_SWEEPS if first else SWEEPS):
            self.sweep()
            if deadline is not None and perf_counter() > deadline:
                break
            if self.value - last <= abs(self.value) >> (27 if first else 22):
                break
            last = self.value

    def conditionals(self) -> list[Array]:
        """For each strategy the bound on the cost of the choices that use it."""
        for _ in range(2):
            self.sweep(collect=True)
        return [self.priced.unscaled_all(costs) for costs in self.conditional]

    def sweep(self, *, collect: bool = False) -> None:
        """Forwards and backwards through all nodes, once; with `collect` the bounds on strategies are noted on the way."""
        nodes = range(len(self.theta))
        for order, links, best in ((nodes, self.later, self.visited[0]), (reversed(nodes), self.earlier, self.visited[1])):
            value = self.value if collect else 0
            for u in order:
                best[u] = int(self.theta[u].argmin())
                if collect:
                    theta = self.theta[u]
                    np.maximum(self.conditional[u], theta + (value - int(theta.min())), out=self.conditional[u])
                    before = int(theta.min()) + sum(int(self.theta[link.other].min()) for link in links[u])
                self._hand_on(u, links[u])
                if collect:
                    value += int(self.theta[u].min()) + sum(int(self.theta[link.other].min()) for link in links[u]) - before

    def _hand_on(self, u: int, links: list[_Link]) -> None:
        if not links:
            return
        theta = self.theta[u]
        share = theta // max(len(self.later[u]), len(self.earlier[u]))
        for link in links:
            own = link.to_own
            own -= share
            message = (link.matrix - own).min(1)
            self.theta[link.other] += message - link.to_other
            link.to_other[:] = message
        theta -= share * len(links)

    def decode(self) -> tuple[int, ...]:
        """Node by node the strategy that suits those decided and, by the messages, those to come."""
        chosen: list[int] = []
        for u, theta in enumerate(self.theta):
            total = theta.copy()
            for link in self.earlier[u]:
                total += link.matrix[chosen[link.other]] - link.to_own
            chosen.append(int(total.argmin()))
        return tuple(chosen)

    def leaning(self) -> list[list[int]]:
        """What the bound leans on: the cheapest strategy of each node when it was visited last, forwards and backwards."""
        return self.visited

    def set_model(self, model: Model) -> None:
        """Go on with a model of the same nodes, strategies and edges, without prices; what the messages have moved stays moved."""
        before = list(self.priced.nodes)
        self.priced.set_model(model)
        self._recharge(range(len(before)), before, model.edges)
        self.conditional = [np.full(len(costs), -FORBIDDEN) for costs in model.costs]

    def set_prices(self, rows: Array, *, whole: bool = False) -> None:
        """Go on under other prices of the rows (in cost per unit of use); what the messages have moved stays moved."""
        before = list(self.priced.nodes)
        self.priced.set_prices(rows, whole=whole)
        self._recharge(self.priced.charged_nodes, before, self.priced.charged_edges)

    def _recharge(self, nodes: Iterable[int], before: list[Array], edges: Collection[tuple[int, int]]) -> None:
        """Take over what nodes, charged as `before`, and edges are charged now."""
        for u in nodes:
            self.theta[u] += self.priced.nodes[u] - before[u]
        for u, w in edges:
            matrix = self.priced.edges[u, w]
            self._link_to(u, w).matrix, self._link_to(w, u).matrix = np.ascontiguousarray(matrix.T), matrix
        self._pull(edges)

    def _link_to(self, u: int, w: int) -> _Link:
        return next(link for link in (self.later[u] if u < w else self.earlier[u]) if link.other == w)

    def _pull(self, edges: Iterable[tuple[int, int]]) -> None:
        """Move what edges hold to their ends, so that their minima are 0."""
        for u, w in edges:
            for node, other in ((w, u), (u, w)):
                link = self._link_to(other, node)
                message = (link.matrix - link.to_own).min(1)
                self.theta[node] += message - link.to_other
                link.to_other[:] = message
