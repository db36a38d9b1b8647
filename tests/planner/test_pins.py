"""Pins are in the plan that comes out; those that cannot be are told, all at once."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
from planner_cases import Module, llama_module, mlp_module, planned, request

from autoplan.errors import PlanError
from autoplan.placement import Placements, R, S
from autoplan.plan.schema import Plan

Pin = dict[str, Any]


@cache
def module() -> Module:
    return mlp_module()


def pinned(*pins: Pin) -> Plan:
    return planned(module(), request(pins=pins))


def refusal(*pins: Pin) -> str:
    with pytest.raises(PlanError) as raised:
        pinned(*pins)
    return str(raised.value)


OUTER_WEIGHT = "layers.0.weight"  # [256, 64]


@pytest.mark.parametrize("store", [(R, R), (S(0), S(1)), (S(1), S(0)), (R, S(1))], ids=str)
def test_a_parameter_is_stored_as_pinned(store: Placements) -> None:
    plan = pinned({"params": OUTER_WEIGHT, "store": [str(p) for p in store]})
    assert plan.params[OUTER_WEIGHT].store == store


@pytest.mark.parametrize("use", [(R, R), (S(0), R), (R, S(1))], ids=str)
def test_a_parameter_is_used_as_pinned(use: Placements) -> None:
    plan = pinned({"params": OUTER_WEIGHT, "use": [str(p) for p in use]})
    assert plan.params[OUTER_WEIGHT].use == use


def test_store_and_use_together_are_gathered_between() -> None:
    plan = pinned({"params": OUTER_WEIGHT, "store": ["S(0)", "S(1)"], "use": ["R", "R"]})
    assert (plan.params[OUTER_WEIGHT].store, plan.params[OUTER_WEIGHT].use) == ((S(0), S(1)), (R, R))
    lines = [line for name, line in plan.gather.items() if name in (OUTER_WEIGHT, "layers.0")]
    assert [c.kind for line in lines for c in line.forward].count("all-gather") == 2


def test_a_pattern_pins_every_copy() -> None:
    plan = planned(llama_module(), request(pins=({"params": "layers.*.mlp.w1.weight", "store": ["S(1)", "S(0)"]},)))
    assert plan.params["layers.*.mlp.w1.weight"].store == (S(1), S(0)) and plan.params["layers.*.mlp.w1.weight"].count == 3


def test_parameters_that_are_never_gathered_are_used_as_they_are_stored() -> None:
    """Free links and little memory make gathering the obvious choice: without the pin the plan does gather."""
    free = planned(module(), request(hardware="test-free-links", memory_gib=0.0006))
    never = planned(module(), request(hardware="test-free-links", memory_gib=0.0006, pins=({"params": "all", "gather": "never"},)))
    assert any(c.kind == "all-gather" for line in free.gather.values() for c in line.forward)
    assert not any(line.forward for line in never.gather.values())
    assert any(isinstance(p, S) for line in never.params.values() for p in line.store)


@pytest.mark.parametrize("place", [(S(0), R), (R, S(1)), (S(0), S(0)), (R, R)], ids=str)
def test_an_input_comes_as_pinned(place: Placements) -> None:
    plan = pinned({"inputs": "x", "place": [str(p) for p in place]})
    assert plan.inputs["x"].place == place


def test_an_op_runs_by_the_row_that_is_pinned() -> None:
    row = "S(0) R R -> S(0) on x; R S(0) S(0) -> S(1) on y"
    plan = pinned({"ops": "layers.0/linear", "row": row})
    assert plan.params[OUTER_WEIGHT].use == (R, S(0)) and plan.params["layers.0.bias"].use == (R, S(0))


def test_pins_are_kept_in_the_plan_as_they_were_written() -> None:
    pin = {"params": OUTER_WEIGHT, "store": ["R", "S(1)"]}
    assert pinned(pin).pins == (pin,)


@pytest.mark.parametrize(
    ("pin", "said"),
    [
        ({"params": "layers.0.wieght", "store": ["R", "R"]}, "layers.0.wieght matches nothing"),
        ({"params": "layers.*.q.weight", "use": ["R", "R"]}, "layers.*.q.weight matches nothing"),
        ({"inputs": "tokens", "place": ["R", "R"]}, "the model has x, labels"),
        ({"ops": "layers.9/linear", "row": "R R -> R on x"}, "layers.9/linear matches nothing"),
        ({"params": OUTER_WEIGHT, "store": ["R"]}, "not one placement for each of the 2 mesh axes"),
        ({"params": OUTER_WEIGHT, "store": ["R", "S(7)"]}, "S(7)"),
        ({"params": OUTER_WEIGHT, "store": ["R", "T"]}, "'T' is not a placement"),
        ({"params": OUTER_WEIGHT, "store": ["P", "R"]}, "[P, R]"),
        ({"params": OUTER_WEIGHT, "use": ["P", "P"]}, "leaves layers.0/linear"),
        ({"ops": "layers.0/linear", "row": "S(9) R -> R on x"}, "rows it has: "),
        ({"params": OUTER_WEIGHT, "gather": "always"}, "`never` is what can be pinned"),
        ({"params": OUTER_WEIGHT}, "says nothing that can be pinned"),
        ({"params": OUTER_WEIGHT, "place": ["R", "R"]}, "says nothing that can be pinned"),
        ({"weights": OUTER_WEIGHT}, "write {params: PATTERN"),
    ],
    ids=str,
)
def test_a_pin_that_cannot_be_says_why(pin: Pin, said: str) -> None:
    message = refusal(pin)
    assert said in message and repr(pin) in message


def test_two_pins_that_exclude_each_other_leave_no_row() -> None:
    message = refusal(
        {"params": OUTER_WEIGHT, "use": ["S(0)", "R"]}, {"ops": "layers.0/linear", "row": "S(0) R R -> S(0) on x; R R R -> R on y"}
    )
    assert "leaves layers.0/linear" in message and "mlp.py:" in message


def test_all_bad_pins_are_one_error() -> None:
    message = refusal({"params": "a", "store": ["R", "R"]}, {"inputs": "x", "place": ["R", "R"]}, {"ops": "b/c", "row": "R -> R"})
    assert "a matches nothing" in message and "b/c matches nothing" in message and "'inputs'" not in message
