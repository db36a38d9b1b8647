"""Reductions keep the optimum, memory included, and the way back leads to it."""

from __future__ import annotations

import numpy as np
import pytest
from random_models import choices, peaks, random_model

from autoplan.planner.solver.reduce import Infeasible, reduce

SEEDS = range(200)


@pytest.mark.parametrize("seed", SEEDS)
def test_the_reduced_problem_has_the_same_optimum_and_expands_to_it(seed: int) -> None:
    model = random_model(seed)
    before = choices(model)
    try:
        reduced, trail = reduce(model)
    except Infeasible:
        assert not before
        return
    after = choices(reduced)
    assert min(after.values(), default=None) == min(before.values(), default=None)
    for choice, cost in after.items():
        assert before[trail.expand(choice)] == cost


@pytest.mark.parametrize("seed", SEEDS[:80])
def test_without_limits_the_smallest_greatest_row_stays(seed: int) -> None:
    model = random_model(seed)
    before = peaks(model)
    if not before:
        return
    reduced, trail = reduce(model, limited=False)
    moved = int(model.limits[0])
    after = {choice: moved + int((reduced.used_by(choice) - reduced.limits).max()) for choice in peaks(reduced)}
    assert min(after[choice] for choice in after) >= min(before.values())
    for choice, peak in after.items():
        assert before[trail.expand(choice)] == peak


def test_most_small_problems_are_solved_by_reductions_alone() -> None:
    left = []
    for seed in SEEDS:
        try:
            left.append(len(reduce(random_model(seed))[0].costs))
        except Infeasible:
            left.append(0)
    assert np.mean(np.array(left) == 0) > 0.8
