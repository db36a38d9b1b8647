"""Convolutions and pooling."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

randn = torch.randn
IMAGES = randn(6, 6, 5, 5)
CASES = {
    "conv1d": ("aten.conv1d.default", randn(6, 6, 8), randn(6, 6, 3), randn(6)),
    "conv2d": ("aten.conv2d.default", IMAGES, randn(12, 6, 3, 3), randn(12), [1, 1], [1, 1]),
    "conv2d without bias": ("aten.conv2d.default", IMAGES, randn(6, 6, 3, 3)),
    "conv2d in groups": ("aten.conv2d.default", IMAGES, randn(6, 1, 3, 3), randn(6), [1, 1], [0, 0], [1, 1], 6),
    "one image": ("aten.conv2d.default", randn(6, 5, 5), randn(6, 6, 3, 3)),
    "max_pool2d": ("aten.max_pool2d.default", IMAGES, [2, 2]),
    "avg_pool2d": ("aten.avg_pool2d.default", IMAGES, [2, 2]),
    "adaptive_avg_pool2d": ("aten.adaptive_avg_pool2d.default", IMAGES, [1, 1]),
}


@pytest.mark.parametrize("case", CASES)
def test_convolution_and_pooling(prove_op: Callable[..., int], case: str) -> None:
    assert prove_op(*CASES[case], limit=40) > 0
