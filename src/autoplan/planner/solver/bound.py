"""The strongest lower bound that messages and prices of memory give, and the choices met on the way."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from time import perf_counter

import numpy as np

from autoplan.planner.solver.either import Either
from autoplan.planner.solver.eliminate import Elimination
from autoplan.planner.solver.model import Array
from autoplan.planner.solver.passing import Passing
from autoplan.planner.solver.prices import Cuts

ROUNDS = 60  # of moving prices, at most
PATIENCE = 4  # rounds without a better bound
CLOSE = 1e-7  # of the bound: prices that might improve it by no more are good enough


@dataclass(frozen=True, slots=True)
class Bound:
    """`value` bounds every choice from below, `conditional[u][s]` every choice with strategy s of u; `prices` are the rows'."""

    value: int
    conditional: tuple[Array, ...]
    prices: Array


Engine = Passing | Elimination | Either
Meet = Callable[[Sequence[int], Array], int | None]


def bound(engine: Engine, prices: Array, meet: Meet, deadline: float | None, *, simplex: bool = False) -> Bound:
    """Sweep, look at the choice that the messages suggest, move prices towards what it uses too much of, and again.

    `meet(choice, used)` is told each choice with what it uses, and answers the cost of the best one known, None while there
    is none. With `simplex` the prices add up to 1 (to bound the greatest row), else they are any from 0 up.
    """
    cuts = Cuts(len(engine.model.limits), simplex=simplex)
    best, best_prices, idle = -(1 << 100), prices, 0
    for round_ in range(ROUNDS):
        engine.set_prices(prices, whole=simplex)
        engine.improve(not round_, deadline)
        choice, model = engine.decode(), engine.model
        used = model.used_by(choice)
        known = meet(choice, used)
        idle = 0 if engine.bound > best + abs(best) * 1e-6 else idle + 1
        if engine.bound > best:
            best, best_prices = engine.bound, prices
        if idle >= PATIENCE or (known is not None and best >= known) or not len(used):
            break
        if deadline is not None and perf_counter() > deadline:
            break
        cost = model.cost_of(choice)
        if cost is None:
            break
        cuts.add(cost, used - model.limits, abs(best))
        allowed = cuts.best()
        if allowed is None:
            break
        most, reached = allowed
        if most <= best + CLOSE * abs(best) or (not cuts.priced):
            break
        prices = reached if idle < 2 else (reached + best_prices) / 2
    return _conclude(engine, best_prices, best, deadline, simplex=simplex)


def _conclude(engine: Engine, prices: Array, best: int, deadline: float | None, *, simplex: bool) -> Bound:
    """The bounds on strategies under the best prices."""
    if deadline is not None and perf_counter() > deadline:
        return Bound(best, tuple(np.full(len(costs), best) for costs in engine.model.costs), prices)
    engine.set_prices(prices, whole=simplex)
    engine.improve(True, deadline)
    value = max(best, engine.bound)
    return Bound(value, tuple(np.maximum(costs, value) for costs in engine.conditionals()), prices)
