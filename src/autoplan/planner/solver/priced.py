"""A model's costs with memory charged at a price, as scaled integers."""

from __future__ import annotations

import numpy as np

from autoplan.planner.solver.model import Array, Model, Usage

BITS = 50  # of a good choice's scaled cost
CAP = 1 << 57  # the most that a node or edge is charged, forbidden or not: lower costs only lower the bound


class Priced:
    """`nodes[u][s]` and `edge(u, w)[s, t]`, whose sum and `offset` bound a choice within the limits: prices count use above them."""

    def __init__(self, model: Model, magnitude: int, cap: int = CAP) -> None:
        """`magnitude` is about the cost of a good choice: it sets the scale."""
        self.cap = cap
        self.scale = 1 << max(0, BITS - max(1, magnitude).bit_length())
        self.set_model(model)

    def set_model(self, model: Model) -> None:
        """Begin again, without prices, with a model whose costs and usage may be others."""
        self.model = model
        self.offset = 0
        self.nodes = [self._scaled(costs) for costs in model.costs]
        self.edges = {pair: self._scaled(edge.cost) for pair, edge in model.edges.items()}
        self.charged_nodes = [u for u, usage in enumerate(model.usage) if usage]
        self.charged_edges = [pair for pair, edge in model.edges.items() if edge.usage]
        uncharged = [self.nodes[u] for u in self.charged_nodes] + [self.edges[pair].ravel() for pair in self.charged_edges]
        self.uncharged = np.concatenate([np.zeros(0, dtype=np.int64), *uncharged])

    def edge(self, u: int, w: int) -> Array:
        """The matrix of an edge, a row for each strategy of u."""
        return self.edges[u, w] if u < w else self.edges[w, u].T

    def set_prices(self, rows: Array, *, whole: bool = False, weights: Array | None = None) -> None:
        """Charge other prices of the rows, in cost per unit of use; if `whole`, they add up to 1 after rounding too.

        With `weights`, a factor for each owner of the tally, some pay more than others: then nothing is bounded.
        """
        scaled = np.minimum(np.round(rows * self.scale), self.cap).astype(np.int64)  # lower prices only lower the bound
        if whole:
            scaled[scaled.argmax()] += self.scale - scaled.sum()
        self.offset = -sum(int(scaled[row]) * int(self.model.limits[row]) for row in np.flatnonzero(scaled))
        model, places = self.model, self.model.tally.place.tolist()
        paid, exceptions = model.tally.charges(scaled)
        if weights is not None:
            paid = np.clip(paid * np.repeat(weights, model.tally.sizes), -self.cap, self.cap).astype(np.int64)
        total = np.minimum(self.uncharged + paid, self.cap)
        for u, start, stop in zip(self.charged_nodes, places, places[1:], strict=False):
            self.nodes[u] = total[start:stop]
        number = len(self.charged_nodes)
        for pair, start, stop in zip(self.charged_edges, places[number:], places[number + 1 :], strict=False):
            self.edges[pair] = total[start:stop].reshape(model.edges[pair].cost.shape)
        for owner in exceptions:
            if owner < number:
                u = self.charged_nodes[owner]
                self.nodes[u] = self._charged(model.costs[u], model.usage[u], scaled)
            else:
                pair = self.charged_edges[owner - number]
                self.edges[pair] = self._charged(model.edges[pair].cost, model.edges[pair].usage, scaled)

    def unscaled(self, value: int) -> int:
        """The least cost whose scaled amount is at least `value`."""
        return -(-value // self.scale) + self.model.constant

    def unscaled_all(self, values: Array) -> Array:
        """The same for many."""
        return -(-values // self.scale) + self.model.constant

    def _scaled(self, costs: Array) -> Array:
        return np.minimum(costs, self.cap // self.scale) * self.scale

    def _charged(self, costs: Array, usage: Usage, rows: Array) -> Array:
        """One by one, where prices are so high that sums may leave 64 bits."""
        total = self._scaled(costs)
        for span, amounts in usage.items():
            price = int(rows[span.rows].sum())
            if price:
                total = np.minimum(total + np.minimum(amounts, self.cap // price) * price, self.cap)
        return total
