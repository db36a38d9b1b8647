"""Better choices: never worse, always within the limits, and on small problems mostly the best there is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import product
from random import Random
from time import perf_counter

import numpy as np
import pytest
from random_models import choices, peaks, random_model

from autoplan.planner.solver.bound import bound
from autoplan.planner.solver.combine import combined
from autoplan.planner.solver.gather import Gathering
from autoplan.planner.solver.improve import Improver, Meet
from autoplan.planner.solver.model import FORBIDDEN, Array, Model, Span
from autoplan.planner.solver.neighbourhood import Neighbourhoods
from autoplan.planner.solver.passing import Passing
from autoplan.planner.solver.rows import without_superfluous_rows
from autoplan.planner.solver.search import minimise_cost
from autoplan.planner.solver.thin import ThinPart
from autoplan.planner.solver.uneven import Uneven

SEEDS = range(60)


def forests(model: Model, meet: Meet) -> None:
    Improver(model, 40, [0] * len(model.costs), np.zeros(len(model.limits)), meet).run(30, None)


def uneven_prices(model: Model, meet: Meet) -> None:
    Uneven(model, 40, np.zeros(len(model.limits)), meet).run(40, None)


@pytest.mark.parametrize("walk", [forests, uneven_prices])
def test_walks_lead_to_the_optimum_of_most_small_problems(walk: Callable[[Model, Meet], None]) -> None:
    reached = []
    for seed in SEEDS:
        model, possible = random_model(seed), choices(random_model(seed))
        if not possible:
            continue
        met: list[int] = []

        def meet(choice: Sequence[int], used: Array, possible: dict[tuple[int, ...], int] = possible, met: list[int] = met) -> int | None:
            assert (used == model.used_by(choice)).all()  # noqa: B023  # called before the next model
            if tuple(choice) in possible:
                met.append(possible[tuple(choice)])
            return min(met, default=None)

        walk(model, meet)
        reached.append(min(met, default=None) == min(possible.values()))
    assert len(reached) > 30 and np.mean(reached) > 0.8


def test_neighbourhoods_as_large_as_the_problem_end_at_the_optimum() -> None:
    compared = 0
    for seed in SEEDS:
        model, possible = random_model(seed), choices(random_model(seed))
        if not possible:
            continue
        around = Neighbourhoods(model, max(possible, key=lambda choice: model.cost_of(choice) or 0))
        for _ in range(12):
            cost = model.cost_of(around.choice)
            assert cost is not None and (around.used == model.used_by(around.choice)).all()
            improved = around.step(None)
            assert (possible[tuple(around.choice)] < cost) == improved
        if _connected(model):
            compared += 1
            assert possible[tuple(around.choice)] == min(possible.values())
    assert compared > 5


def _connected(model: Model) -> bool:
    found = {0}
    for _ in model.costs:
        found |= {w for pair in model.edges if found & set(pair) for w in pair}
    return len(found) == len(model.costs)


def test_a_deadline_in_the_past_still_gives_an_honest_bound() -> None:
    for seed in SEEDS:
        model, possible = random_model(seed), choices(random_model(seed))
        result = minimise_cost(model, perf_counter() - 1)
        if result is None:
            assert not possible
            continue
        assert result.bound <= min(possible.values(), default=result.bound)
        if result.choice is not None:
            assert possible[result.choice] == result.cost


def test_fewer_rows_keep_the_same_choices() -> None:
    dropped = 0
    for seed in SEEDS:
        random = np.random.default_rng(seed)
        usage = [{Span(int(s), int(s) + int(random.integers(1, 5))): random.integers(0, 5, 2)} for s in random.integers(0, 4, 5)]
        model = Model([np.zeros(2, dtype=np.int64)] * 5, usage, {}, random.integers(4, 9, 8))
        fewer, stands_for = without_superfluous_rows(model, limited=True)
        assert len(stands_for) == 8 and stands_for.max(initial=-1) < len(fewer.limits)
        assert all(model.fits(choice) == fewer.fits(choice) for choice in peaks(model))
        dropped += 8 - len(fewer.limits)
    assert dropped > 2 * len(SEEDS)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_narrow_part_is_chosen_as_well_as_it_can_be(seed: int) -> None:
    """Against every choice of its nodes, the others as they are; with small tables some nodes are left as they are, else none."""
    model = random_model(seed)
    sizes = [len(costs) for costs in model.costs]

    def edge(u: int, w: int) -> Array:
        return model.edges[u, w].cost if u < w else model.edges[w, u].cost.T

    for largest in (1, 12, 10_000):
        part = ThinPart(model.neighbours(), sizes, Random(seed), largest)
        free = np.flatnonzero(~part.is_fixed)
        assert len(free) == len(sizes) or largest < 10_000
        chosen = np.array([Random(seed + u).randrange(size) for u, size in enumerate(sizes)])

        alone = [
            model.costs[u] + np.sum([edge(w, u)[chosen[w]] for w in others if part.is_fixed[w]], axis=0, dtype=np.int64)
            for u, others in enumerate(model.neighbours())
        ]

        def total(choice: Sequence[int]) -> int:
            cost = model.cost_of(choice)
            return FORBIDDEN if cost is None else cost

        possible = product(*([int(chosen[u])] if part.is_fixed[u] else range(size) for u, size in enumerate(sizes)))
        least = min(map(total, possible))
        part.choose(chosen, alone, edge)
        assert total(chosen.tolist()) == least or least == FORBIDDEN


def test_hubs_and_forests_are_chosen_as_well_as_they_can_be() -> None:
    """Against every choice of the hubs and the forest around them, the others as they are."""
    pairs = 0
    for seed in SEEDS:
        model = random_model(seed)
        walk = Improver(model, 40, [0] * len(model.costs), np.zeros(len(model.limits)), lambda choice, used: None, seed)
        hubs = walk._hubs() if seed % 2 else [(0, 1)]
        pairs += max(map(len, hubs)) > 1
        forest = walk._forest({u: number for number, group in enumerate(hubs) for u in group})
        free = {*forest, *(u for group in hubs for u in group)}
        possible = list(product(*(range(len(costs)) if u in free else [0] for u, costs in enumerate(model.costs))))
        least = min(_possible_cost(model, choice) for choice in possible)
        walk._choose(forest, hubs)
        assert _possible_cost(model, walk.choice) == least or least == FORBIDDEN
    assert pairs > 20


def _possible_cost(model: Model, choice: Sequence[int]) -> int:
    cost = model.cost_of(choice)
    return FORBIDDEN if cost is None else cost


def test_choices_combined_are_as_good_as_any_between_them() -> None:
    """CP-SAT comes to an end on problems so small, so that the best of all that the choices make up is found."""
    better = 0
    for seed in SEEDS:
        model, possible = random_model(seed), choices(random_model(seed))
        if len(possible) < 3:
            continue
        some = sorted(possible, key=lambda choice: possible[choice])[-3:]
        between = product(*map(set, zip(*some, strict=True)))
        least = min(possible[choice] for choice in between if choice in possible)
        found = combined(model, some, 40, None)
        better += found is not None
        assert possible[some[0] if found is None else tuple(found)] == least
    assert better > 5


def test_gathering_ends_at_the_optimum_of_most_small_problems() -> None:
    reached = []
    for seed in SEEDS:
        model, possible = random_model(seed), choices(random_model(seed))
        if not possible:
            continue
        taken: list[tuple[int, ...]] = []
        dearest = max(possible, key=lambda choice: possible[choice])
        below = bound(Passing(model, 40), np.zeros(len(model.limits)), lambda choice, used: None, None)

        def take(choice: Sequence[int], cost: int, taken: list[tuple[int, ...]] = taken) -> None:
            taken.append(tuple(choice))

        walk = Improver(model, 40, dearest, below.prices, lambda choice, used: None)
        gathering = Gathering(model, below, walk, take)
        gathering.add(possible[dearest], dearest)
        gathering.run(10, None, below.value)
        costs = [possible[choice] for choice in (dearest, *taken)]
        assert costs == sorted(costs, reverse=True) and costs[-1] == gathering.ends[0][0]
        reached.append(costs[-1] == min(possible.values()))
    assert len(reached) > 30 and np.mean(reached) > 0.9
