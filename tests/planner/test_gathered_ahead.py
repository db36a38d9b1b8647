"""Parameters that travel ahead: what their blocks wait for is in the objective, and plans without it are found where memory is tight."""

from __future__ import annotations

from random import Random

import pytest
from planner_cases import graph_of, module, overlapping, planned, request

from autoplan.planner.build import build_problem
from autoplan.planner.overlap import cheapest_overlapped, true_cost
from autoplan.planner.problem import cost_of, is_feasible
from autoplan.planner.recompute import cheapest
from autoplan.planner.remedies import problem_of
from autoplan.planner.smallest import smallest

TIME_LIMIT_S = 120.0
PLANS = 40


@pytest.mark.parametrize("name", ["llama", "gpt2"])
@pytest.mark.parametrize(("hides", "link"), [(0.5, 0.3), (0.5, 30.0), (1.0, 10.0), (1.0, 1.0), (1.0, 3.0)])
def test_no_plan_is_cheaper_than_what_is_proved(name: str, hides: float, link: float) -> None:
    """Where links are slow and all could be hidden, computing does not suffice for it: then the two weighed only bound the greater."""
    wanted = overlapping(hides=hides, link=link)
    start = problem_of(graph_of(name), wanted)
    found = cheapest_overlapped(start, wanted.limit_bytes, TIME_LIMIT_S)
    assert found is not None
    assert found.solution.bound <= found.solution.cost
    assert found.solution.status == "optimal" or (hides == 1.0 and link <= 3.0)
    least = found.solution.bound - start.problem.tie
    random, sizes = Random(0), [len(node.costs) for node in start.problem.nodes]
    ahead = build_problem(start.terms.ahead({}), wanted.limit_bytes)
    met = 0
    for _ in range(40 * PLANS):
        redrawn = set(random.sample(range(len(sizes)), 1 << random.randrange(3)))
        choice = tuple(random.randrange(size) if u in redrawn else found.solution.choice[u] for u, size in enumerate(sizes))
        if not is_feasible(ahead.problem, choice):
            continue
        met += 1
        assert cost_of(start.problem, choice) > least or true_cost(start.terms, wanted.limit_bytes, (), choice) > least
        assert cost_of(ahead.problem, choice) > least or true_cost(start.terms, wanted.limit_bytes, (), choice, prefetch=1) > least
    assert met >= PLANS


@pytest.mark.parametrize("link", [0.3, 3.0, 30.0])
def test_gathering_ahead_is_never_slower(link: float) -> None:
    wanted = overlapping(link=link)
    start = problem_of(graph_of("llama"), wanted)
    ahead = cheapest_overlapped(start, wanted.limit_bytes, TIME_LIMIT_S)
    without = cheapest([start], wanted.limit_bytes, TIME_LIMIT_S)
    assert ahead is not None and without is not None
    assert ahead.solution.cost <= without.solution.cost


def test_a_plan_says_what_travels_ahead_and_what_that_hides() -> None:
    plan = planned(module("llama"), overlapping())
    assert {key: line.prefetch for key, line in plan.gather.items() if line.group == "block"} == {"layers.*": 1}
    assert all(line.prefetch == 0 for line in plan.gather.values() if line.group == "parameter")
    assert plan.predicted.communication_ms.hidden > 0
    alone = planned(module("llama"), request())
    assert all(line.prefetch == 0 for line in alone.gather.values())
    assert alone.predicted.communication_ms.hidden == 0


def test_where_memory_does_not_suffice_for_one_block_more_none_travels_ahead() -> None:
    roomy = overlapping(memory_gib=0.01)
    start = problem_of(graph_of("llama"), roomy)
    least, ahead = (
        smallest(built, roomy.limit_bytes, TIME_LIMIT_S) for built in (start, build_problem(start.terms.ahead({}), roomy.limit_bytes))
    )
    assert least is not None and ahead is not None and least.solution.cost < ahead.solution.bound
    between = (least.solution.cost + ahead.solution.bound) // 2 * start.problem.unit_bytes / 2**30
    plan = planned(module("llama"), overlapping(memory_gib=between))
    assert all(line.prefetch == 0 for line in plan.gather.values())
    assert plan.predicted.memory_gib.peak <= between
