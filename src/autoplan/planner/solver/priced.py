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

    def edge(self, u: int, w: int) -> Array:
        """The matrix of an edge, a row for each strategy of u."""
        return self.edges[u, w] if u < w else self.edges[w, u].T

    def set_prices(self, rows: Array, *, whole: bool = False) -> None:
        """Charge other prices of the rows, in cost per unit of use; if `whole`, they add up to 1 after rounding too."""
        scaled = np.minimum(np.round(rows * self.scale), self.cap).astype(np.int64)  # lower prices only lower the bound
        if whole:
            scaled[scaled.argmax()] += self.scale - scaled.sum()
        self.offset = -sum(int(scaled[row]) * int(self.model.limits[row]) for row in np.flatnonzero(scaled))
        charges = self.model.tally.charges(scaled)
        for number, u in enumerate(self.charged_nodes):
            self.nodes[u] = self._charged(self.model.costs[u], self.model.usage[u], scaled, number, charges)
        for number, pair in enumerate(self.charged_edges, len(self.charged_nodes)):
            edge = self.model.edges[pair]
            self.edges[pair] = self._charged(edge.cost, edge.usage, scaled, number, charges)

    def unscaled(self, value: int) -> int:
        """The least cost whose scaled amount is at least `value`."""
        return -(-value // self.scale) + self.model.constant

    def unscaled_all(self, values: Array) -> Array:
        """The same for many."""
        return -(-values // self.scale) + self.model.constant

    def _scaled(self, costs: Array) -> Array:
        return np.minimum(costs, self.cap // self.scale) * self.scale

    def _charged(self, costs: Array, usage: Usage, rows: Array, owner: int, charges: dict[int, Array | None]) -> Array:
        total = self._scaled(costs)
        if owner not in charges:
            return total
        charge = charges[owner]
        if charge is not None:
            return np.minimum(total + charge.reshape(total.shape), self.cap)
        for span, amounts in usage.items():
            price = int(rows[span.rows].sum())
            if price:
                total = np.minimum(total + np.minimum(amounts, self.cap // price) * price, self.cap)
        return total
