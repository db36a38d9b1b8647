"""Branching against brute force, forced on problems so small that otherwise CP-SAT would get them."""

from __future__ import annotations

from functools import cache
from time import perf_counter

import numpy as np
import pytest
from problems import Tried, small_problem, tried
from random_models import tight_model

from autoplan.planner.problem import Problem, evaluate, is_feasible
from autoplan.planner.solve import solve
from autoplan.planner.solver import branching, cpsat
from autoplan.planner.solver.bound import Bound
from autoplan.planner.solver.branching import Branching
from autoplan.planner.solver.eliminate import Elimination
from autoplan.planner.solver.model import FORBIDDEN, Found, Model
from autoplan.planner.solver.passing import Passing

HIGH = 10**6  # dearer than any choice of a small problem


@pytest.fixture
def cuts(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The nodes that are cut. Nothing is small enough for CP-SAT."""
    made: list[int] = []
    cut = branching._cut

    def counted(engine: Passing | Elimination, below: Bound) -> branching.Cut:
        node, first = cut(engine, below)
        assert 0 < first.sum() < len(first), "both halves have strategies"
        made.append(node)
        return node, first

    monkeypatch.setattr(branching, "SMALL", -1)
    monkeypatch.setattr(branching, "LARGEST", -1)
    monkeypatch.setattr(branching, "_cut", counted)
    monkeypatch.setattr(cpsat, "cheapest", lambda *args, **kwargs: pytest.fail("CP-SAT was asked"))
    return made


@cache
def case(seed: int) -> tuple[Problem, Tried]:
    problem = small_problem(seed)
    return problem, tried(problem)


def unbounded(model: Model) -> Bound:
    """What is known of a model without looking at it."""
    return Bound(0, tuple(np.zeros(len(costs), dtype=np.int64) for costs in model.costs), np.zeros(len(model.limits)))


def test_cutting_models_finds_what_trying_everything_finds(cuts: list[int]) -> None:
    for seed in range(40):
        model, known = tight_model(seed)
        least = min(known.values(), default=None)
        for threshold in {HIGH, HIGH if least is None else least, HIGH if least is None else least - 1}:
            found = Branching(threshold, None).cheapest(model, unbounded(model))
            assert found.finished
            if least is None or threshold < least:
                assert found.choice is None, seed
            else:
                assert found.choice is not None and known[found.choice] == least == found.bound, seed
    assert len(cuts) > 100


@pytest.mark.parametrize("gap", [1, 3])
def test_with_a_gap_the_choice_is_as_near_as_that_and_the_bound_holds(cuts: list[int], gap: int) -> None:
    for seed in range(40):
        model, known = tight_model(seed)
        found = Branching(HIGH, None, gap=gap).cheapest(model, unbounded(model))
        if not known:
            assert found.choice is None
            continue
        assert found.choice is not None and found.bound is not None
        assert found.bound <= min(known.values()) <= known[found.choice] <= found.bound + gap, seed
    assert cuts


def test_problems_solved_by_cutting_alone_have_the_optimum_that_trying_everything_finds(cuts: list[int]) -> None:
    for seed in range(1, 200, 4):
        problem, best = case(seed)
        solution = solve(problem)
        assert (solution is None) == (best.cost is None), seed
        if solution is not None:
            assert solution.status == "optimal" and is_feasible(problem, solution.choice), seed
            assert evaluate(problem, solution.choice).cost == solution.cost == best.cost, seed
    assert len(cuts) > 5


def test_without_time_the_bound_still_holds(cuts: list[int]) -> None:
    cut_short = 0
    for seed in range(40):
        model, known = tight_model(seed)
        found = Branching(HIGH, perf_counter()).cheapest(model, unbounded(model))
        cut_short += not found.finished
        if known and found.bound is not None:
            assert found.bound <= min(known.values()), seed
        if found.choice is not None:
            assert found.choice in known, seed
    assert cut_short > 10


def test_what_cp_sat_does_not_finish_ends_the_search_and_the_bound_still_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    """As after Ctrl-C: the parts that are left are not looked at, and count by their bounds."""
    asked = []

    def unfinished(core: Model, *args: object, **kwargs: object) -> Found:
        asked.append(core)
        return Found(None, -FORBIDDEN, False)

    monkeypatch.setattr(cpsat, "cheapest", unfinished)
    monkeypatch.setattr(branching, "SMALL", 6)
    for seed in range(40):
        model, known = tight_model(seed)
        asked.clear()
        found = Branching(HIGH, None).cheapest(model, unbounded(model))
        assert len(asked) <= 1 and found.finished == (not asked), seed
        if known and found.bound is not None:
            assert found.bound <= min(known.values()), seed
