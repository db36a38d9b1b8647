"""The solver against brute force: same optimum, honest bound, and the evaluation it claims."""

from functools import cache

import pytest
from problems import Tried, random_problem, small_problem, tried

from autoplan.planner.problem import NoneCheaper, Problem, Solution, evaluate, is_feasible
from autoplan.planner.solve import smallest_memory, solve

SEEDS = range(200)


@cache
def case(seed: int) -> tuple[Problem, Tried]:
    problem = small_problem(seed)
    return problem, tried(problem)


@pytest.mark.parametrize("seed", SEEDS)
def test_the_solver_finds_what_trying_everything_finds(seed: int) -> None:
    problem, best = case(seed)
    solution = solve(problem)
    if best.cost is None:
        assert solution is None
        return
    assert solution is not None and solution.status == "optimal"
    assert is_feasible(problem, solution.choice) and evaluate(problem, solution.choice).cost == solution.cost
    assert solution.bound <= best.cost <= solution.cost < solution.bound + problem.tie


@pytest.mark.parametrize("seed", SEEDS[:100])
def test_a_cutoff_is_beaten_or_proved(seed: int) -> None:
    """At the optimum itself there is nothing cheaper, one above it is the optimum; farther away by turns."""
    problem, best = case(seed)
    if best.cost is None:
        assert not isinstance(solve(problem, cutoff=100), Solution)
    elif seed % 2:
        cutoff = (best.cost, best.cost - 1, best.cost // 2)[seed // 2 % 3]
        none = solve(problem, cutoff=cutoff)
        assert isinstance(none, NoneCheaper) and cutoff <= none.bound <= best.cost
    else:
        cutoff = (best.cost + 1, 2 * best.cost + 1)[seed // 2 % 2]
        found = solve(problem, cutoff=cutoff)
        assert isinstance(found, Solution) and found.status == "optimal" and is_feasible(problem, found.choice)
        assert found.bound <= best.cost <= found.cost < min(cutoff, best.cost + problem.tie)


@pytest.mark.parametrize("seed", SEEDS)
def test_the_smallest_memory_is_the_smallest(seed: int) -> None:
    problem, best = case(seed)
    solution = smallest_memory(problem)
    if best.peak is None:
        assert solution is None
        return
    assert solution is not None and solution.status == "optimal"
    assert solution.cost == solution.bound == best.peak == max(evaluate(problem, solution.choice).memory)


def test_some_random_problems_are_infeasible_and_most_are_not() -> None:
    infeasible = sum(case(seed)[1].cost is None for seed in SEEDS)
    assert 0 < infeasible < len(SEEDS) / 2


def test_limits_decide_most_optima() -> None:
    """Problems whose memory rows never matter would prove nothing about them."""
    binding = 0
    for seed in SEEDS[::5]:
        problem, best = case(seed)
        unlimited = tried(Problem(problem.nodes, problem.values, (1 << 40,) * len(problem.limits), problem.peaks, 1.0, 1))
        binding += unlimited.cost != best.cost
    assert binding > len(SEEDS[::5]) / 2


def test_the_same_problem_gives_the_same_choice() -> None:
    problem = random_problem(7, nodes=6)
    first, second = solve(problem), solve(problem)
    assert first is not None and first == second
