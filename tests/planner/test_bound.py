"""Bounds against every choice there is: on problems small enough to try them all, none is ever too high."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache

import numpy as np
import pytest
from random_models import choices, peaks, random_model

from autoplan.planner.solver import passing
from autoplan.planner.solver.bound import Bound, bound
from autoplan.planner.solver.either import Either
from autoplan.planner.solver.eliminate import Elimination
from autoplan.planner.solver.model import Array, Edge, Model, Span
from autoplan.planner.solver.narrowing import Narrowing
from autoplan.planner.solver.passing import MANY, Passing
from autoplan.planner.solver.reduce import Infeasible, reduce

Engine = Callable[[Model, int], Passing | Elimination]
ENGINES = (Passing, Elimination)
SEEDS = range(80)
MAGNITUDE = 40  # about what the cheapest choices cost


@cache
def consistent(seed: int) -> Model | None:
    """A random model whose strategies all have partners, as reductions leave it; the reductions that take nodes out are left out."""
    model = random_model(seed)
    try:
        reduce(model)
    except Infeasible:
        return None
    alive = [sorted({choice[u] for choice in peaks(model)}) for u in range(len(model.costs))]
    if not all(alive):
        return None
    return Model(
        [costs[keep] for costs, keep in zip(model.costs, alive, strict=True)],
        [{span: amounts[keep] for span, amounts in usage.items()} for usage, keep in zip(model.usage, alive, strict=True)],
        {
            (u, w): type(edge)(
                edge.cost[alive[u]][:, alive[w]], {span: amounts[alive[u]][:, alive[w]] for span, amounts in edge.usage.items()}
            )
            for (u, w), edge in model.edges.items()
        },
        model.limits,
        model.constant,
    )


def cost_bound(model: Model, engine: Engine) -> Bound:
    return bound(engine(model, MAGNITUDE), np.zeros(len(model.limits)), lambda choice, used: None, None)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("seed", SEEDS)
def test_no_choice_costs_less_than_the_bounds_of_its_strategies(seed: int, engine: Engine) -> None:
    model = consistent(seed)
    if model is None:
        return
    below = cost_bound(model, engine)
    for choice, cost in choices(model).items():
        assert below.value <= cost
        for u, s in enumerate(choice):
            assert below.conditional[u][s] <= cost, (u, s, choice)


@pytest.mark.parametrize("worse", [0, 15])
@pytest.mark.parametrize("seed", SEEDS)
def test_bounds_hold_of_every_choice_when_strategies_are_dropped_on_the_way(seed: int, worse: int) -> None:
    """Those of choices that cost more than what is of interest as well: they say no more than that."""
    model = consistent(seed)
    if model is None or not choices(model):
        return
    known = min(choices(model).values()) + worse
    engine = Narrowing(Either([Passing(model, MAGNITUDE), Passing(model, MAGNITUDE)]))

    def meet(choice: Sequence[int], used: Array) -> int:
        assert (model.used_by(choice) == used).all()
        engine.narrow(known)
        return known

    below = bound(engine, np.zeros(len(model.limits)), meet, None)
    for choice, cost in choices(model).items():
        assert below.value <= max(cost, known)
        for u, s in enumerate(choice):
            assert below.conditional[u][s] <= cost, (u, s, choice)


def test_strategies_are_dropped_on_the_way() -> None:
    """In a part of the random models, or the test before would show nothing."""
    dropped = 0
    for seed in SEEDS:
        model = consistent(seed)
        if model is not None and choices(model):
            engine = Narrowing(Either([Passing(model, MAGNITUDE)]))
            engine.improve(MANY)
            engine.narrow(min(choices(model).values()))
            dropped += sum(map(len, engine.kept)) < sum(map(len, model.costs))
    assert dropped > 10


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("seed", SEEDS)
def test_no_choice_has_a_smaller_greatest_row_than_the_bounds_say(seed: int, engine: Engine) -> None:
    model = consistent(seed)
    if model is None:
        return
    free = Model([costs * 0 for costs in model.costs], model.usage, model.edges, model.limits * 0)
    free = Model(
        free.costs,
        free.usage,
        {pair: type(e)(np.where(e.cost >= 1 << 60, e.cost, 0), e.usage) for pair, e in free.edges.items()},
        free.limits,
    )
    even = np.full(len(model.limits), 1 / len(model.limits))
    below = bound(engine(free, MAGNITUDE), even, lambda choice, used: None, None, simplex=True)
    for choice, peak in peaks(free).items():
        assert below.value <= peak
        for u, s in enumerate(choice):
            assert below.conditional[u][s] <= peak, (u, s, choice)


@pytest.mark.parametrize("engine", ENGINES)
def test_the_bounds_are_worth_having(engine: Engine) -> None:
    """A bound of nought would pass all of the above: that of half the problems must be within a tenth of the optimum."""
    gaps = []
    for seed in SEEDS:
        model = consistent(seed)
        if model is not None and (possible := choices(model)):
            gaps.append(1 - cost_bound(model, engine).value / max(1, min(possible.values())))
    assert len(gaps) > len(SEEDS) / 2 and np.median(gaps) < 0.1


@pytest.mark.parametrize("seed", SEEDS)
def test_elimination_without_memory_is_exact(seed: int) -> None:
    model = consistent(seed)
    if model is None:
        return
    unlimited = Model(
        model.costs, [{} for _ in model.costs], {pair: type(e)(e.cost) for pair, e in model.edges.items()}, model.limits, model.constant
    )
    below = cost_bound(unlimited, Elimination)
    costs = choices(unlimited)
    assert below.value == min(costs.values())
    for u, conditional in enumerate(below.conditional):
        for s, value in enumerate(conditional):
            assert value == min(cost for choice, cost in costs.items() if choice[u] == s)


@pytest.mark.parametrize("engine", ENGINES)
def test_bounds_are_exact_where_floating_point_is_not(engine: Engine) -> None:
    """Floats above 2^54 are multiples of 4: 2^54 + 3 would become 2^54 + 4, a bound above the cost itself."""
    large = 2**54 + 3
    model = Model([np.array([large, large + 1]), np.array([0, 5])], [{}, {}], {(0, 1): Edge(np.array([[0, 7], [7, 0]]))}, np.zeros(0))
    below = bound(engine(model, large), np.zeros(0), lambda choice, used: None, None)
    costs = choices(model)
    assert below.value == large == min(costs.values())
    for u, conditional in enumerate(below.conditional):
        assert conditional.dtype == np.int64
        for s, value in enumerate(conditional.tolist()):
            assert value <= min(cost for choice, cost in costs.items() if choice[u] == s)


@pytest.mark.parametrize("engine", ENGINES)
def test_prices_too_high_to_count_with_do_not_break_the_bound(engine: Engine) -> None:
    """What must be paid anyway suggests prices that, in the scale of the rest, would leave 64 bits and come back negative."""
    heavy = {Span(0, 1): np.array([300, 0])}
    model = Model([np.array([0, 5]), np.array([0, 9])], [heavy, heavy], {}, np.array([500]), 10**12)
    below = bound(engine(model, 1), np.zeros(1), lambda choice, used: None, None)
    assert 10**12 <= below.value <= min(choices(model).values()) == 10**12 + 5


@pytest.mark.parametrize("seed", range(30))
def test_strategies_that_are_alike_send_one_message_and_are_bounded_as_if_each_sent_its_own(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    random, model = np.random.default_rng(seed), random_model(seed)
    copies = [random.integers(0, len(costs), 4 * len(costs)) for costs in model.costs]
    alike = Model(
        [costs[of] + random.integers(0, 3, len(of)) for costs, of in zip(model.costs, copies, strict=True)],
        [{span: amounts[of] for span, amounts in usage.items()} for usage, of in zip(model.usage, copies, strict=True)],
        {
            (u, w): Edge(edge.cost[copies[u]][:, copies[w]], {s: amounts[copies[u]][:, copies[w]] for s, amounts in edge.usage.items()})
            for (u, w), edge in model.edges.items()
        },
        model.limits,
        model.constant,
    )

    def bounded() -> tuple[int, list[list[int]], list[float]]:
        below = cost_bound(alike, Passing)
        return below.value, [costs.tolist() for costs in below.conditional], below.prices.tolist()

    monkeypatch.setattr(passing, "AT_ONCE", 0)  # edge by edge
    each = bounded()
    monkeypatch.setattr(passing, "WORTH_GROUPING", 1)
    grouped = [groups for fan in Passing(alike, MAGNITUDE).later for groups in fan.groups]
    assert any(grouped) or not model.edges
    assert bounded() == each
