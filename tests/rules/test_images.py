"""Upsampling, padding by copies, pixel shuffle, patches."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

randn = torch.randn
IMAGES = randn(6, 6, 4, 4)
CASES = {
    "nearest1d": ("aten.upsample_nearest1d.vec", randn(6, 6, 4), None, [2.0]),
    "nearest2d": ("aten.upsample_nearest2d.vec", IMAGES, None, [2.0, 2.0]),
    "nearest2d to a size": ("aten.upsample_nearest2d.default", IMAGES, [7, 5]),
    "bilinear2d": ("aten.upsample_bilinear2d.vec", IMAGES, [7, 7], False, None),
    "bilinear2d, corners aligned": ("aten.upsample_bilinear2d.default", IMAGES, [8, 8], True),
    "bilinear2d, antialiased": ("aten._upsample_bilinear2d_aa.vec", IMAGES, [2, 3], False, None),
    "bicubic2d": ("aten.upsample_bicubic2d.vec", IMAGES, [7, 7], False, None),
    "linear1d": ("aten.upsample_linear1d.vec", randn(6, 6, 4), None, False, [2.0]),
    "trilinear3d": ("aten.upsample_trilinear3d.vec", randn(6, 6, 2, 2, 2), None, False, [2.0, 2.0, 2.0]),
    "reflection_pad2d": ("aten.reflection_pad2d.default", IMAGES, [1, 1, 2, 2]),
    "replication_pad1d": ("aten.replication_pad1d.default", randn(6, 6, 4), [1, 1]),
    "pad by reflection": ("aten.pad.default", IMAGES, [1, 1, 1, 1], "reflect"),
    "pad by copies": ("aten.pad.default", IMAGES, [1, 1, 1, 1], "replicate"),
    "pad around": ("aten.pad.default", IMAGES, [1, 1, 1, 1], "circular"),
    "pixel_shuffle": ("aten.pixel_shuffle.default", randn(6, 24, 6, 6), 2),
    "pixel_unshuffle": ("aten.pixel_unshuffle.default", randn(6, 6, 12, 12), 2),
    "channel_shuffle": ("aten.channel_shuffle.default", IMAGES, 3),
    "im2col": ("aten.im2col.default", IMAGES, [2, 2], [1, 1], [0, 0], [2, 2]),
    "im2col of one image": ("aten.im2col.default", randn(6, 4, 4), [2, 2], [1, 1], [0, 0], [2, 2]),
    "col2im": ("aten.col2im.default", randn(6, 24, 4), [4, 4], [2, 2], [1, 1], [0, 0], [2, 2]),
    "unfold": ("aten.unfold.default", randn(6, 8, 6), 1, 4, 2),
    "grid_sampler": ("aten.grid_sampler.default", IMAGES, torch.rand(6, 6, 6, 2) * 2 - 1, 0, 0, False),
}


@pytest.mark.parametrize("case", CASES)
def test_images(prove_op: Callable[..., int], case: str) -> None:
    assert prove_op(*CASES[case], limit=40) > 0


def test_grouped_channels_are_shuffled_into_positions(prove_op: Callable[..., int]) -> None:
    assert prove_op("aten.pixel_shuffle.default", randn(2, 48, 2, 2), 2, hints={0: {1: 3}}, meshes=((2,), (2, 2))) > 0
