"""Convolutions and pooling."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from autoplan.placement import Shard
from autoplan.rules import rows_of
from autoplan.rules.prove import example_call

randn = torch.randn
IMAGES = randn(6, 6, 5, 5)
CASES = {
    "conv1d": ("aten.conv1d.default", randn(6, 6, 8), randn(6, 6, 3), randn(6)),
    "conv2d": ("aten.conv2d.default", IMAGES, randn(12, 6, 3, 3), randn(12), [1, 1], [1, 1]),
    "conv2d without bias": ("aten.conv2d.default", IMAGES, randn(6, 6, 3, 3)),
    "conv2d in groups": ("aten.conv2d.default", IMAGES, randn(6, 1, 3, 3), randn(6), [1, 1], [0, 0], [1, 1], 6),
    "conv2d in whole groups of channels": (
        "aten.conv2d.default",
        randn(2, 12, 3, 3),
        randn(24, 2, 2, 2),
        randn(24),
        [1, 1],
        [0, 0],
        [1, 1],
        6,
    ),
    "depthwise conv1d": ("aten.conv1d.default", randn(2, 12, 6), randn(12, 1, 3), None, [1], [1], [1], 12),
    "conv2d padded to the same size": ("aten.conv2d.padding", IMAGES, randn(6, 6, 3, 3), randn(6), [1, 1], "same"),
    "conv_transpose1d": ("aten.conv_transpose1d.default", randn(6, 6, 4), randn(6, 12, 3), randn(12), [2]),
    "conv_transpose2d": ("aten.conv_transpose2d.input", IMAGES, randn(6, 12, 2, 2), randn(12), [2, 2]),
    "conv_transpose2d in groups": (
        "aten.conv_transpose2d.input",
        randn(2, 12, 3, 3),
        randn(12, 2, 2, 2),
        randn(24),
        [2, 2],
        [0, 0],
        [0, 0],
        12,
    ),
    "convolution": ("aten.convolution.default", IMAGES, randn(12, 6, 3, 3), randn(12), [1, 1], [1, 1], [1, 1], False, [0, 0], 1),
    "convolution, transposed": ("aten.convolution.default", IMAGES, randn(6, 12, 3, 3), randn(12), [1, 1], [1, 1], [1, 1], True, [0, 0], 1),
    "convolution, depthwise": ("aten.convolution.default", randn(2, 12, 4), randn(12, 1, 3), None, [1], [1], [1], False, [0], 12),
    "one image": ("aten.conv2d.default", randn(6, 5, 5), randn(6, 6, 3, 3)),
    "max_pool2d": ("aten.max_pool2d.default", IMAGES, [2, 2]),
    "avg_pool2d": ("aten.avg_pool2d.default", IMAGES, [2, 2]),
    "adaptive_avg_pool2d": ("aten.adaptive_avg_pool2d.default", IMAGES, [1, 1]),
}


@pytest.mark.parametrize("case", CASES)
def test_convolution_and_pooling(prove_op: Callable[..., int], case: str) -> None:
    assert prove_op(*CASES[case], limit=40) > 0


def test_channels_of_a_depthwise_convolution_are_split_with_its_weight() -> None:
    call, _ = example_call("aten.conv2d.default", randn(2, 8, 3, 3), randn(8, 1, 3, 3), randn(8), [1, 1], [1, 1], [1, 1], 8)
    rows = {row.ins[0]: row for row in rows_of(replace(call, axis_size=4))}
    assert rows[Shard(1)].ins == (Shard(1), Shard(0), Shard(0)) and rows[Shard(1)].outs == (Shard(1),)


def test_groups_of_channels_stay_whole() -> None:
    call, _ = example_call("aten.conv2d.default", randn(2, 8, 3, 3), randn(8, 4, 3, 3), None, [1, 1], [1, 1], [1, 1], 2)
    assert Shard(1) in {row.ins[0] for row in rows_of(replace(call, axis_size=2))}
    assert Shard(1) not in {row.ins[0] for row in rows_of(replace(call, axis_size=4))}
