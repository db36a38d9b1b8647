"""Parameters that travel together: one start, no copies but those that each needs by itself, and what the runtime really does."""

from __future__ import annotations

import pytest
from cost_calls import H200

from autoplan.cost.buckets import carried_seconds, start_seconds
from autoplan.cost.communication import collective_seconds, step_seconds
from autoplan.placement import P, Placement, R, S, parse_mesh
from autoplan.redistribution import Kind, lower

MESH = parse_mesh("4")
AXES = (0,)
MIB = 2**20
PLACES: list[tuple[Kind, Placement, Placement]] = [("all-gather", S(0), R), ("reduce-scatter", P, S(0)), ("all-reduce", P, R)]


def together(kind: Kind, src: Placement, dst: Placement, sizes: list[float], block_bytes: float) -> float:
    (step,) = lower((src,), (dst,), MESH)
    assert step.kind == kind
    return start_seconds(kind, AXES, MESH, H200) + sum(carried_seconds(step, size, block_bytes, MESH, H200) for size in sizes)


@pytest.mark.parametrize(("kind", "src", "dst"), PLACES)
def test_a_whole_block_takes_what_one_tensor_of_its_size_takes(kind: Kind, src: Placement, dst: Placement) -> None:
    (step,) = lower((src,), (dst,), MESH)
    sizes = [100.0 * MIB, 50.0 * MIB, 0.1 * MIB]
    whole = sum(sizes)
    assert together(kind, src, dst, sizes, whole) == pytest.approx(step_seconds(step, whole, MESH, H200))
    assert together(kind, src, dst, [0.0], whole) == start_seconds(kind, AXES, MESH, H200)


def test_tensors_cut_along_dim_0_are_gathered_as_they_lie() -> None:
    """64 MiB in four: 214.42 us (the table) and nothing else."""
    assert together("all-gather", S(0), R, 4 * [16.0 * MIB], 64.0 * MIB) == pytest.approx(214.42e-6)


def test_other_cuts_are_put_in_their_places_one_by_one() -> None:
    """Each of four of 16 MiB is read and written once."""
    along_0, along_1 = (together("all-gather", S(dim), R, 4 * [16.0 * MIB], 64.0 * MIB) for dim in (0, 1))
    assert along_1 - along_0 == pytest.approx(4 * H200.copy_seconds(2 * 16 * MIB))


def test_an_all_reduce_sums_one_copy_of_all() -> None:
    whole = 64.0 * MIB
    expected = collective_seconds("all-reduce", AXES, whole, MESH, H200) + H200.copy_seconds(2 * whole)
    assert together("all-reduce", P, R, 4 * [16.0 * MIB], whole) == pytest.approx(expected)


def test_less_than_the_block_is_on_the_line_between_nothing_and_all() -> None:
    """Between nodes, where seconds are a latency and bytes over a bandwidth, that is what they are."""
    mesh = parse_mesh("16")
    (step,) = lower((S(0),), (R,), mesh)
    part = start_seconds("all-gather", AXES, mesh, H200) + carried_seconds(step, 20.0 * MIB, 64.0 * MIB, mesh, H200)
    assert part == pytest.approx(collective_seconds("all-gather", AXES, 20.0 * MIB, mesh, H200))


def test_alone_on_an_axis_nothing_starts() -> None:
    alone = parse_mesh("1")
    assert start_seconds("all-gather", AXES, alone, H200) == 0.0
