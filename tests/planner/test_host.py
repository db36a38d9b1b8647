"""A step lasts as long as the longer of device and host: the host is in the objective, and no plan is better by what is predicted."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest
import yaml
from planner_cases import MODULES, graph_of, module, planned, request

from autoplan.assignment.gathers import gather_groups
from autoplan.cost.hardware import Host
from autoplan.cost.predict import host_seconds
from autoplan.planner.build import Built
from autoplan.planner.overlap import cheapest_overlapped, host_of, true_cost
from autoplan.planner.problem import is_feasible
from autoplan.planner.remedies import problem_of
from autoplan.planner.request import PlanRequest
from autoplan.planner.starts import fitted
from autoplan.redistribution import collectives

PINS = Path(__file__).parents[2] / "configs" / "pins"
TIME_LIMIT_S = 120.0
PLANS = 40
FAST, SLOW = Host(1e-6, 2e-6), Host(1e-3, 3e-3)  # a host that is done before these models' devices on the CPU, and one that is not
BOTH = Host(0.8e-5, 2e-4)  # by its ops done before the devices, but with some collectives not


def wanted(host: Host, memory_gib: float | None = None) -> PlanRequest:
    """A request for a machine with this host."""
    plain = request(memory_gib=memory_gib)
    return replace(plain, hardware=replace(plain.hardware, host=host, digest=repr(host)))


def near(start: Built, choice: tuple[int, ...], count: int) -> Iterator[tuple[int, ...]]:
    """Feasible choices, some decisions of `choice` redrawn."""
    random, sizes, met = Random(0), [len(node.costs) for node in start.problem.nodes], 0
    for _ in range(200 * count):
        redrawn = set(random.sample(range(len(sizes)), 1 << random.randrange(4)))
        other = tuple(random.randrange(size) if u in redrawn else choice[u] for u, size in enumerate(sizes))
        if is_feasible(start.problem, other):
            met += 1
            yield other
        if met == count:
            return
    raise AssertionError("too few feasible choices")


@pytest.mark.parametrize("name", MODULES)
def test_the_problem_counts_what_the_prediction_counts(name: str) -> None:
    """Whichever parameters travel together, if those that do pay for the starts of their collectives; but for what is only cut.

    A parameter that backward gets without talking to anyone is brought there again if others of its block are gathered again.
    """
    asked = wanted(SLOW)  # so that in what is redrawn few parameters are gathered
    start = problem_of(graph_of(name), asked)
    found = cheapest_overlapped(start, asked.limit_bytes, TIME_LIMIT_S)
    assert found is not None
    counted = 0
    for choice in near(start, found.solution.choice, PLANS):
        assignment = start.assignment(choice)
        groups = gather_groups(assignment, start.terms.prices.prefixes)
        if any(member.forward and not collectives(member.forward) for group in groups for member in group.members):
            continue
        counted += 1
        predicted = host_seconds(assignment, groups, asked.hardware, asked.options)
        modelled = host_of(fitted(start.terms, choice), asked.limit_bytes, (), choice) * start.problem.unit_s
        slack = start.terms.hosted(1.0).rounding * start.problem.unit_s
        assert modelled == pytest.approx(predicted, abs=slack)
    assert counted > 0


@pytest.mark.parametrize("host", [FAST, BOTH, SLOW], ids=["fast", "both", "slow"])
@pytest.mark.parametrize("name", MODULES)
def test_no_plan_is_cheaper_than_what_is_proved(name: str, host: Host) -> None:
    asked = wanted(host)
    start = problem_of(graph_of(name), asked)
    found = cheapest_overlapped(start, asked.limit_bytes, TIME_LIMIT_S)
    assert found is not None
    cost, bound = found.solution.cost, found.solution.bound
    assert bound <= cost
    assert found.solution.status == "optimal" or host is BOTH  # weighed, device and host only bound the greater of both
    assert cost == true_cost(start.terms, 0, (), found.solution.choice)
    for choice in near(start, found.solution.choice, PLANS):
        assert true_cost(start.terms, 0, (), choice) > bound - start.problem.tie


@pytest.mark.parametrize("name", MODULES)
def test_a_host_that_is_done_before_the_device_changes_nothing(name: str) -> None:
    found = [cheapest_overlapped(problem_of(graph_of(name), asked), asked.limit_bytes, TIME_LIMIT_S) for asked in (request(), wanted(FAST))]
    assert found[0] is not None and found[1] is not None
    assert found[0].solution.choice == found[1].solution.choice


def test_within_less_memory_no_plan_is_cheaper_either() -> None:
    """With recomputed blocks, whose ops the host starts once more; little time, so that the bound may be far off."""
    graph = graph_of("llama")
    ample = planned(module("llama"), wanted(SLOW)).predicted.memory_gib.peak
    asked = wanted(SLOW, memory_gib=0.75 * ample)
    start = problem_of(graph, asked)
    found = cheapest_overlapped(start, asked.limit_bytes, 10.0)
    assert found is not None and is_feasible(found.built.problem, found.solution.choice)
    again = found.built.recomputed
    assert found.solution.cost == true_cost(start.terms, asked.limit_bytes, again, found.solution.choice)
    for choice in near(found.built, found.solution.choice, PLANS):
        assert true_cost(start.terms, asked.limit_bytes, again, choice) > found.solution.bound - start.problem.tie


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_layouts_written_by_hand_are_not_predicted_to_be_faster(name: str) -> None:
    """On GPUs these models wait for the host."""
    best = planned(module(name), request(hardware="h200-sxm")).predicted
    assert best.host_ms > 0
    for path in sorted((PINS / name).iterdir()):
        pins = tuple(yaml.safe_load(path.read_text()))
        pinned = planned(module(name), request(hardware="h200-sxm", pins=pins)).predicted
        assert best.step_ms <= pinned.step_ms * 1.001, path.name  # ms are rounded to three digits
