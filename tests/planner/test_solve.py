"""The solver against brute force: same optimum, honest bound, and the evaluation it claims."""

from itertools import product

import pytest
from problems import brute_force, random_problem

from autoplan.planner.problem import NoneCheaper, Solution, evaluate, is_feasible
from autoplan.planner.solve import smallest_memory, solve

SEEDS = range(60)


@pytest.mark.parametrize("seed", SEEDS)
def test_the_solver_finds_what_trying_everything_finds(seed: int) -> None:
    problem = random_problem(seed)
    solution, best = solve(problem), brute_force(problem)
    if best is None:
        assert solution is None
        return
    assert solution is not None and solution.status == "optimal"
    assert is_feasible(problem, solution.choice)
    assert evaluate(problem, solution.choice).cost == solution.cost == solution.bound == best


@pytest.mark.parametrize("seed", SEEDS)
def test_a_cutoff_is_beaten_or_proved(seed: int) -> None:
    problem = random_problem(seed)
    best = brute_force(problem)
    if best is None:
        assert not isinstance(solve(problem, cutoff=100), Solution)
        return
    for cutoff in (best // 2, best - 1, best):
        none = solve(problem, cutoff=cutoff)
        assert isinstance(none, NoneCheaper) and cutoff <= none.bound <= best
    for cutoff in (best + 1, 2 * best + 1):
        found = solve(problem, cutoff=cutoff)
        assert isinstance(found, Solution) and found.status == "optimal" and found.cost == best


def test_some_random_problems_are_infeasible_and_most_are_not() -> None:
    infeasible = sum(brute_force(random_problem(seed)) is None for seed in SEEDS)
    assert 0 < infeasible < len(SEEDS) / 2


@pytest.mark.parametrize("seed", range(20))
def test_the_smallest_memory_is_the_smallest(seed: int) -> None:
    problem = random_problem(seed)
    solution = smallest_memory(problem)
    peaks = [
        max(result.memory)
        for choice in product(*(range(len(node.costs)) for node in problem.nodes))
        if (result := evaluate(problem, choice)).cost is not None
    ]
    if not peaks:
        assert solution is None
        return
    assert solution is not None
    assert solution.cost == min(peaks)


def test_the_same_problem_gives_the_same_choice() -> None:
    problem = random_problem(7, nodes=6)
    first, second = solve(problem), solve(problem)
    assert first is not None and first == second
