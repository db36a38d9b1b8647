"""Normalisations."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

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
