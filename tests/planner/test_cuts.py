"""Prices found by cutting planes against the best there are, where the choices behind a bound can be counted."""

from __future__ import annotations

import numpy as np
import pytest

from autoplan.planner.solver.prices import Cuts

ROUNDS = 200


@pytest.mark.parametrize("seed", range(30))
@pytest.mark.parametrize("simplex", [False, True], ids=["from 0 up", "adding up to 1"])
def test_prices_end_where_no_others_bound_more(seed: int, simplex: bool) -> None:
    """The bound at prices is the least of a few choices' costs and what they pay; with two rows the best prices are on a fine grid."""
    random = np.random.default_rng(seed)
    costs = random.integers(10, 100, 6).astype(float)
    excess = random.integers(-20, 20, (6, 2)).astype(float)
    excess[0] = -5  # a choice that fits, so that no price is worth more than it costs

    def lowest(prices: np.ndarray) -> int:
        return int((costs + excess @ prices).argmin())

    def value(prices: np.ndarray) -> float:
        return float((costs + excess @ prices).min())

    prices = np.full(2, 0.5) if simplex else np.zeros(2)
    cuts = Cuts(prices, simplex=simplex)
    for _ in range(ROUNDS):
        cuts.add(prices, value(prices), excess[lowest(prices)])
        more = cuts.best()
        if more is None:
            break
        prices = more
        assert (prices >= 0).all() and (not simplex or abs(prices.sum() - 1) < 1e-9)
    grid = np.linspace(0, 1, 101) if simplex else np.linspace(0, 20, 81)
    best = max(value(np.array([p, 1 - p])) if simplex else value(np.array([p, q])) for p in grid for q in ([0.0] if simplex else grid))
    # prices that promise less than a ten millionth more are not looked at
    assert cuts.value >= best - 1e-4
