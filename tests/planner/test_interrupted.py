"""Ctrl-C ends a search with the best choice so far; a problem that is given up does not keep others from being looked at."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from time import perf_counter
from typing import Any

import numpy as np
import pytest
from planner_cases import llama_module, request
from random_models import tight_model

from autoplan.planner import pipeline, recompute
from autoplan.planner.build import Built, build_problem
from autoplan.planner.family import Outcome
from autoplan.planner.pipeline import capture_for
from autoplan.planner.problem import NoneCheaper, Solution, evaluate
from autoplan.planner.recompute import cheapest
from autoplan.planner.remedies import problem_of
from autoplan.planner.smallest import smallest
from autoplan.planner.solve import solve
from autoplan.planner.solver import cpsat
from autoplan.planner.solver.model import Edge, Found, Model, Span
from autoplan.planner.solver.search import minimise_cost

TIME_LIMIT_S = 60.0  # enough for a busy machine to prove all of it


@contextmanager
def interrupted_after(seconds: float) -> Iterator[None]:
    """KeyboardInterrupt in this thread, as Ctrl-C raises it."""
    before = signal.signal(signal.SIGALRM, signal.default_int_handler)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def hard_model(nodes: int = 30, strategies: int = 6) -> Model:
    """What costs little takes much memory, and every node has to do with most others: CP-SAT finds choices soon, and proves none in minutes."""
    random = np.random.default_rng(0)
    costs = [random.integers(0, 1000, strategies) for _ in range(nodes)]
    usage = [{Span(0, 1): 1000 - own + random.integers(0, 200, strategies)} for own in costs]
    pairs = [(u, w) for u in range(nodes) for w in range(u + 1, nodes) if random.random() < 0.3]
    edges = {pair: Edge(random.integers(0, 300, (strategies, strategies))) for pair in pairs}
    return Model(costs, usage, edges, np.array([550 * nodes]), 0)


def test_cp_sat_hears_ctrl_c_and_gives_what_it_has() -> None:
    model, start = hard_model(), perf_counter()
    with pytest.raises(cpsat.Interrupted) as stop, interrupted_after(5.0):
        cpsat.cheapest(model, 1 << 40, [0], start + TIME_LIMIT_S)
    assert perf_counter() - start < TIME_LIMIT_S / 2
    found = stop.value.found
    assert found.choice is not None and model.fits(found.choice) and not found.finished


def test_a_search_ends_with_the_choice_that_cp_sat_had(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = cpsat.cheapest

    def interrupted(*args: Any, **kwargs: Any) -> Found:
        raise cpsat.Interrupted(asked(*args, **kwargs))

    monkeypatch.setattr(cpsat, "cheapest", interrupted)
    ended = 0
    for seed in range(40):
        model, known = tight_model(seed)
        result = minimise_cost(model, None) if known else None
        if result is not None and result.interrupted:
            ended += 1
            assert result.choice in known and result.cost == known[result.choice] and not result.finished
            assert result.bound <= min(known.values())
    assert ended > 5


def tight() -> tuple[Built, int]:
    """A problem in which some copies recompute, so that several numbers are looked at; and its limit."""
    wanted = request(memory_gib=0.01)
    graph = capture_for(*llama_module(), wanted.options)
    ample = problem_of(graph, wanted)
    least, free = smallest(ample, wanted.limit_bytes, TIME_LIMIT_S), cheapest([ample], wanted.limit_bytes, TIME_LIMIT_S)
    assert least is not None and free is not None
    peak = max(evaluate(free.built.problem, free.solution.choice).memory)
    limit = int((0.6 * least.solution.cost + 0.4 * peak) * ample.problem.unit_bytes)
    return problem_of(graph, request(memory_gib=limit / 2**30)), limit


def searched(monkeypatch: pytest.MonkeyPatch, one: Any) -> tuple[Outcome, list[Solution | NoneCheaper | None]]:
    """What is found, and the answers for single numbers: `one(answer)` is put in place of the first that leaves a plan to be proved."""
    start, limit = tight()
    answers: list[Solution | NoneCheaper | None] = []
    changed = False

    def answered(problem: Any, time_limit_s: float, **kwargs: Any) -> Solution | NoneCheaper | None:
        nonlocal changed
        answer = solve(problem, time_limit_s, **kwargs)
        if not problem.limits:
            return answer
        if isinstance(answer, Solution) and not changed:
            changed, answer = True, one(answer)
        answers.append(answer)
        return answer

    monkeypatch.setattr(recompute, "solve", answered)
    found = cheapest([start, build_ahead(start, limit)], limit, TIME_LIMIT_S)
    assert found is not None and changed
    return found, answers


def build_ahead(start: Built, limit: int) -> Built:
    return build_problem(start.terms.ahead({}), limit)


def test_a_user_who_cuts_a_problem_short_cuts_all_short(monkeypatch: pytest.MonkeyPatch) -> None:
    found, answers = searched(monkeypatch, lambda answer: replace(answer, status="feasible", bound=answer.bound // 2, interrupted=True))
    assert isinstance(answers[-1], Solution) and answers[-1].interrupted, "nothing was asked any more"
    assert found.solution.status == "feasible" and found.solution.interrupted


def test_ctrl_c_while_nothing_better_is_known_keeps_what_was_found_before(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def interrupted(problem: Any, time_limit_s: float, **kwargs: Any) -> Solution | NoneCheaper | None:
        if problem.limits:
            asked.append(problem)
            if len(asked) == 2:
                raise KeyboardInterrupt
        return solve(problem, time_limit_s, **kwargs)

    start, limit = tight()
    monkeypatch.setattr(recompute, "solve", interrupted)
    found = cheapest([start, build_ahead(start, limit)], limit, TIME_LIMIT_S)
    assert found is not None and len(asked) == 2
    assert found.solution.interrupted and found.solution.status == "feasible"


def test_what_is_given_up_does_not_keep_the_others_from_being_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    found, answers = searched(monkeypatch, lambda answer: replace(answer, status="feasible", bound=answer.bound // 2))
    assert len(answers) > 1
    assert found.solution.status == "feasible" and not found.solution.interrupted


def test_a_user_who_does_not_wait_for_layouts_by_hand_has_the_plan_without_them(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    model = llama_module()
    whole = pipeline.plan_module(*model, request()).plan
    monkeypatch.setattr(pipeline, "by_hand", interrupted)
    assert whole.by_hand
    assert pipeline.plan_module(*model, request()).plan == replace(whole, by_hand={})
