"""Planning from end to end on small models: within the limit, the same twice, never beaten by chance, no op replicated in silence."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from random import Random

import pytest
from planner_cases import Module, built, llama_module, mlp_module, no_rule_module, planned, request

from autoplan.cost.hardware import load_hardware
from autoplan.errors import FallbackError
from autoplan.plan import dump_plan
from autoplan.plan.schema import Plan
from autoplan.planner.problem import FORBIDDEN, Problem, evaluate, is_feasible
from autoplan.planner.solve import solve
from autoplan.rules import rule_of

LIMIT_GIB = 0.002


@cache
def module(name: str) -> Module:
    return {"mlp": mlp_module, "llama": llama_module, "no_rule": no_rule_module}[name]()


@cache
def plan_of(name: str, mesh: str, memory_gib: float | None = None, unfold: bool = False) -> Plan:
    return planned(module(name), request(mesh, memory_gib=memory_gib, unfold=unfold))


def test_the_predicted_peak_is_within_the_limit_that_was_asked_for() -> None:
    free, limited = plan_of("mlp", "2x2"), plan_of("mlp", "2x2", LIMIT_GIB)
    assert limited.predicted.memory_gib.peak <= LIMIT_GIB < free.predicted.memory_gib.peak
    assert limited.predicted.step_ms >= free.predicted.step_ms


def test_a_plan_for_several_hosts_says_how_many_ranks_it_puts_on_one() -> None:
    two_a_host = replace(load_hardware("test-free-links"), gpus_per_node=2)
    on = {mesh: planned(module("mlp"), replace(request(mesh), hardware=two_a_host)).hardware.per_host for mesh in ("2", "2x2")}
    assert on == {"2": None, "2x2": 2}


@pytest.mark.parametrize("name", ["mlp", "llama"])
def test_planning_twice_gives_the_same_bytes(name: str) -> None:
    assert dump_plan(planned(module(name), request("4"))) == dump_plan(plan_of(name, "4"))


@pytest.mark.parametrize("name", ["mlp", "llama"])
def test_a_small_problem_is_proved(name: str) -> None:
    solver = plan_of(name, "4").solver
    assert (solver.status, solver.gap, solver.folded) == ("optimal", 0.0, True)


def random_feasible(problem: Problem, random: Random) -> tuple[int, ...] | None:
    """A random choice, node by node one that no transition from a decided neighbour forbids."""
    choice = tuple(random.randrange(len(node.costs)) for node in problem.nodes)
    return choice if is_feasible(problem, choice) else None


@pytest.mark.parametrize("name", ["mlp", "llama"])
def test_no_random_plan_beats_the_optimum(name: str) -> None:
    problem = built(module(name), request("4")).problem
    assert not any(FORBIDDEN in row for value in problem.values for row in (*value.forward, *value.backward))
    solution = solve(problem)
    assert solution is not None and solution.status == "optimal" and evaluate(problem, solution.choice).cost == solution.cost
    random = Random(0)
    drawn = [choice for _ in range(400) if (choice := random_feasible(problem, random))][:50]
    assert len(drawn) == 50
    # costs that differ by less than `tie` differ only in preferences among equals, which the solver may leave
    assert all(evaluate(problem, choice).cost + problem.tie > solution.cost for choice in drawn)  # type: ignore[operator]


def test_deciding_each_block_on_its_own_is_not_worse_than_deciding_all_alike() -> None:
    folded, unfolded = plan_of("llama", "4"), plan_of("llama", "4", unfold=True)
    assert not unfolded.solver.folded
    # the problem prices a block's bucketed collectives a parameter at a time, the prediction as they run: 1 % between the two
    assert unfolded.predicted.step_ms <= 1.01 * folded.predicted.step_ms


def test_ops_without_a_rule_are_listed_with_what_they_add() -> None:
    plan = plan_of("no_rule", "4")
    ops = {line.op: line for line in plan.fallbacks}
    assert set(ops) == {"aten.linalg_inv.default", "aten.linalg_matrix_exp.default"}
    assert all(rule_of(op) is None and line.count == 1 and line.added_ms >= 0 for op, line in ops.items())
    assert plan_of("mlp", "4").fallbacks == ()


def test_strict_names_every_op_without_a_rule_with_its_line() -> None:
    with pytest.raises(FallbackError) as raised:
        planned(module("no_rule"), request("4", strict=True))
    message = str(raised.value)
    assert message.count("has no rule") == 2 and message.count("planner_cases.py:") == 2 and "--strict" in message


def test_strict_plans_what_has_rules_all_the_same() -> None:
    strict = planned(module("mlp"), request("4", strict=True))
    assert strict.params == plan_of("mlp", "4").params
