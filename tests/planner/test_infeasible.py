"""When nothing fits, the error says how much would; with that much it does."""

from __future__ import annotations

import re

import pytest
from planner_cases import Module, llama_module, mlp_module, planned, request

from autoplan.errors import NoPlanFits
from autoplan.planner.infeasible import GIB, rounded_up_gib
from autoplan.planner.request import PlanRequest

TOO_LITTLE_GIB = 1e-6


@pytest.mark.parametrize(
    ("module", "mesh"),
    [pytest.param(mlp_module(), "2x2", marks=pytest.mark.zoo), (mlp_module(), "4"), (llama_module(), "4")],
    ids=["mlp-2x2", "mlp-4", "llama-4"],
)
def test_a_hundredth_more_than_the_smallest_is_enough_and_a_hundredth_less_is_not(module: Module, mesh: str) -> None:
    with pytest.raises(NoPlanFits) as raised:
        planned(module, request(mesh, memory_gib=TOO_LITTLE_GIB))
    error = raised.value
    assert error.limit_bytes == int(TOO_LITTLE_GIB * GIB) < error.smallest_bytes
    plan = planned(module, request(mesh, memory_gib=1.01 * error.smallest_bytes / GIB))
    assert plan.predicted.memory_gib.peak <= 1.01 * error.smallest_bytes / GIB
    with pytest.raises(NoPlanFits) as again:
        planned(module, request(mesh, memory_gib=0.99 * error.smallest_bytes / GIB))
    # the smallest is in units of a 2^20th of the limit, each op's bytes rounded up to one: some thousand ops make 0.1 %
    assert again.value.smallest_bytes == pytest.approx(error.smallest_bytes, rel=2e-3)


def test_the_message_says_what_there_is_what_it_takes_and_what_fills_it() -> None:
    with pytest.raises(NoPlanFits) as raised:
        planned(mlp_module(), request(memory_gib=TOO_LITTLE_GIB))
    message = str(raised.value)
    assert message.startswith("no plan fits 1e-06 GiB per device; the smallest needs ")
    needed, parts = float(message.split("needs ")[1].split()[0]), re.findall(r"(\w+) ([0-9.]+)[,)]", message.splitlines()[0])
    # where backward reaches the first layer all but its own gradients are there; activations are the rest, some per cent
    assert [name for name, _ in parts][:3] == ["optimizer", "parameters", "gradients"]
    assert 0.9 * needed < sum(float(amount) for _, amount in parts) <= 1.005 * needed
    assert re.search(r"most of it, at the backward of layers\.0: layers\.\S+weight", message), message
    assert "--memory-gib" in message and len(message.splitlines()) <= 15
    assert raised.value.exit_code == 3


def test_pins_that_stand_in_the_way_are_named_with_what_the_rest_needs() -> None:
    pins = ({"params": "all", "store": ["R", "R"]}, {"inputs": "x", "place": ["S(0)", "R"]})
    free = smallest_gib(request(memory_gib=TOO_LITTLE_GIB))
    with pytest.raises(NoPlanFits) as raised:
        planned(mlp_module(), request(memory_gib=1.05 * free, pins=pins))
    (line,) = [line for line in str(raised.value).splitlines() if "without the pin" in line]
    assert "'store': ['R', 'R']" in line and line.endswith("which fits")


def test_what_another_mesh_needs_is_solved() -> None:
    on_four = smallest_gib(request("4x2", memory_gib=TOO_LITTLE_GIB))
    with pytest.raises(NoPlanFits) as raised:
        planned(mlp_module(), request("2x2", memory_gib=1.05 * on_four))
    (line,) = [line for line in str(raised.value).splitlines() if "--mesh 4x2" in line]
    # in other units of memory than the one above
    assert float(line.split(": ")[1].split()[0]) == pytest.approx(on_four, rel=2e-3) and line.endswith("which fits")


def smallest_gib(wanted: PlanRequest) -> float:
    with pytest.raises(NoPlanFits) as raised:
        planned(mlp_module(), wanted)
    return raised.value.smallest_bytes / GIB


def test_the_limit_that_the_message_names_fits() -> None:
    with pytest.raises(NoPlanFits) as raised:
        planned(mlp_module(), request(memory_gib=TOO_LITTLE_GIB))
    named = float(str(raised.value).split("the smallest needs ")[1].removeprefix("at most ").split()[0])
    planned(mlp_module(), request(memory_gib=named * 1.001))  # as above: at another limit bytes are rounded in other units


@pytest.mark.parametrize("amount", [1, 1023, 2**20 + 1, 3 * 2**29 + 7, 12345678901, 2**40 + 1])
def test_a_rounded_need_is_never_less_than_the_need(amount: int) -> None:
    shown = float(f"{rounded_up_gib(amount):.4g}")
    assert amount / GIB <= shown <= 1.002 * amount / GIB  # four significant digits
