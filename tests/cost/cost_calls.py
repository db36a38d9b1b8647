"""Calls made by hand: the shapes and dtypes that cost is asked about, without a model."""

from __future__ import annotations

from typing import Any

from autoplan.cost.hardware import Hardware, load_hardware
from autoplan.graph.ir import Ref
from autoplan.rules.row import Call, TensorSpec

H200: Hardware = load_hardware("h200-sxm")


def tensor(*shape: int, dtype: str = "bfloat16", grad: bool = True) -> TensorSpec:
    return TensorSpec(shape, dtype, grad)


def call(
    op: str, *operands: TensorSpec, out: TensorSpec | tuple[TensorSpec, ...], args: tuple[Any, ...] | None = None, **kwargs: Any
) -> Call:
    """A call whose arguments are its operands in order, unless `args` says otherwise."""
    given = tuple(Ref(k) for k in range(len(operands))) if args is None else args
    return Call(f"aten.{op}.default", given, kwargs, operands, out if isinstance(out, tuple) else (out,), 1)


def linear(m: int, k: int, n: int, *, x_grad: bool = True, w_grad: bool = True) -> Call:
    x, w = tensor(m, k, grad=x_grad), tensor(n, k, grad=w_grad)
    return call("linear", x, w, out=tensor(m, n, grad=x_grad or w_grad))


def attention(
    batch: int,
    heads: int,
    queries: int,
    keys: int | None = None,
    *,
    kv_heads: int | None = None,
    size: int = 128,
    causal: bool = True,
    dropout: float = 0.0,
) -> Call:
    q = tensor(batch, heads, queries, size)
    k = tensor(batch, kv_heads or heads, keys or queries, size)
    return call("scaled_dot_product_attention", q, k, k, out=q, is_causal=causal, dropout_p=dropout)
