"""What choices use and pay, counted over all spans at once, against one span after the other."""

from __future__ import annotations

import numpy as np
import pytest

from autoplan.planner.solver.model import Array, Edge, Model, Span
from autoplan.planner.solver.priced import Priced

ROWS = 12


def drawn(seed: int) -> tuple[Model, Array]:
    """A model whose nodes and edges use several spans each, some of every second or third row, and a choice."""
    random = np.random.default_rng(seed)
    sizes = random.integers(1, 4, 5)

    def usage(shape: tuple[int, ...]) -> dict[Span, Array]:
        starts = random.integers(0, ROWS, random.integers(0, 4)).tolist()
        return {Span(s, int(random.integers(s + 1, ROWS + 1)), int(random.integers(1, 4))): random.integers(0, 9, shape) for s in starts}

    edges = {(u, u + 1): Edge(random.integers(0, 9, (sizes[u], sizes[u + 1])), usage((sizes[u], sizes[u + 1]))) for u in range(4)}
    costs = [random.integers(0, 9, size) for size in sizes]
    model = Model(costs, [usage((size,)) for size in sizes], edges, random.integers(0, 20, ROWS))
    return model, random.integers(0, sizes)


@pytest.mark.parametrize("seed", range(40))
def test_a_choice_uses_what_its_strategies_and_pairs_use(seed: int) -> None:
    model, choice = drawn(seed)
    used = np.zeros(ROWS, dtype=np.int64)
    for usage, s in zip(model.usage, choice, strict=True):
        for span, amounts in usage.items():
            used[span.rows] += amounts[s]
    for (u, w), edge in model.edges.items():
        for span, amounts in edge.usage.items():
            used[span.rows] += amounts[choice[u], choice[w]]
    assert (model.used_by(choice.tolist()) == used).all()


@pytest.mark.parametrize("seed", range(40))
@pytest.mark.parametrize("dear", [False, True], ids=["at once", "where sums may leave 64 bits"])
def test_every_strategy_and_pair_pays_for_what_it_uses(seed: int, dear: bool) -> None:
    model, _ = drawn(seed)
    priced = Priced(model, 1 << 50)  # the scale is 1
    prices = np.random.default_rng(seed).integers(0, 1 << (56 if dear else 20), ROWS)
    priced.set_prices(prices.astype(float))
    charged = [int(round(float(price))) for price in prices]

    def total(cost: Array, usage: dict[Span, Array]) -> Array:
        paid = sum((amounts.astype(object) * sum(charged[span.rows]) for span, amounts in usage.items()), cost.astype(object))
        return np.minimum(np.array(paid, dtype=object), priced.cap)

    for u, costs in enumerate(model.costs):
        assert (priced.nodes[u] == total(costs, dict(model.usage[u]))).all() or dear
        assert (priced.nodes[u] <= total(costs, dict(model.usage[u]))).all()
    for pair, edge in model.edges.items():
        assert (priced.edges[pair] == total(edge.cost, dict(edge.usage))).all() or dear
        assert (priced.edges[pair] <= total(edge.cost, dict(edge.usage))).all()
