"""Convolutions and pooling: samples and channels."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from autoplan.placement import Shard
from autoplan.rules.ops.dims import Labels, linear_row, product_rows, same_dims, shards
from autoplan.rules.registry import Shapes, rule
from autoplan.rules.row import Call, Row

_GROUPS_AT = {"convolution": 8}  # all others take `groups` as argument 6


def _groups(call: Call) -> int:
    return int(call.arg(_GROUPS_AT.get(call.op.split(".")[1], 6), "groups", 1))


def _local_groups(call: Call, shapes: Shapes) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """As many groups as this rank's output channels belong to."""
    groups, y = _groups(call), call.outputs[0]
    channels = y.ndim - call.operands[1].ndim + 1
    local = groups * shapes[0][channels] // y.shape[channels] if groups > 1 else 1
    position = _GROUPS_AT.get(call.op.split(".")[1], 6)
    if position < len(call.args):
        return (*call.args[:position], local, *call.args[position + 1 :]), call.kwargs
    return call.args, call.kwargs | ({"groups": local} if groups > 1 else {})


@rule(
    "aten.conv1d", "aten.conv2d", "aten.conv3d", "aten.conv_transpose1d", "aten.conv_transpose2d", "aten.conv_transpose3d", "aten.convolution",
    localize=_local_groups,
)  # fmt: skip
def convolution(call: Call) -> Iterator[Row]:
    """x[N, C, ..], w[D, C / groups, ..] (transposed: w[C, D / groups, ..]), b[D] -> y[N, D, ..]

    x          w         b          y
    S(0,g)     R         R       -> S(0,g)    samples
    R          S(0,g)    S(0,g)  -> S(1,g)    output channels; S(1,g) of a transposed w
    S(1,g)     S(1,g)    P       -> P         input channels; S(0,g) of a transposed w
    S(1,g)     S(0,g)    S(0,g)  -> S(1,g)    with groups (depthwise): input and output channels, in whole groups
    P          R         P       -> P         linear in x

    Positions are not cut: neighbours would have to exchange their borders.
    """
    x, w = call.operands[:2]
    batch = ("n",) if x.ndim == w.ndim else ()
    groups, positions = _groups(call), (None,) * (w.ndim - 2)
    inner, outer = (None, None) if groups > 1 else ("c", "d")
    transposed = "transpose" in call.op or ("aten.convolution" in call.op and bool(call.arg(6, "transposed")))
    kernel = (inner, outer) if transposed else (outer, inner)
    factors: dict[int, Labels] = {0: (*batch, inner, *positions), 1: (*kernel, *positions)}
    addends: dict[int, Labels] = {2: (outer,)} if len(call.operands) == 3 else {}
    yield from product_rows(call, factors, (*batch, outer, *positions), addends, linear_in=(0,))
    if groups > 1:
        yield from _whole_groups(call, len(batch), groups)


def _whole_groups(call: Call, channels: int, groups: int) -> Iterator[Row]:
    """Rows that cut the channels (dim `channels`) of a convolution in groups, of which earlier axes have left a part."""
    x, w, *bias = call.operands
    left = groups * x.shape[channels] // call.uncut_shape(0)[channels]
    for count in shards((x, channels), (call.outputs[0], channels), (w, 0), *((b, 0) for b in bias)):
        if left % (count * call.axis_size) == 0:
            ins = (Shard(channels, count), Shard(0, count), *(Shard(0, count) for _ in bias))
            yield Row(ins, (Shard(channels, count),))


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
