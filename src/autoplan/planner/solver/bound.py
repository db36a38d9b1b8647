"""The strongest lower bound that messages and prices of memory give, and the choices met on the way."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from time import perf_counter

import numpy as np

from autoplan.planner.solver.either import Either
from autoplan.planner.solver.eliminate import Elimination
from autoplan.planner.solver.model import Array
from autoplan.planner.solver.narrowing import Narrowing
from autoplan.planner.solver.passing import FEW, MANY, SOME, Passing
from autoplan.planner.solver.prices import Cuts

ROUNDS = 150  # of moving prices, at most
PROGRESS = 1e-5  # of the bound
PATIENCE = 15  # rounds without progress
TOWARDS, TOWARDS_PATIENCE = 0.05, 3  # the same on the way to a target: of what is lacking, and rounds without so much


@dataclass(frozen=True, slots=True)
class Bound:
    """`value` bounds every choice from below, `conditional[u][s]` every choice with strategy s of u; `prices` are the rows'."""

    value: int
    conditional: tuple[Array, ...]
    prices: Array


Engine = Passing | Elimination | Either | Narrowing
Meet = Callable[[Sequence[int], Array], int | None]


def bound(
    engine: Engine,
    prices: Array,
    meet: Meet,
    deadline: float | None,
    *,
    simplex: bool = False,
    until: Callable[[], bool] | None = None,
    target: int | None = None,
) -> Bound:
    """Sweep, look at the choice that the messages suggest, move prices towards what it uses too much of, and again.

    `meet(choice, used)` is told each choice with what it uses, and answers the cost of the best one known, None while there
    is none. With `simplex` the prices add up to 1 (to bound the greatest row), else they are any from 0 up. It ends when the bound
    gets no better, or `until` says so; of a part that can be cut in two, sooner: once it hardly comes closer to the `target`, from
    which on a bound leaves nothing to look for.
    """
    cuts = Cuts(prices, simplex=simplex)
    patience = PATIENCE if target is None else TOWARDS_PATIENCE
    mark, idle = -1e300, 0
    for round_ in range(ROUNDS):
        engine.set_prices(prices, whole=simplex)
        engine.improve(FEW if round_ else SOME, deadline)
        cuts.add(prices, engine.bound, _excess(engine))
        choice = engine.decode()
        known = meet(choice, engine.model.used_by(choice))
        progress = max(abs(mark) * PROGRESS, 0.0 if target is None else TOWARDS * (target - mark))
        idle = 0 if cuts.value > mark + progress else idle + 1
        mark = mark if idle else cuts.value
        is_enough = any(at_most is not None and cuts.value >= at_most for at_most in (known, target)) or (until is not None and until())
        if idle >= patience or is_enough or not len(prices):
            break
        if deadline is not None and perf_counter() > deadline:
            break
        more = cuts.best()
        if more is None and not engine.exact:
            engine.set_prices(cuts.center, whole=simplex)
            engine.improve(FEW, deadline)
            cuts.stay(engine.bound, _excess(engine))
            more = cuts.best()
        if more is None:
            break
        prices = more
    below = _conclude(engine, cuts.center, int(cuts.value), FEW if is_enough else MANY, deadline, simplex=simplex)
    if not engine.exact:
        choice = engine.decode()
        meet(choice, engine.model.used_by(choice))
    return below


def _excess(engine: Engine) -> Array:
    """What the choices that the bound leans on use above every limit, on average."""
    model, choices = engine.model, engine.leaning()
    return sum(model.used_by(choice) for choice in choices) / len(choices) - model.limits


def _conclude(engine: Engine, prices: Array, best: int, sweeps: int, deadline: float | None, *, simplex: bool) -> Bound:
    """The bounds on strategies under the best prices, after so many sweeps at most."""
    is_late = deadline is not None and perf_counter() > deadline
    if is_late and engine.exact:
        return Bound(best, tuple(np.full(len(costs), best) for costs in engine.model.costs), prices)
    engine.set_prices(prices, whole=simplex)
    engine.improve(FEW if is_late else sweeps, deadline)
    value = max(best, engine.bound)
    return Bound(value, tuple(np.maximum(costs, value) for costs in engine.conditionals()), prices)
