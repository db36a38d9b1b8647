"""Convolutions and pooling: samples and channels."""

from __future__ import annotations

from collections.abc import Iterator

from autoplan.rules.ops.dims import Labels, linear_row, product_rows, same_dims
from autoplan.rules.registry import rule
from autoplan.rules.row import Call, Row


@rule("aten.conv1d", "aten.conv2d", "aten.conv3d")
def convolution(call: Call) -> Iterator[Row]:
    """x[N, C, ..], w[D, C, ..], b[D] -> y[N, D, ..]

    x          w         b          y
    S(0,g)     R         R       -> S(0,g)    samples
    R          S(0,g)    S(0,g)  -> S(1,g)    output channels
    S(1,g)     S(1,g)    P       -> P         input channels
    P          R         P       -> P         linear in x

    Channels in groups (groups > 1) stay whole. Positions are not cut: neighbours would have to exchange their borders.
    """
    x, w = call.operands[:2]
    batch = ("n",) if x.ndim == w.ndim else ()
    grouped = int(call.arg(6, "groups", 1)) > 1
    positions = (None,) * (w.ndim - 2)
    inner, outer = (None, None) if grouped else ("c", "d")
    factors: dict[int, Labels] = {0: (*batch, inner, *positions), 1: (outer, inner, *positions)}
    addends: dict[int, Labels] = {2: (outer,)} if len(call.operands) == 3 else {}
    yield from product_rows(call, factors, (*batch, outer, *positions), addends, linear_in=(0,))


_POOLS = {"1d": 1, "2d": 2, "3d": 3}


@rule(*(f"aten.{kind}_pool{n}" for kind in ("max", "avg", "adaptive_avg", "adaptive_max") for n in _POOLS), "aten.max_pool2d_with_indices")
def pooling(call: Call) -> Iterator[Row]:
    """x[.., positions] -> y (and indices), each window for itself

    x          y
    S(d,g)  -> S(d,g)    samples and channels
    P       -> P         averages
    """
    x = call.operands[0]
    positions = next(n for name, n in _POOLS.items() if name in call.op)
    yield from same_dims(call, range(x.ndim - positions))
    if "avg" in call.op:
        yield linear_row(call)
