"""No known solution is ever pruned: reductions keep one as good after every step, bounds never exceed what it costs."""

from __future__ import annotations

from functools import cache
from itertools import product
from random import Random

import numpy as np
import pytest
from planner_cases import built, llama_module, mlp_module, request
from problems import small_problem
from random_models import choices, random_model
from witness import Watched

from autoplan.planner.pairwise import extended, model_of
from autoplan.planner.problem import Problem, evaluate, is_feasible
from autoplan.planner.shares import SharedBound
from autoplan.planner.solve import smallest_memory, solve
from autoplan.planner.solver.reduce import _Reducer


@cache
def feasible(seed: int) -> dict[tuple[int, ...], int]:
    return choices(random_model(seed))


@pytest.mark.parametrize("seed", range(100))
def test_reductions_of_random_models_keep_every_planted_solution(seed: int) -> None:
    """The cheapest choice, the dearest and one between."""
    model, cost = random_model(seed), feasible(seed)
    known = sorted(cost, key=lambda choice: (cost[choice], choice))
    for planted in dict.fromkeys((*known[:1], *known[len(known) // 2 :][:1], *known[-1:])):
        watched = Watched(model, planted)
        watched.run(None)
        _, trail = watched.result()
        assert watched.checks > len(model.costs)
        assert len(trail.expand([watched.chosen[u] for u in trail.nodes])) == len(planted)


def test_a_reduction_that_loses_the_planted_solution_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is watched must be able to fail: here strategies are dropped whatever memory they save."""
    monkeypatch.setattr(_Reducer, "_drop_dominated", lambda self, u: self._keep(u, np.arange(len(self._costs(u))) == 0))
    with pytest.raises(AssertionError, match="dropping dominated strategies"):
        for seed in range(20):
            for planted in feasible(seed):
                Watched(random_model(seed), planted).run(None)


@pytest.mark.parametrize("tight", [False, True], ids=["ample", "tight"])
@pytest.mark.parametrize("name", ["mlp", "llama"])
def test_reductions_of_a_planners_problem_keep_its_solutions(name: str, tight: bool) -> None:
    """The optimum, and random choices that fit; with tight memory the limit is a tenth above the least."""
    problem = planners_problem(name, tight)
    solution = solve(problem)
    assert solution is not None and solution.status == "optimal"
    random = Random(0)
    drawn = (tuple(random.randrange(len(node.costs)) for node in problem.nodes) for _ in range(200))
    planted = [solution.choice, *[choice for choice in drawn if is_feasible(problem, choice)][:2]]
    model = model_of(problem)
    for choice in planted:
        watched = Watched(model, extended(model, choice), changes_only=True)
        watched.run(None)
        reduced, _ = watched.result()
        assert watched.checks > 0 and reduced.strategies < model.strategies


@cache
def planners_problem(name: str, tight: bool) -> Problem:
    module = {"mlp": mlp_module, "llama": llama_module}[name]()
    if not tight:
        return built(module, request("4")).problem
    found = smallest_memory(built(module, request("4", memory_gib=1.0)).problem)
    assert found is not None
    unit_gib = built(module, request("4", memory_gib=1.0)).problem.unit_bytes / 2**30
    return built(module, request("4", memory_gib=1.1 * found.cost * unit_gib)).problem


@pytest.mark.parametrize("seed", range(40))
def test_no_bound_of_a_strategy_exceeds_what_a_choice_with_it_costs(seed: int) -> None:
    """So a threshold at or above the cost of a choice keeps all strategies of it."""
    problem = small_problem(seed)
    known = [
        (choice, result.cost)
        for choice in product(*(range(len(node.costs)) for node in problem.nodes))
        if is_feasible(problem, choice) and (result := evaluate(problem, choice)).cost is not None
    ]
    bounds = SharedBound(problem, None)
    least = min((cost for _, cost in known), default=0)
    for threshold in (None, least, least + 3):
        below = bounds.below if threshold is None else bounds.within(threshold)
        assert below is not None, "small enough to be eliminated"
        for choice, cost in known:
            if threshold is None or cost <= threshold:
                assert below.value <= cost
                assert all(conditional[s] <= cost for conditional, s in zip(below.conditional, choice, strict=True))
