"""Tensors cut into pieces and put together."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from autoplan.placement import Shard
from autoplan.rules import rows_of
from autoplan.rules.prove import example_call

randn = torch.randn
INTS = torch.randint(0, 9, (6, 6))
CASES = {
    "split": ("aten.split.Tensor", randn(6, 18), 6, -1),
    "split, the last piece smaller": ("aten.split.Tensor", randn(6, 15), 6, 1),
    "split with sizes": ("aten.split_with_sizes.default", randn(6, 24), [12, 6, 6], 1),
    "split with sizes that share nothing": ("aten.split_with_sizes.default", randn(6, 7), [3, 4], 1),
    "chunk": ("aten.chunk.default", randn(6, 12), 2, -1),
    "unbind": ("aten.unbind.int", randn(6, 2, 6), 1),
    "select": ("aten.select.int", randn(6, 3, 6), 1, -1),
    "slice of another dim": ("aten.slice.Tensor", randn(6, 6), 1, 1, 4),
    "slice of a half": ("aten.slice.Tensor", randn(6, 24), 1, 12, 9223372036854775807),
    "slice of a middle third": ("aten.slice.Tensor", randn(6, 36), -1, 12, 24),
    "slice from the end": ("aten.slice.Tensor", randn(6, 24), 1, -12, 9223372036854775807),
    "slice of all": ("aten.slice.Tensor", randn(6, 6), 0, 0, 9223372036854775807),
    "slice with steps": ("aten.slice.Tensor", randn(6, 12), 1, 0, 12, 2),
    "narrow": ("aten.narrow.default", randn(6, 24), 1, 12, 12),
    "cat": ("aten.cat.default", [randn(6, 6), randn(6, 12)], 1),
    "cat of one tensor twice": ("aten.cat.default", [A := randn(6, 6), A], -1),
    "cat of three": ("aten.cat.default", [randn(6, 6), randn(6, 6), randn(6, 6)], 0),
    "stack": ("aten.stack.default", [randn(6, 6), randn(6, 6)], 1),
    "stack behind": ("aten.stack.default", [randn(6, 6), randn(6, 6)], -1),
    "pad": ("aten.pad.default", randn(6, 6), [0, 1]),
    "pad of labels": ("aten.pad.default", INTS, [0, 1], "constant", -100.0),
    "constant_pad_nd": ("aten.constant_pad_nd.default", randn(6, 6, 6), [1, 0, 0, 2], 0.5),
    "roll": ("aten.roll.default", randn(6, 6), [1], [0]),
    "flip": ("aten.flip.default", randn(6, 6), [1]),
    "repeat": ("aten.repeat.default", randn(6, 6), [2, 1, 3]),
    "tile": ("aten.tile.default", randn(6, 6), [2]),
    "tile into more dims": ("aten.tile.default", randn(6, 6), [2, 1, 3]),
    "chunk into unequal pieces": ("aten.chunk.default", randn(6, 7), 3, -1),
    "unbind the first dim": ("aten.unbind.int", randn(2, 6, 6)),
    "roll of two dims": ("aten.roll.default", randn(6, 6, 4, 4), [1, -1], [2, 3]),
    "roll of all": ("aten.roll.default", randn(6, 6), [1]),
    "flip of two dims": ("aten.flip.default", randn(6, 6, 4), [0, 2]),
    "repeat_interleave": ("aten.repeat_interleave.self_int", randn(6, 6), 2, 0),
    "repeat_interleave of all": ("aten.repeat_interleave.self_int", randn(6, 6), 2),
    "tril": ("aten.tril.default", randn(6, 4, 4), 1),
    "triu": ("aten.triu.default", randn(6, 4, 4)),
    "slice_scatter": ("aten.slice_scatter.default", randn(6, 6), randn(6, 2), 1, 2, 4),
    "select_scatter": ("aten.select_scatter.default", randn(6, 4, 6), randn(6, 6), 1, 2),
}


@pytest.mark.parametrize("case", CASES)
def test_pieces(prove_op: Callable[..., int], case: str) -> None:
    assert prove_op(*CASES[case], limit=40) > 0


def test_a_fused_projection_is_split_by_heads_of_each_third() -> None:
    call, _ = example_call("aten.split.Tensor", randn(4, 36), 12, -1)
    rows = {row.ins[0]: row.outs for row in rows_of(replace(call, axis_size=2))}
    assert rows[Shard(1, 3)] == (Shard(1), Shard(1), Shard(1))


def test_pieces_of_unequal_size_are_made_of_whole_groups(prove_op: Callable[..., int]) -> None:
    call, _ = example_call("aten.split_with_sizes.default", randn(4, 24), [16, 4, 4], 1)
    rows = {row.ins[0]: row.outs for row in rows_of(replace(call, axis_size=2))}
    assert rows[Shard(1, 6)] == (Shard(1, 4), Shard(1), Shard(1))


@pytest.mark.parametrize("indexing", ["ij", "xy"])
def test_meshgrid(prove_op: Callable[..., int], indexing: str) -> None:
    assert prove_op("aten.meshgrid.indexing", [randn(6), randn(12), randn(6)], indexing=indexing, limit=40) > 0


def test_hints_pass_through_pieces(prove_op: Callable[..., int]) -> None:
    assert prove_op("aten.chunk.default", randn(6, 24), 2, 1, hints={1: {1: 2}, 2: {1: 2}}) > 0
    assert prove_op("aten.slice.Tensor", randn(6, 24), 1, 0, 12, hints={1: {1: 2}}) > 0
    assert prove_op("aten.repeat.default", randn(12, 6), [2, 1], hints={0: {0: 2}}) > 0


@settings(max_examples=10, deadline=None)
@given(st.integers(1, 24), st.integers(0, 24), st.integers(0, 24))
def test_slices_of_any_window(prove_op: Callable[..., int], size: int, start: int, end: int) -> None:
    prove_op("aten.slice.Tensor", randn(2, size), 1, start, end, limit=12)
