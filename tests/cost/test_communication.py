"""Collectives: measured tables met, the formula near them, nodes and their network cards, and laws."""

from __future__ import annotations

from dataclasses import replace

import pytest
from cost_calls import H200
from cost_truth import COLLECTIVES
from hypothesis import given
from hypothesis import strategies as st

from autoplan.cost.communication import Span, collective_seconds, span, steps_seconds
from autoplan.cost.hardware import KINDS, load_hardware
from autoplan.placement import Mesh, P, R, S, parse_mesh
from autoplan.redistribution import lower

MIB = 2**20
FORMULA = replace(H200, node_link=replace(H200.node_link, measured={}), digest="formula alone")
ROWS = [(group, mib, kind, us) for group, mib, *times in COLLECTIVES for kind, us in zip(KINDS, times, strict=True)]


@pytest.mark.parametrize(("group", "mib", "kind", "us"), ROWS)
def test_a_measured_collective_costs_what_was_measured(group: int, mib: int, kind: str, us: float) -> None:
    assert collective_seconds(kind, (0,), mib * MIB, parse_mesh(str(group)), H200) == pytest.approx(us * 1e-6, rel=0.01)


@pytest.mark.parametrize(("group", "mib", "kind", "us"), ROWS)
def test_the_formula_is_near_what_was_measured(group: int, mib: int, kind: str, us: float) -> None:
    """Its bandwidths are those of 4 ranks: within 15 % there, within 26 % for pairs."""
    predicted = collective_seconds(kind, (0,), mib * MIB, parse_mesh(str(group)), FORMULA)
    assert predicted == pytest.approx(us * 1e-6, rel=0.15 if group == 4 else 0.26)


def test_eight_ranks_follow_the_formula() -> None:
    # latency 33 us + 2 doublings x 22 us = 77 us; 1 GiB x 7/8 / 316 GB/s = 2973 us
    assert collective_seconds("all-gather", (0,), 2**30, parse_mesh("8"), H200) == pytest.approx(3050e-6, rel=1e-3)


def test_groups_inside_a_node_and_groups_that_share_its_cards() -> None:
    assert span((1,), parse_mesh("4x8"), 8) == Span(ranks=8, nodes=1, rings=0, pairs=0)
    # axis x: 8 groups with one rank on each of 4 nodes; every rank of a node has 3 partners elsewhere
    assert span((0,), parse_mesh("4x8"), 8) == Span(ranks=4, nodes=4, rings=8, pairs=24)
    # both axes: one ring of 32; each of 8 ranks has 24 partners elsewhere
    assert span((0, 1), parse_mesh("4x8"), 8) == Span(ranks=32, nodes=4, rings=1, pairs=192)


def test_a_group_across_nodes_shares_their_cards() -> None:
    """8 rings leave each node, each with 3/4 of 64 MiB: 8 x 50.3 MB / 340 GB/s = 1184 us; 55 us + 2 x 15 us latency."""
    assert collective_seconds("all-gather", (0,), 64 * MIB, parse_mesh("4x8"), H200) == pytest.approx(1269e-6, rel=1e-3)


def test_one_group_over_all_ranks_has_the_cards_for_itself() -> None:
    """33 + 4 x 22 + 2 x 15 = 151 us; the node's own links: 64 MiB x 31/32 / 316 GB/s = 206 us, slower than 340 GB/s of cards."""
    assert collective_seconds("all-gather", (0, 1), 64 * MIB, parse_mesh("4x8"), H200) == pytest.approx(357e-6, rel=0.01)


def test_all_to_all_across_nodes_sends_what_leaves_the_node() -> None:
    """192 pairs x 64 MiB / 32 = 403 MB / 340 GB/s = 1184 us; 151 us latency."""
    assert collective_seconds("all-to-all", (0, 1), 64 * MIB, parse_mesh("4x8"), H200) == pytest.approx(1335e-6, rel=1e-3)


def test_free_links_cost_nothing() -> None:
    assert collective_seconds("all-reduce", (0, 1), 2**30, parse_mesh("2x4"), load_hardware("test-free-links")) == 0.0


@given(st.sampled_from(KINDS), st.integers(1, 2**34))
def test_one_rank_costs_nothing(kind: str, nbytes: int) -> None:
    assert collective_seconds(kind, (0,), nbytes, Mesh(("x", "y"), (1, 4)), H200) == 0.0


@given(
    st.sampled_from(KINDS),
    st.sampled_from(["2", "4", "8", "3", "2x8", "16x8", "3x5"]),
    st.integers(0, 2**32),
    st.integers(0, 2**32),
)
def test_more_bytes_never_cost_less(kind: str, mesh: str, few: int, more: int) -> None:
    few, more = sorted((few, more))
    first, second = (collective_seconds(kind, (0,), nbytes, parse_mesh(mesh), H200) for nbytes in (few, more))
    assert first <= second * (1 + 1e-12)


def test_a_redistribution_costs_its_collective_and_its_copies() -> None:
    """64 MiB gathered along dim 1 over 4 ranks: 214.42 us, and a copy that joins what arrives at 4.15 TB/s, 32.3 us."""
    mesh = parse_mesh("4")
    along_1 = steps_seconds(lower((S(1),), (R,), mesh), 64 * MIB, mesh, H200)
    assert along_1 == pytest.approx(214.42e-6 + 2 * 64 * MIB / 4.15e12, rel=1e-6)
    assert steps_seconds(lower((S(0),), (R,), mesh), 64 * MIB, mesh, H200) == pytest.approx(214.42e-6, rel=1e-6)


def test_slices_of_dim_0_are_free_and_others_are_copied() -> None:
    mesh = parse_mesh("4")
    assert steps_seconds(lower((R,), (S(0),), mesh), 2**30, mesh, H200) == 0.0
    # a quarter of 1 GiB read and written: 0.5 GiB / 4.15 TB/s = 129 us
    assert steps_seconds(lower((R,), (S(1),), mesh), 2**30, mesh, H200) == pytest.approx(129.4e-6, rel=1e-3)


def test_bytes_on_one_axis_depend_on_the_cut_on_the_other() -> None:
    mesh = parse_mesh("2x4")
    whole = steps_seconds(lower((R, P), (R, R), mesh), 2**28, mesh, H200)
    half = steps_seconds(lower((S(0), P), (S(0), R), mesh), 2**28, mesh, H200)
    assert half < 0.6 * whole


@given(st.sampled_from([R, P, S(0), S(1)]), st.sampled_from([R, P, S(0), S(1)]), st.integers(1, 2**30))
def test_staying_costs_nothing_and_one_device_moves_nothing(src: object, dst: object, nbytes: int) -> None:
    one = Mesh(("x",), (1,))
    assert steps_seconds(lower((src,), (dst,), one), nbytes, one, H200) == 0.0  # type: ignore[arg-type]
    four = parse_mesh("4")
    assert steps_seconds(lower((src,), (src,), four), nbytes, four, H200) == 0.0  # type: ignore[arg-type]
