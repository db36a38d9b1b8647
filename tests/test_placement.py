"""Placements and meshes: their notation, what is refused, and the local shapes that follow."""

from __future__ import annotations

from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoplan.errors import PlacementError, UsageError
from autoplan.placement import (
    R_PARTIAL,
    Mesh,
    P,
    Placement,
    Placements,
    R,
    S,
    cut,
    dtensor_holds,
    fits,
    format_placements,
    forward_of,
    gradient_of,
    local_shape,
    parse_mesh,
    parse_placement,
)

MESH = Mesh(("x", "y"), (2, 3))
SHARDS = st.builds(S, st.integers(0, 3), st.integers(1, 12))
PLACEMENTS = st.one_of(st.just(R), st.just(P), SHARDS)


@given(PLACEMENTS)
def test_what_is_written_is_read_back(placement: Placement) -> None:
    assert parse_placement(str(placement)) == placement


def test_the_notation_is_that_of_plans() -> None:
    assert format_placements((S(0), R, P, S(1, 3))) == "[S(0), R, P, S(1,3)]"
    assert parse_placement("S(0, 3)") == S(0, 3)
    assert parse_placement("S(1,1)") == S(1)
    assert str(R_PARTIAL) == "R"


@pytest.mark.parametrize("text", ["", "r", "S", "S()", "S(-1)", "S(a)", "S(0,0)", "S(0,3,1)", "S(0) ", " R", "Shard(0)", "S(100)", "S(0"])
def test_what_is_no_placement_is_named(text: str) -> None:
    with pytest.raises(PlacementError) as raised:
        parse_placement(text)
    assert repr(text) in str(raised.value) and "S(dim,groups)" in str(raised.value)


@pytest.mark.parametrize(
    ("text", "mesh"),
    [
        ("4", Mesh(("x",), (4,))),
        ("2x4", Mesh(("x", "y"), (2, 4))),
        ("1x4", Mesh(("x", "y"), (1, 4))),
        ("2x2x2", Mesh(("x", "y", "z"), (2, 2, 2))),
        ("data=2,tensor=4", Mesh(("data", "tensor"), (2, 4))),
        ("dp=8", Mesh(("dp",), (8,))),
    ],
)
def test_meshes_are_read(text: str, mesh: Mesh) -> None:
    assert parse_mesh(text) == mesh


@pytest.mark.parametrize(
    ("text", "token"),
    [
        ("2x", "''"),
        ("", "''"),
        ("0x4", "'0'"),
        ("4x0", "'0'"),
        ("2x-1", "'-1'"),
        ("abc", "'abc'"),
        ("2X4", "'2X4'"),
        ("2.5", "'2.5'"),
        ("dp=2,dp=2", "'dp=2'"),
        ("dp=2,4", "'4'"),
        ("dp=", "'dp='"),
        ("=2", "'=2'"),
        ("1dp=2", "'1dp=2'"),
        ("a=2,b=0", "'b=0'"),
        ("9999999", "'9999999'"),
    ],
)
def test_a_bad_mesh_names_the_bad_token_and_how_to_write_one(text: str, token: str) -> None:
    with pytest.raises(UsageError) as raised:
        parse_mesh(text)
    assert token in raised.value.what.removeprefix(f"mesh {text!r}: ") and "--mesh 4, 2x4" in str(raised.value)


def test_a_repeated_axis_name_is_said_to_repeat() -> None:
    with pytest.raises(UsageError, match=r"'dp=2' repeats the name 'dp'"):
        parse_mesh("dp=2,dp=2")


def test_more_axes_than_there_are_names_for_are_refused() -> None:
    with pytest.raises(UsageError, match="7 axes, at most 6"):
        parse_mesh("x".join("1" * 7))


def test_ranks_are_row_major() -> None:
    assert MESH.size == 6 and MESH.ndim == 2 and str(MESH) == "2x3"
    assert MESH.coordinates() == [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2)]
    assert [MESH.coordinate(rank) for rank in range(6)] == MESH.coordinates()
    assert [MESH.group_size(axes) for axes in ((), (0,), (1,), (0, 1))] == [1, 2, 3, 6]


def test_a_cut_shrinks_its_dim_alone() -> None:
    assert cut((4, 6), S(1), 3) == (4, 2)
    assert cut((4, 12), S(1, 2), 3) == (4, 4)
    assert cut((4, 6), R, 3) == cut((4, 6), P, 3) == (4, 6)
    assert cut((4, 6), S(0), 1) == (4, 6)


@pytest.mark.parametrize(
    ("shape", "placement", "said"),
    [
        ((4,), S(1), "S(1) of a tensor with 1 dims [4]"),
        ((4, 4), S(7), "dims are 0 to 1"),
        ((4,), S(0), "S(0) over 3 ranks does not divide 4"),
        ((6,), S(0, 4), "multiple of 12"),
    ],
)
def test_a_cut_that_cannot_be_says_why(shape: tuple[int, ...], placement: S, said: str) -> None:
    with pytest.raises(PlacementError) as raised:
        cut(shape, placement, 3)
    assert said in str(raised.value)


def test_axes_cut_one_after_another() -> None:
    assert local_shape((12, 5), (S(0), S(0)), MESH) == (2, 5)
    assert local_shape((12, 6), (S(0), S(1)), MESH) == (6, 2)
    assert local_shape((12, 6), (P, R), MESH) == (12, 6)
    assert local_shape((12,), (S(0, 2), S(0)), MESH) == (2,)
    with pytest.raises(PlacementError):
        local_shape((6,), (S(0), S(0, 2)), MESH)  # the first leaves 3, of which 2 groups of 3 cannot be made


@given(st.lists(st.integers(1, 24), min_size=1, max_size=3), st.tuples(PLACEMENTS, PLACEMENTS))
def test_what_fits_has_a_local_shape_and_nothing_else_has(shape: list[int], placements: Placements) -> None:
    try:
        local = local_shape(shape, placements, MESH)
    except PlacementError:
        assert not fits(shape, placements, MESH)
        return
    assert fits(shape, placements, MESH)
    ranks = 1
    for placement, n in zip(placements, MESH.shape, strict=True):
        ranks *= n if isinstance(placement, S) else 1
    numel = [1, 1]
    for whole, part in zip(shape, local, strict=True):
        numel = [numel[0] * whole, numel[1] * part]
    assert numel[0] == ranks * numel[1]


def test_gradients_follow_from_states() -> None:
    """DESIGN 4: of an S the same S, of a P whole, of an R whole or partial as its state says."""
    state = (S(1), S(0, 3), P, R, R_PARTIAL)
    assert gradient_of(state) == (S(1), S(0, 3), R, R, P)
    assert forward_of(state) == (S(1), S(0, 3), P, R, R)


def test_the_two_states_of_a_replicated_value_are_not_equal() -> None:
    assert R != R_PARTIAL and forward_of((R,)) == forward_of((R_PARTIAL,)) == (R,)


def test_dtensor_holds_all_but_later_cuts_of_a_grouped_dim() -> None:
    states = [R, S(0), S(1), S(0, 3), S(1, 2)]
    refused = {(a, b) for a, b in product(states, repeat=2) if not dtensor_holds((a, b))}
    assert refused == {(S(0, 3), S(0)), (S(0, 3), S(0, 3)), (S(1, 2), S(1)), (S(1, 2), S(1, 2))}
    assert not dtensor_holds((S(0, 3), R, S(0)))
    assert dtensor_holds((S(0), R, S(0, 3))) and dtensor_holds((P, S(0, 3)))
