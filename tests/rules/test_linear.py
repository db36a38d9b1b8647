"""Matrix products, each row on real tensors."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from autoplan.placement import P, R, Shard
from autoplan.rules import rows_of
from autoplan.rules.prove import example_call

randn = torch.randn
CASES = {
    "linear": ("aten.linear.default", randn(6, 12), randn(6, 12), randn(6)),
    "linear without bias": ("aten.linear.default", randn(2, 6, 12), randn(6, 12)),
    "addmm": ("aten.addmm.default", randn(6), randn(12, 6), randn(6, 6)),
    "addmm with a whole bias": ("aten.addmm.default", randn(12, 6), randn(12, 6), randn(6, 6)),
    "addmm with a row of bias": ("aten.addmm.default", randn(1, 6), randn(12, 6), randn(6, 6)),
    "baddbmm": ("aten.baddbmm.default", randn(6, 6, 4), randn(6, 6, 12), randn(6, 12, 4)),
    "mm": ("aten.mm.default", randn(6, 12), randn(12, 6)),
    "bmm": ("aten.bmm.default", randn(6, 4, 6), randn(6, 6, 12)),
    "mv": ("aten.mv.default", randn(6, 12), randn(12)),
    "dot": ("aten.dot.default", randn(12), randn(12)),
    "outer": ("aten.outer.default", randn(6), randn(12)),
    "matmul": ("aten.matmul.default", randn(6, 4, 12), randn(12, 6)),
    "matmul that broadcasts": ("aten.matmul.default", randn(6, 1, 4, 12), randn(4, 12, 6)),
    "matmul of a vector": ("aten.matmul.default", randn(12), randn(4, 12, 6)),
    "einsum": ("aten.einsum.default", "bthd,hde->bte", [randn(2, 6, 6, 4), randn(6, 4, 6)]),
    "einsum without arrow": ("aten.einsum.default", "ij,jk", [randn(6, 12), randn(12, 6)]),
    "einsum of scores": ("aten.einsum.default", "bthd,bshd->bhts", [randn(2, 6, 6, 4), randn(2, 4, 6, 4)]),
    "einsum of a product alone": ("aten.einsum.default", "bi,bi->bi", [randn(6, 6), randn(6, 6)]),
    "einsum of three": ("aten.einsum.default", "bi,ij,bj->b", [randn(6, 6), randn(6, 4), randn(6, 4)]),
    "einsum with dots": ("aten.einsum.default", "...ij,...kj->...ik", [randn(6, 6, 4), randn(6, 6, 4)]),
    "einsum with dots that broadcast": ("aten.einsum.default", "...i,ji->...j", [randn(6, 2, 6), randn(12, 6)]),
    "einsum with stretched dots": ("aten.einsum.default", "...ij,...jk->...ik", [randn(6, 1, 2, 6), randn(6, 6, 4)]),
    "einsum with dots, without arrow": ("aten.einsum.default", "...ij,jk", [randn(6, 2, 6), randn(6, 4)]),
    "bilinear": ("aten.bilinear.default", randn(6, 6), randn(6, 6), randn(12, 6, 6), randn(12)),
    "tensordot": ("aten.tensordot.default", randn(6, 4, 6), randn(6, 6, 2), [2, 0], [0, 1]),
}


@pytest.mark.parametrize("case", CASES)
def test_products(prove_op: Callable[..., int], case: str) -> None:
    assert prove_op(*CASES[case]) > 0


def test_linear_with_grouped_columns_and_rows(prove_op: Callable[..., int]) -> None:
    assert prove_op("aten.linear.default", randn(6, 12), randn(24, 12), randn(24), hints={0: {1: 2}, 1: {0: 4}}) > 0


def test_on_three_axes(prove_op: Callable[..., int]) -> None:
    assert prove_op("aten.linear.default", randn(8, 8), randn(8, 8), randn(8), meshes=((2, 2, 2),)) > 50


@settings(max_examples=8, deadline=None)
@given(st.integers(1, 7), st.integers(1, 13), st.integers(1, 13), st.booleans())
def test_linear_of_any_shape(prove_op: Callable[..., int], rows: int, inner: int, columns: int, bias: bool) -> None:
    operands = [randn(2, rows, inner), randn(columns, inner)] + [randn(columns)] * bias
    prove_op("aten.linear.default", *operands, limit=20)


def test_splitting_the_inner_dim_gives_a_partial_sum_and_needs_a_partial_bias() -> None:
    call, _ = example_call("aten.linear.default", randn(6, 12), randn(6, 12), randn(6))
    rows = {row.ins: row.outs for row in rows_of(_on(call, 3))}
    assert rows[Shard(1), Shard(1), P] == (P,)
    assert rows[R, Shard(0), Shard(0)] == (Shard(1),)


def test_rows_that_do_not_divide_are_dropped() -> None:
    call, _ = example_call("aten.linear.default", randn(5, 12), randn(7, 12))
    assert [str(row) for row in rows_of(_on(call, 2))] == ["R R -> R", "S(1) S(1) -> P", "P R -> P"]


def _on(call, axis_size):  # type: ignore[no-untyped-def]
    from dataclasses import replace

    return replace(call, axis_size=axis_size)
