"""Attention: heads, queries, masks, more ranks than key/value heads."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from autoplan.placement import Mesh, R
from autoplan.rules import strategies_of
from autoplan.rules.prove import example_call

randn = torch.randn
SDPA = "aten.scaled_dot_product_attention.default"


def qkv(heads: int = 6, kv_heads: int | None = None, queries: int = 6, keys: int = 6) -> list[torch.Tensor]:
    kv = kv_heads or heads
    return [randn(6, heads, queries, 4), randn(6, kv, keys, 4), randn(6, kv, keys, 5)]


CASES: dict[str, tuple[list[Any], dict[str, Any]]] = {
    "plain": (qkv(), {}),
    "causal": ([*qkv(), None, 0.0, True], {}),
    "causal, fewer queries than keys": ([*qkv(queries=6, keys=9), None, 0.0, True], {}),
    "causal, more queries than keys": ([*qkv(queries=12, keys=7), None, 0.0, True], {}),
    "a mask per query": ([*qkv(), torch.rand(6, 6) > 0.3], {}),
    "a mask per sample": ([*qkv(), torch.rand(6, 1, 6, 6) > 0.3], {}),
    "a mask per sample for all queries": ([*qkv(), torch.rand(6, 1, 1, 6) > 0.3], {}),
    "a float mask with a gradient": ([*qkv(), randn(1, 6, 6, 6)], {}),
    "a scale": (qkv(), {"scale": 0.3}),
    "grouped heads": ([*qkv(12, 6), None, 0.0, True], {"enable_gqa": True}),
    "grouped heads, too few to split": ([*qkv(12, 2), None, 0.0, True], {"enable_gqa": True}),
    "one key/value head": (qkv(6, 1), {"enable_gqa": True}),
    "grouped heads that ranks cut across": (qkv(12, 4), {"enable_gqa": True}),
    "three dims": ([randn(6, 6, 4), randn(6, 6, 4), randn(6, 6, 4), None, 0.0, True], {}),
}


@pytest.mark.parametrize("case", CASES)
def test_attention(prove_op: Callable[..., int], case: str) -> None:
    args, kwargs = CASES[case]
    if "mask" in case:
        args[3] = args[3].clone()
        if args[3].dtype is torch.bool:
            args[3][..., 0] = True  # a query without any key has no numbers
    assert prove_op(SDPA, *args, **kwargs, limit=40) > 0


def test_more_ranks_than_key_value_heads_on_three_axes(prove_op: Callable[..., int]) -> None:
    args = [randn(2, 8, 8, 4), randn(2, 2, 8, 4), randn(2, 2, 8, 4), None, 0.0, True]
    assert prove_op(SDPA, *args, enable_gqa=True, meshes=((4,), (8,), (2, 2, 2)), limit=50) > 20


def test_grouped_queries_keep_their_places_under_the_causal_mask(prove_op: Callable[..., int]) -> None:
    assert prove_op(SDPA, *qkv(queries=12, keys=12), None, 0.0, True, hints={0: {2: 2}}, limit=30) > 0


@settings(max_examples=8, deadline=None)
@given(st.integers(1, 4), st.integers(1, 3), st.integers(1, 8), st.booleans())
def test_attention_of_any_shape(prove_op: Callable[..., int], kv_heads: int, ratio: int, seq: int, causal: bool) -> None:
    q, k = (2, kv_heads * ratio, seq, 4), (2, kv_heads, seq, 4)
    prove_op(SDPA, randn(q), randn(k), randn(k), None, 0.0, causal, enable_gqa=True, limit=15)


def test_dropout_gives_every_strategy_the_local_implementation() -> None:
    call, _ = example_call(SDPA, *qkv(), None, 0.1, True)
    strategies = strategies_of(call, Mesh(("x",), (2,)))
    assert strategies[0].needs == ((R,),) * 3
    assert {strategy.local for strategy in strategies} == {"attention"}
