"""Bounds against every choice there is: on problems small enough to try them all, none is ever too high."""

from __future__ import annotations

from functools import cache
from itertools import product

import numpy as np
import pytest
from problems import brute_force, random_problem

from autoplan.planner.bound import Bound, bound, memory_bound
from autoplan.planner.problem import Evaluation, Problem, evaluate, is_feasible

SEEDS = range(36)
SIZES = ((4, 3), (5, 3), (6, 2))  # nodes, strategies of each: at most 243 choices
PROBLEMS = [(seed, *SIZES[seed % len(SIZES)]) for seed in SEEDS]
ROUNDING = 1e-6  # relative: what the solver allows for the floating-point error of a bound (`solve.ROUNDING`)
Case = tuple[int, int, int]


@cache
def problem_of(case: Case) -> Problem:
    seed, nodes, strategies = case
    return random_problem(seed, nodes=nodes, strategies=strategies)


@cache
def possible_choices(case: Case) -> dict[tuple[int, ...], Evaluation]:
    """Every choice without a forbidden transition, within the limits or not."""
    problem = problem_of(case)
    choices = product(*(range(len(node.costs)) for node in problem.nodes))
    return {choice: result for choice in choices if (result := evaluate(problem, choice)).cost is not None}


@cache
def bound_of(case: Case) -> Bound:
    return bound(problem_of(case))


def margin(value: float) -> float:
    return ROUNDING * max(abs(value), 1.0)


@pytest.mark.parametrize("case", PROBLEMS, ids=str)
def test_the_bound_is_never_above_the_optimum(case: Case) -> None:
    best, below = brute_force(problem_of(case)), bound_of(case)
    if best is not None:
        assert below.value <= best + margin(best)


@pytest.mark.parametrize("case", PROBLEMS, ids=str)
def test_no_strategy_is_bounded_above_any_feasible_choice_that_uses_it(case: Case) -> None:
    problem = problem_of(case)
    conditional = bound_of(case).conditional
    assert [len(costs) for costs in conditional] == [len(node.costs) for node in problem.nodes]
    for choice, result in possible_choices(case).items():
        if is_feasible(problem, choice):
            assert result.cost is not None
            for u, s in enumerate(choice):
                assert conditional[u][s] <= result.cost + margin(result.cost), (u, s, choice)


@pytest.mark.parametrize("case", PROBLEMS, ids=str)
def test_the_bound_of_the_best_strategy_of_any_node_is_the_bound_at_least(case: Case) -> None:
    below = bound_of(case)
    assert all(costs.min() >= below.value for costs in below.conditional)


@pytest.mark.parametrize("case", PROBLEMS, ids=str)
def test_a_choice_met_on_the_way_is_feasible(case: Case) -> None:
    choice = bound_of(case).choice
    assert choice is None or is_feasible(problem_of(case), choice)


@pytest.mark.parametrize("case", PROBLEMS, ids=str)
def test_the_memory_bound_is_never_above_the_smallest_greatest_row(case: Case) -> None:
    below = memory_bound(problem_of(case))
    choices = possible_choices(case)
    if not choices:
        return
    smallest = min(max(result.memory) for result in choices.values())
    assert below.value <= smallest + margin(smallest)
    for choice, result in choices.items():
        for u, s in enumerate(choice):
            assert below.conditional[u][s] <= max(result.memory) + margin(smallest), (u, s, choice)
    if below.choice is not None:
        assert below.choice in choices


def test_the_bounds_are_worth_having() -> None:
    """A bound of nought would pass all of the above: that of half the problems must be within a tenth of the optimum."""
    gaps, memory_gaps = [], []
    for case in PROBLEMS:
        if best := brute_force(problem_of(case)):
            gaps.append(1 - bound_of(case).value / best)
        if choices := possible_choices(case):
            memory_gaps.append(1 - memory_bound(problem_of(case)).value / min(max(result.memory) for result in choices.values()))
    assert len(gaps) > len(PROBLEMS) / 2 and np.median(gaps) < 0.1
    assert len(memory_gaps) > len(PROBLEMS) / 2 and np.median(memory_gaps) < 0.1


def test_what_no_choice_can_do_is_bounded_by_infinity() -> None:
    """Where every choice uses a forbidden transition that two nodes alone decide, no message is needed to see it."""
    impossible = [case for case in ((seed, 4, 3) for seed in range(200)) if not possible_choices(case)]
    assert impossible
    assert any(np.isinf(bound_of(case).value) for case in impossible)
