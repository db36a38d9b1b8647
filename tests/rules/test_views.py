"""Views that reshape, reorder and stretch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from math import prod

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from autoplan.placement import Mesh, Shard
from autoplan.rules import rows_of, strategies_of
from autoplan.rules.prove import example_call

randn = torch.randn
CASES = {
    "broadcast_tensors": ("aten.broadcast_tensors.default", [randn(6, 1, 6), randn(12, 6)]),
    "view_as_complex": ("aten.view_as_complex.default", randn(6, 6, 2)),
    "view_as_real": ("aten.view_as_real.default", torch.view_as_complex(randn(6, 6, 2))),
    "flatten": ("aten.flatten.using_ints", randn(6, 6, 4), 0, 1),
    "flatten all": ("aten.flatten.using_ints", randn(6, 6)),
    "split into heads": ("aten.view.default", randn(2, 6, 12), [2, 6, -1, 2]),
    "merge heads": ("aten.reshape.default", randn(2, 6, 6, 2).transpose(1, 2), [2, 6, -1]),
    "merge and split": ("aten.view.default", randn(6, 6, 6), [36, 2, 3]),
    "regroup": ("aten.view.default", randn(6, 4), [4, 6]),
    "to a scalar": ("aten.view.default", randn(1, 1), []),
    "from a scalar": ("aten.view.default", randn(()), [1, 1]),
    "unsqueeze": ("aten.unsqueeze.default", randn(6, 4), 1),
    "squeeze": ("aten.squeeze.default", randn(6, 1, 3)),
    "squeeze of a dim that a rank holds one of": ("aten.squeeze.dim", randn(2, 3, 1), 0),
    "squeeze of several dims": ("aten.squeeze.dims", randn(6, 1, 3, 1), [1, 3]),
    "unflatten": ("aten.unflatten.int", randn(6, 12), 1, [6, 2]),
    "_unsafe_view": ("aten._unsafe_view.default", randn(6, 12), [6, 6, 2]),
    "view_as": ("aten.view_as.default", randn(6, 4), randn(6, 2, 2)),
    "view of the bytes": ("aten.view.dtype", torch.arange(12).view(6, 2), torch.int32),
    "transpose": ("aten.transpose.int", randn(6, 4, 6), 1, -1),
    "permute": ("aten.permute.default", randn(6, 4, 3), [2, 0, -2]),
    "t": ("aten.t.default", randn(6, 4)),
    "movedim": ("aten.movedim.int", randn(6, 4, 3), 0, -1),
    "movedim of several": ("aten.movedim.intlist", randn(6, 4, 3, 2), [0, 2], [2, 1]),
    "mT": ("aten.mT.default", randn(6, 4, 3)),
    "numpy_T": ("aten.numpy_T.default", randn(6, 4, 3)),
    "expand": ("aten.expand.default", randn(6, 1, 4), [6, 6, -1]),
    "expand with new dims": ("aten.expand.default", randn(6, 4), [6, 6, 4]),
    "expand_as": ("aten.expand_as.default", randn(6, 1), randn(6, 6)),
}


@pytest.mark.parametrize("case", CASES)
def test_views(prove_op: Callable[..., int], case: str) -> None:
    assert prove_op(*CASES[case]) > 0


def test_flattening_a_split_sequence_gives_a_grouped_shard() -> None:
    call, _ = example_call("aten.flatten.using_ints", randn(4, 6, 5), 0, 1)
    rows = {row.ins[0]: row.outs[0] for row in rows_of(replace(call, axis_size=3))}
    assert rows[Shard(1)] == Shard(0, 4)


def test_a_second_axis_sees_the_batch_that_the_first_left() -> None:
    call, _ = example_call("aten.flatten.using_ints", randn(4, 6, 5), 0, 1)
    made = {strategy.needs[0]: strategy.makes[0] for strategy in strategies_of(call, Mesh(("x", "y"), (2, 2)))}
    assert made[Shard(0), Shard(1)] == (Shard(0), Shard(0, 2))
    assert made[Shard(1), Shard(0)] == (Shard(0, 4), Shard(0))


def test_grouped_columns_become_heads_and_back(prove_op: Callable[..., int]) -> None:
    assert prove_op("aten.view.default", randn(6, 24), [6, 4, 6], hints={0: {1: 4}}) > 0
    assert prove_op("aten.transpose.int", randn(6, 24), 0, 1, hints={0: {1: 4}}) > 0
    assert prove_op("aten.expand.default", randn(12, 1), [12, 12], hints={0: {0: 2}}) > 0


@settings(max_examples=12, deadline=None)
@given(st.lists(st.sampled_from([1, 2, 3, 4, 6]), min_size=1, max_size=4), st.data())
def test_views_between_any_shapes(prove_op: Callable[..., int], shape: list[int], data: st.DataObject) -> None:
    rest = prod(shape)
    target: list[int] = []
    while rest > 1 and len(target) < 4:
        size = data.draw(st.sampled_from([n for n in range(1, rest + 1) if rest % n == 0]))
        target.append(size)
        rest //= size
    prove_op("aten.view.default", randn(shape), [*target, rest], limit=16)
