"""A problem and its model agree on every choice: cost, what is forbidden, and what fits."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from problems import random_problem

from autoplan.planner.pairwise import extended, model_of
from autoplan.planner.problem import evaluate, is_feasible


@pytest.mark.parametrize("seed", range(60))
def test_every_choice_costs_and_uses_the_same_in_the_model(seed: int) -> None:
    problem = random_problem(seed, nodes=4)
    model = model_of(problem)
    for choice in product(*(range(len(node.costs)) for node in problem.nodes)):
        known, whole = evaluate(problem, choice), extended(model, choice)
        if known.cost is None:
            assert model.cost_of(whole) is None
            continue
        assert whole[: len(choice)] == choice
        assert model.cost_of(whole) == known.cost
        excess = int((model.used_by(whole) - model.limits).max())
        assert excess == max(np.array(known.memory) - np.array(problem.limits))
        assert model.fits(whole) == is_feasible(problem, choice)
