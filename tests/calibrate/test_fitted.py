"""The search finds the numbers that timings were made with, and is not led astray by a few that are wrong."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autoplan.calibrate.numbers import number_at, with_number
from autoplan.calibrate.search import Parameter, fitted, solved
from autoplan.calibrate.works import Multiply, Product, Timing
from autoplan.cost.hardware import Hardware, load_hardware

H200, CPU = load_hardware("h200-sxm"), load_hardware("cpu-gloo")
MATMUL = ("compute", "matmul")
SHAPES = [
    (8192, 1024, 4096),
    (8192, 4096, 1024),
    (16384, 4096, 14336),
    (512, 4096, 4096),
    (4096, 512, 2048),
    (2048, 128, 2048),
    (1024, 8192, 1024),
]
PRODUCTS = [Product(*shape, "bfloat16", way) for shape in SHAPES for way in ("forward", "backward")]


def with_matmul(efficiency: float, half_depth: float, half_tile: float) -> Hardware:
    hardware = H200
    for name, value in {"efficiency": efficiency, "half_depth": half_depth, "half_tile": half_tile}.items():
        hardware = with_number(hardware, (*MATMUL, name), value)
    return hardware


def of_products(hardware: Hardware) -> Hardware:
    return fitted(
        H200,
        [Parameter((*MATMUL, "efficiency")), Parameter((*MATMUL, "half_depth"), least=0.5), Parameter((*MATMUL, "half_tile"), least=50.0)],
        [Timing(work, work.seconds(hardware), 10) for work in PRODUCTS],
    )


@settings(max_examples=15, deadline=None)
@given(st.floats(0.2, 1.0), st.floats(1.0, 600.0), st.floats(1e3, 2e6))
def test_what_timings_were_made_with_is_found(efficiency: float, half_depth: float, half_tile: float) -> None:
    """Every prediction to 1 %: a tenth of what the profiles that ship are off."""
    truth = with_matmul(efficiency, half_depth, half_tile)
    found = of_products(truth)
    for work in PRODUCTS:
        assert work.seconds(found) == pytest.approx(work.seconds(truth), rel=0.01)


def test_what_has_no_effect_comes_out_as_next_to_nothing() -> None:
    """Less than a thousandth of every time."""
    found = of_products(with_matmul(0.7, 0.0, 0.0)).compute.matmul
    assert found.half_depth < 0.2 and found.half_tile < 500
    assert found.efficiency == pytest.approx(0.7, rel=2e-3)


@given(st.lists(st.floats(-2, 2), min_size=9, max_size=9), st.lists(st.floats(-5, 5), min_size=3, max_size=3))
def test_linear_systems_are_solved(numbers: list[float], right: list[float]) -> None:
    """Of A transposed times A plus one, which is symmetric and positive."""
    a = [numbers[:3], numbers[3:6], numbers[6:]]
    matrix = [[sum(row[i] * row[k] for row in a) + (i == k) for k in range(3)] for i in range(3)]
    found = solved(matrix, right)
    assert [sum(x * y for x, y in zip(row, found, strict=True)) for row in matrix] == pytest.approx(right, abs=1e-6)


@settings(max_examples=20, deadline=None)
@given(st.floats(1e-4, 1e4))
def test_a_machine_that_takes_longer_has_a_bandwidth_as_much_lower(factor: float) -> None:
    hardware = with_number(CPU, ("compute", "launch_s"), 0.0)
    works = [Multiply(2**k, "float32") for k in (20, 22)]
    found = fitted(hardware, [Parameter(("compute", "bytes_per_s"))], [Timing(work, factor * work.seconds(hardware), 10) for work in works])
    assert found.compute.bytes_per_s == pytest.approx(hardware.compute.bytes_per_s / factor, rel=1e-3)


def test_one_timing_of_nine_that_was_disturbed_moves_the_rest_by_little() -> None:
    works = [Multiply(2**k, "bfloat16") for k in range(24, 33)]
    timings = [Timing(work, work.seconds(H200) * (5.0 if k == 4 else 1.0), 10) for k, work in enumerate(works)]
    found = fitted(CPU, [Parameter(("compute", "bytes_per_s"))], timings)
    assert found.compute.bytes_per_s == pytest.approx(H200.compute.bytes_per_s, rel=0.02)


def test_without_timings_nothing_changes() -> None:
    assert fitted(H200, [Parameter(("compute", "bytes_per_s"))], []) == H200


def test_numbers_are_found_and_replaced_by_their_place() -> None:
    for place in (("host", "op_s"), ("node_link", "bytes_per_s", "all-reduce"), ("compute", "attention_forward", "efficiencies", 1, 1)):
        changed = with_number(H200, place, 0.25)
        assert number_at(changed, place) == 0.25
        assert changed != H200, "costs are remembered by digest"
        assert number_at(with_number(changed, place, number_at(H200, place)), place) == number_at(H200, place)
