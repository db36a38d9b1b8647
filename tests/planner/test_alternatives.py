"""What a decision could be instead: each alternative costs what planning with it pinned costs, and none less than an optimal plan."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
from planner_cases import gpt2_module, llama_module, mlp_module, request

from autoplan.assignment import decode
from autoplan.errors import PlanError
from autoplan.load import Built
from autoplan.placement import Placements, R, S
from autoplan.plan.schema import Plan
from autoplan.planner.alternatives import Alternative, Explained, Question, explain
from autoplan.planner.decisions import Said, decision_of, freed
from autoplan.planner.pipeline import capture_for, plan_module
from autoplan.planner.request import PlanRequest

MODULES = {"mlp": mlp_module, "llama": llama_module, "gpt2": gpt2_module}
TOLERANCE = 1e-3  # of a step: the part by which plans that overlap are not proved to be best
WQ = "layers.*.attn.wq.weight"


@cache
def model(name: str) -> Built:
    return Built(*MODULES[name]())


def question(name: str, address: str, wanted: PlanRequest, plan: Plan | None = None) -> Question:
    """The question about a plan for a small model, by default the best one."""
    built = model(name)
    graph = capture_for(built.module, built.args, built.kwargs, wanted.options)
    plan = plan or plan_module(built.module, built.args, built.kwargs, wanted, graph=graph).plan
    return Question(built, graph, plan, decode(plan, graph), wanted, decision_of(address, graph, plan))


@cache
def explained(name: str, address: str, most: int = 4) -> tuple[Question, Explained]:
    asked = question(name, address, request())
    return asked, explain(asked, most)


def cost(asked: Question, pins: tuple[Mapping[str, Any], ...]) -> float:
    built = asked.model
    return plan_module(built.module, built.args, built.kwargs, replace(asked.request, pins=pins), graph=asked.graph).plan.predicted.step_ms


CASES = [
    ("mlp", "layers.0.weight"),
    ("mlp", "layers.0/linear"),
    ("mlp", "inputs/x"),
    ("llama", WQ),
    ("llama", "layers.*.attn/scaled_dot_product_attention"),
]


@pytest.mark.parametrize(("name", "address"), CASES)
def test_an_alternative_costs_what_planning_with_its_pin_costs(name: str, address: str) -> None:
    asked, found = explained(name, address)
    assert len(found.others) > 2 and all(one.fits and one.pins for one in found.others)
    for one in found.others[-2:]:
        assert one.step_ms == pytest.approx(cost(asked, one.pins), rel=TOLERANCE)


@pytest.mark.parametrize(("name", "address"), CASES)
def test_an_optimal_plan_has_its_own_choice_at_its_own_cost_and_nothing_is_cheaper(name: str, address: str) -> None:
    asked, found = explained(name, address)
    step_ms = asked.plan.predicted.step_ms
    (own,) = found.own
    assert asked.plan.solver.status == "optimal" and own.step_ms == pytest.approx(step_ms, rel=TOLERANCE)
    assert all((one.step_ms or 0.0) >= step_ms * (1 - TOLERANCE) for one in found.others)
    assert [one.step_ms for one in found.others] == sorted(one.step_ms or 0.0 for one in found.others)


def test_what_is_left_out_costs_at_least_what_is_said() -> None:
    asked, few = explained("mlp", "layers.0.weight")
    _, all_ = explained("mlp", "layers.0.weight", 1000)
    assert all_.left_out == 0 and all_.at_least_ms is None
    assert few.left_out and few.at_least_ms is not None
    solved = [one.said for one in few.others]
    rest = [one.step_ms for one in all_.others if one.said not in solved and one.step_ms is not None]
    assert rest and min(rest) >= few.at_least_ms * (1 - TOLERANCE)
    assert asked.own[0] not in [one.said for one in all_.others]


def test_every_use_and_every_way_to_store_a_parameter_is_among_all_alternatives() -> None:
    asked, found = explained("mlp", "layers.0.weight", 1000)  # [256, 64] on 2x2
    own = asked.own[0]
    said = [one.said for one in (*found.own, *found.others)]
    assert own in said
    plain = [(a, b) for a in (R, S(0), S(1)) for b in (R, S(0), S(1))]
    assert {one["store"] for one in said} >= set(plain)
    assert {one["use"] for one in said} >= set(plain), "each is a row of the linear that reads it"


def test_a_copy_of_a_block_stands_for_all_of_them() -> None:
    for name in ("layers.1.attn.wq.weight", WQ, "layers.{0-1}.attn.wq.weight"):
        assert question("llama", name, request()).decision.patterns == (WQ,)
    assert len(question("llama", "layers.2.attn/scaled_dot_product_attention", request()).decision.names) == 3
    assert question("mlp", "x", request()).decision.section == "inputs"


def test_an_alternative_that_does_not_fit_says_what_it_needs() -> None:
    free = explained("mlp", "layers.0.weight")[0].plan.predicted.memory_gib.peak
    tight = request(memory_gib=free * 0.6)
    found = explain(question("mlp", "layers.1.weight", tight), 4)  # of [256, 256], most of the model
    limit_gib = tight.limit_bytes / 2**30
    unfit = [one for one in found.others if not one.fits]
    assert unfit, [(one.said, one.peak_gib) for one in found.others]
    for one in unfit:
        assert one.step_ms is None and "does not fit" in str(one.problem) and (one.peak_gib or 0.0) > limit_gib
    assert found.others[-len(unfit) :] == tuple(unfit), "those that fit come first"
    assert all((one.peak_gib or 0.0) <= limit_gib for one in found.others if one.fits)


def test_a_pin_on_the_decision_is_left_aside_and_others_are_kept() -> None:
    first, second = {"params": "layers.0.weight", "store": ["R", "R"]}, {"inputs": "x", "place": ["R", "R"]}
    wanted = request(pins=(first, second))
    found = explain(question("mlp", "layers.0.weight", wanted), 6)
    assert found.unbound == (first,)
    assert any(one.said["store"] != (R, R) and one.fits for one in found.others)
    assert explain(question("mlp", "layers.1.weight", wanted), 0).unbound == ()


def test_freeing_a_decision_keeps_what_a_pin_says_of_others() -> None:
    asked = question("mlp", "layers.0.weight", request())
    pins = ({"params": "all", "store": ["R", "R"], "gather": "never"}, {"inputs": "x", "place": ["R", "R"]})
    kept = freed(pins, asked.decision, asked.graph)
    assert {"params": "layers.0.weight", "gather": "never"} in kept and pins[1] in kept
    stored = [pin["params"] for pin in kept if "store" in pin]
    assert stored == ["layers.*.bias", "layers.{1-2}.weight", "out.bias", "out.weight"]


def test_what_other_pins_exclude_is_refused_in_a_few_words() -> None:
    asked = question("mlp", "layers.0.weight", request())
    never = replace(asked, request=replace(asked.request, pins=({"params": "all", "gather": "never"},)))
    found = explain(never, 1000)
    assert all(one.said["store"] == one.said["use"] for one in found.others if one.fits)
    assert all("\n" not in str(one.problem) and len(str(one.problem)) < 120 for one in found.others)


def test_a_tied_parameter_that_is_used_in_two_ways_is_the_plan_itself() -> None:
    asked = question("gpt2", _tied("gpt2"), request())
    parameter = asked.decision.names[0]
    line = asked.plan.params[parameter]
    assert not isinstance(line.use, Mapping)
    readers = [node.address for node in asked.graph.nodes if any(asked.graph.values[v].address == parameter for v in node.inputs)]
    assert len(readers) == 2
    uses: dict[str, Placements] = dict(zip(readers, (line.use, (S(0), R)), strict=True))
    apart: Said = {"store": line.store, "use": uses}
    plan = replace(asked.plan, params={**asked.plan.params, parameter: replace(line, use=uses)})
    found = explain(replace(asked, plan=plan), 2)
    assert found.own == (Alternative(apart, (), plan.predicted.step_ms, plan.predicted.memory_gib.peak, is_own=True),)
    assert len(found.others) == 2 and all(not isinstance(one.pins[0]["use"], dict) for one in found.others if one.pins)


def _tied(name: str) -> str:
    built = model(name)
    graph = capture_for(built.module, built.args, built.kwargs, request().options)
    return next(parameter.fqn for parameter in graph.parameters if parameter.aliases)


def test_a_user_who_stops_it_gets_what_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = question("mlp", "layers.0.weight", request())
    told = []

    def stops(text: str) -> None:
        told.append(text)
        if len(told) == 4:
            raise KeyboardInterrupt

    found = explain(asked, 6, stops)
    assert found.interrupted and len(found.own) == 1 and len(found.others) in (1, 2) and found.left_out > 4
    assert told[:2] == ["the plan's own choice", "1 of 6"]


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("layers.0.wieght", "did you mean layers.*.weight"),
        ("layers.0", "did you mean layers.*.weight or layers.*.bias"),
        ("inputs/y", "the model has no such parameter, input or op"),
        ("outputs/loss", "is an output"),
        ("layers..weight", "is not a path segment"),
    ],
)
def test_an_address_that_names_no_decision_says_what_is_like_it(address: str, said: str) -> None:
    asked = question("mlp", "layers.0.weight", request())
    with pytest.raises(PlanError) as raised:
        decision_of(address, asked.graph, asked.plan)
    assert said in str(raised.value)


def test_pins_that_exclude_each_other_are_an_error_of_the_user() -> None:
    built = model("mlp")
    pins = ({"params": "layers.0.weight", "store": ["S(0)", "R"], "use": ["R", "R"]}, {"params": "all", "gather": "never"})
    with pytest.raises(PlanError, match="no plan respects all pins together"):
        plan_module(built.module, built.args, built.kwargs, request(pins=pins))
