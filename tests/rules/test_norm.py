"""Normalisations."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from autoplan.collectives import run_simulated
from autoplan.placement import Mesh, Shard
from autoplan.rules import rows_of
from autoplan.rules.ops.statistics import synchronised_batch_norm
from autoplan.rules.prove import example_call

randn = torch.randn
CASES = {
    "layer_norm": ("aten.layer_norm.default", randn(6, 6, 12), [12], randn(12), randn(12), 1e-5),
    "layer_norm over two dims": ("aten.layer_norm.default", randn(6, 6, 12), [6, 12], randn(6, 12), None, 1e-5),
    "native_layer_norm": ("aten.native_layer_norm.default", randn(6, 6, 12), [12], randn(12), randn(12), 1e-5),
    "rms_norm": ("aten.rms_norm.default", randn(6, 6, 12), [12], randn(12), 1e-5),
    "rms_norm without weight": ("aten.rms_norm.default", randn(6, 6, 12), [12]),
    "group_norm": ("aten.group_norm.default", randn(6, 4, 6), 2, randn(4), randn(4)),
}


@pytest.mark.parametrize("case", CASES)
def test_norms(prove_op: Callable[..., int], case: str) -> None:
    assert prove_op(*CASES[case]) > 0


@settings(max_examples=6, deadline=None)
@given(st.lists(st.integers(1, 6), min_size=2, max_size=4), st.data())
def test_layer_norm_of_any_shape(prove_op: Callable[..., int], shape: list[int], data: st.DataObject) -> None:
    normalised = shape[-data.draw(st.integers(1, len(shape) - 1)) :]
    prove_op("aten.layer_norm.default", randn(shape), normalised, randn(normalised), randn(normalised), limit=20)


def running(channels: int) -> tuple[torch.Tensor, torch.Tensor]:
    return randn(channels), torch.rand(channels) + 0.5


IMAGES = randn(6, 6, 2, 3) * 2 + 5
LEARNED = (randn(6), randn(6))
BATCH_NORM = "aten.batch_norm.default"
BATCH_NORMS = {
    "batch_norm": (BATCH_NORM, IMAGES, *LEARNED, *running(6), True, 0.1, 1e-5, False),
    "of vectors": (BATCH_NORM, randn(12, 6), *LEARNED, *running(6), True, 0.1, 1e-5, False),
    "of sequences": (BATCH_NORM, randn(6, 12, 6), randn(12), randn(12), *running(12), True, 0.1, 1e-5, False),
    "cumulative average": (BATCH_NORM, IMAGES, *LEARNED, *running(6), True, 0.5, 1e-5, False),
    "without running statistics": (BATCH_NORM, IMAGES, *LEARNED, None, None, True, 0.1, 1e-5, False),
    "not affine": (BATCH_NORM, IMAGES, None, None, *running(6), True, 0.1, 1e-3, False),
    "neither": (BATCH_NORM, IMAGES, None, None, None, None, True, 0.1, 1e-5, False),
    "in eval mode": (BATCH_NORM, IMAGES, *LEARNED, *running(6), False, 0.1, 1e-5, False),
    "not affine, in eval mode": (BATCH_NORM, IMAGES, None, None, *running(6), False, 0.1, 1e-5, False),
    "native": ("aten.native_batch_norm.default", IMAGES, *LEARNED, *running(6), True, 0.1, 1e-5),
    "native, in eval mode": ("aten.native_batch_norm.default", IMAGES, *LEARNED, *running(6), False, 0.1, 1e-5),
    "legit": ("aten._native_batch_norm_legit.default", IMAGES, *LEARNED, *running(6), True, 0.1, 1e-5),
    "legit without running statistics": ("aten._native_batch_norm_legit.no_stats", IMAGES, *LEARNED, True, 0.1, 1e-5),
    "functional": ("aten._native_batch_norm_legit_functional.default", IMAGES, *LEARNED, *running(6), True, 0.1, 1e-5),
}
INSTANCE_NORM = "aten.instance_norm.default"
INSTANCE_NORMS = {
    "instance_norm": (INSTANCE_NORM, IMAGES, None, None, None, None, True, 0.1, 1e-5, False),
    "affine": (INSTANCE_NORM, IMAGES, *LEARNED, None, None, True, 0.1, 1e-5, False),
    "running statistics": (INSTANCE_NORM, IMAGES, *LEARNED, *running(6), True, 0.1, 1e-5, False),
    "in eval mode": (INSTANCE_NORM, IMAGES, *LEARNED, *running(6), False, 0.1, 1e-5, False),
}
MESHES = ((2,), (3,), (2, 2), (2, 3), (2, 1, 2))


def running_statistics(case: tuple) -> tuple[int, ...]:
    """Operands that are buffers, which need no gradient: the last two, where statistics are kept."""
    count = sum(isinstance(argument, torch.Tensor) for argument in case)
    return (count - 2, count - 1) if isinstance(case[4], torch.Tensor) else ()


@pytest.mark.parametrize("case", BATCH_NORMS)
def test_batch_norm_by_the_statistics_of_all_ranks(prove_op: Callable[..., int], case: str) -> None:
    call = BATCH_NORMS[case]
    assert prove_op(*call, frozen=running_statistics(call), meshes=MESHES) > 0


@pytest.mark.parametrize("case", INSTANCE_NORMS)
def test_instance_norm(prove_op: Callable[..., int], case: str) -> None:
    call = INSTANCE_NORMS[case]
    assert prove_op(*call, frozen=running_statistics(call), meshes=MESHES) > 0


def test_inputs_without_gradient_take_no_collective_in_backward(prove_op: Callable[..., int]) -> None:
    assert prove_op(*BATCH_NORMS["batch_norm"], frozen=(0, 3, 4)) > 0


def test_channels_in_groups(prove_op: Callable[..., int]) -> None:
    case = (BATCH_NORM, randn(2, 12, 3), randn(12), randn(12), *running(12), True, 0.1, 1e-5, False)
    assert prove_op(*case, frozen=(3, 4), hints={0: {1: 2}}, limit=100) > 0
    assert prove_op("aten.group_norm.default", randn(2, 24, 3), 12, randn(24), randn(24), hints={0: {1: 2}}, limit=100) > 0


@pytest.mark.parametrize(("groups", "splits"), [(6, True), (3, False), (1, False)])
def test_group_norm_splits_channels_in_whole_groups(groups: int, splits: bool) -> None:
    call, _ = example_call("aten.group_norm.default", randn(4, 12, 3), groups, randn(12), randn(12))
    assert (Shard(1) in {row.ins[0] for row in rows_of(replace(call, axis_size=2))}) == splits


def test_variance_of_numbers_far_from_zero_survives_in_fp32() -> None:
    """Sums of squares lose it: in fp32, 1e4 squared has no room for a variance of 1."""
    x = randn(8, 4, 16) + 1e4
    mesh = Mesh(("x",), (4,))

    def rank_main(group: Any) -> torch.Tensor:
        return synchronised_batch_norm(x.chunk(4)[group.coordinate[0]], None, None, 1e-5, (0,), group)[2]

    exact = x.double().var((0, 2), correction=0)
    for variance in run_simulated(mesh, rank_main):
        # each of the 128 differences has a rounding error of 1e4 * 2^-24 = 6e-4, far less in their mean
        torch.testing.assert_close(variance.double(), exact, rtol=1e-3, atol=0)
