"""Elementwise ops: broadcasting, linear ones, operands that only lend their dtype."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from autoplan.placement import P, R
from autoplan.rules import rows_of, rule_of
from autoplan.rules.prove import example_call

randn = torch.randn
A, B, POSITIVE = randn(6, 6), randn(6, 6), torch.rand(6, 6) + 0.5
CASES = {
    "add": ("aten.add.Tensor", A, B),
    "add of a number": ("aten.add.Tensor", A, 1.0),
    "add of zero": ("aten.add.Tensor", A, 0),
    "sub with alpha": ("aten.sub.Tensor", A, B),
    "rsub": ("aten.rsub.Scalar", A, 2),
    "mul": ("aten.mul.Tensor", A, B),
    "mul by a number": ("aten.mul.Tensor", A, 0.5),
    "mul by a scalar tensor": ("aten.mul.Tensor", A, randn(())),
    "div": ("aten.div.Tensor", A, POSITIVE),
    "div by a number": ("aten.div.Tensor", A, 3.0),
    "broadcast from the left": ("aten.mul.Tensor", randn(6, 1, 6), randn(4, 1)),
    "broadcast of both": ("aten.add.Tensor", randn(6, 1), randn(1, 6)),
    "neg": ("aten.neg.default", A),
    "pow": ("aten.pow.Tensor_Scalar", A, 2),
    "rsqrt": ("aten.rsqrt.default", POSITIVE),
    "silu": ("aten.silu.default", A),
    "gelu": ("aten.gelu.default", A),
    "tanh": ("aten.tanh.default", A),
    "relu": ("aten.relu.default", A),
    "cos": ("aten.cos.default", A),
    "clamp": ("aten.clamp.default", A, -1.0, 1.0),
    "maximum": ("aten.maximum.default", A, B),
    "prelu": ("aten.prelu.default", randn(6, 12, 2), randn(12)),
    "prelu with one number": ("aten.prelu.default", A, randn(1)),
    "_prelu_kernel": ("aten._prelu_kernel.default", randn(6, 12, 2), randn(1, 12, 1)),
    "bucketize": ("aten.bucketize.Tensor", A, torch.linspace(-1, 1, 5)),
    "searchsorted": ("aten.searchsorted.Tensor", torch.linspace(-1, 1, 5), A),
    "isin": ("aten.isin.Tensor_Tensor", torch.randint(0, 9, (6, 6)), torch.tensor([1, 4])),
    "cosine_similarity": ("aten.cosine_similarity.default", randn(6, 4, 6), randn(6, 4, 6), 1),
    "cosine_similarity of all pairs": ("aten.cosine_similarity.default", randn(6, 1, 4), randn(1, 6, 4), -1),
    "pairwise_distance": ("aten.pairwise_distance.default", randn(6, 4), randn(6, 4)),
    "cdist": ("aten.cdist.default", randn(2, 6, 4), randn(2, 12, 4)),
    "lerp": ("aten.lerp.Tensor", A, B, torch.rand(6, 6)),
    "where": ("aten.where.self", A > 0, A, B),
    "where with a number": ("aten.where.ScalarOther", A > 0, A, 1.0),
    "masked_fill with zero": ("aten.masked_fill.Scalar", A, B > 0, 0.0),
    "masked_fill": ("aten.masked_fill.Scalar", A, (B > 0)[0], -1.0),
    "addcmul": ("aten.addcmul.default", A, B, POSITIVE),
    "to another dtype": ("aten.to.dtype", A, torch.float32),
    "to an integer": ("aten.to.dtype", A, torch.int64),
    "to.dtype_layout": ("aten.to.dtype_layout", A),
    "to.other": ("aten.to.other", A, B),
    "type_as": ("aten.type_as.default", A, B),
    "clone": ("aten.clone.default", A),
    "contiguous": ("aten.contiguous.default", A),
    "detach": ("aten.detach.default", A),
    "alias": ("aten.alias.default", A),
    "and": ("aten.__and__.Tensor", A > 0, B > 0),
    "le": ("aten.le.Tensor", A, B),
    "eq": ("aten.eq.Tensor", A, A),
    "ne": ("aten.ne.Scalar", A.round(), 1),
    "logical_not": ("aten.logical_not.default", A > 0),
    "bitwise_not": ("aten.bitwise_not.default", A > 0),
    "floor_divide": ("aten.floor_divide.default", torch.arange(6), 2),
}


@pytest.mark.parametrize("case", CASES)
def test_pointwise(prove_op: Callable[..., int], case: str) -> None:
    assert prove_op(*CASES[case], limit=40) > 0


@settings(max_examples=10, deadline=None)
@given(st.lists(st.integers(1, 6), min_size=1, max_size=4), st.data())
def test_broadcasting_of_any_shapes(prove_op: Callable[..., int], shape: list[int], data: st.DataObject) -> None:
    def operand() -> torch.Tensor:
        keep = data.draw(st.lists(st.booleans(), min_size=len(shape), max_size=len(shape)))
        skip = data.draw(st.integers(0, len(shape) - 1))
        return randn([n if kept else 1 for n, kept in zip(shape, keep, strict=True)][skip:])

    prove_op("aten.mul.Tensor", operand(), operand(), limit=12)
    prove_op("aten.add.Tensor", operand(), operand(), limit=12)


def partial_inputs(op: str, *args: object) -> set[tuple[object, ...]]:
    from dataclasses import replace

    call, _ = example_call(op, *args)
    return {row.ins for row in rows_of(replace(call, axis_size=2)) if P in row.outs}


def test_partial_sums_pass_through_linear_ops_only() -> None:
    assert partial_inputs("aten.add.Tensor", A, B) == {(P, P)}
    assert partial_inputs("aten.mul.Tensor", A, B) == {(P, R), (R, P)}
    assert partial_inputs("aten.div.Tensor", A, B) == {(P, R)}
    assert partial_inputs("aten.div.Tensor", A, 2.0) == {(P,)}
    for nonlinear in ("aten.silu.default", "aten.abs.default", "aten.to.dtype"):
        args = (torch.int64,) if nonlinear == "aten.to.dtype" else ()
        assert partial_inputs(nonlinear, A, *args) == set(), nonlinear
    assert partial_inputs("aten.add.Tensor", A, 1.0) == set()


def test_an_operand_that_lends_its_dtype_is_not_read() -> None:
    call, _ = example_call("aten.type_as.default", A, B)
    from dataclasses import replace

    assert all(row.ins[1] is None for row in rows_of(replace(call, axis_size=2)))


def test_pointwise_ops_are_known_by_their_tag() -> None:
    assert rule_of("aten.special_bessel_j0.default") is not None
    assert rule_of("aten.linalg_qr.default") is None
    assert rule_of("aten.no_such_op.default") is None
