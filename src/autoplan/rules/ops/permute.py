"""Views that reorder, add or stretch dims: transpose, permute, expand."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from autoplan.placement import P, Placement, R, Shard
from autoplan.rules.ops.dims import aligned, groups_of, linear_row, normal_dims, shard_or_whole
from autoplan.rules.registry import Shapes, rule
from autoplan.rules.row import Call, Row


@rule(
    "aten.transpose", "aten.permute", "aten.t", "aten.movedim", "aten.swapaxes", "aten.swapdims", "aten.numpy_T", "aten.mT", "aten.adjoint"
)
def permute(call: Call) -> Iterator[Row]:
    """x -> y with dims in another order

    x          y
    S(d,g)  -> S(e,g)    e is where d goes
    P       -> P
    """
    x, y = call.operands[0], call.outputs[0]
    for new, old in enumerate(_order(call, x.ndim)):
        for groups in groups_of((x, old), (y, new)):
            yield Row((Shard(old, groups),), (Shard(new, groups),))
    yield Row((P,), (P,))


def _order(call: Call, ndim: int) -> list[int]:
    """For each dim of the output, the dim of the input that it is."""
    order = list(range(ndim))
    name = call.op.split(".")[1]
    if name == "permute":
        return list(normal_dims(call.arg(1, "dims"), ndim))
    if name == "numpy_T":
        return order[::-1]
    if name == "movedim":
        source, target = normal_dims(call.arg(1, "source"), ndim), normal_dims(call.arg(2, "destination"), ndim)
        rest = iter([dim for dim in order if dim not in source])
        placed = dict(zip(target, source, strict=True))
        return [placed[dim] if dim in placed else next(rest) for dim in order]
    if name in ("t", "mT", "adjoint"):
        first, second = (0, ndim - 1) if name == "t" else (ndim - 2, ndim - 1)
    else:
        first, second = call.arg(1, "dim0") % ndim, call.arg(2, "dim1") % ndim
    if ndim > 1:
        order[first], order[second] = order[second], order[first]
    return order


def _local_expand(call: Call, shapes: Shapes) -> tuple[tuple[Any, ...], dict[str, Any]]:
    return (call.args[0], shapes[0]), {}


@rule("aten.broadcast_tensors")
def broadcast_tensors(call: Call) -> Iterator[Row]:
    """a, b, .. -> each stretched to the shape of all

    a         b            outputs
    S(d,g)    S(d',g)   -> S(e,g)     where broadcasting puts d and d'; R where one has none or it is stretched
    P         P         -> P
    """
    y = call.outputs[0]
    for dim, size in enumerate(y.shape):
        own = [aligned(spec, y.ndim, dim, size) for spec in call.operands]
        places = [(spec, d) for spec, d in zip(call.operands, own, strict=True) if d is not None]
        for groups in groups_of(*((spec, dim) for spec in call.outputs), *places) if size > 1 else ():
            yield Row(tuple(shard_or_whole(d, groups) for d in own), tuple(Shard(dim, groups) for _ in call.outputs))
    yield linear_row(call)


@rule("aten.expand", "aten.expand_as", "aten.broadcast_to", localize=_local_expand, runs_as="aten.expand.default")
def expand(call: Call) -> Iterator[Row]:
    """x -> y, dims of size 1 stretched and new ones put in front

    x          y
    S(d,g)  -> S(e,g)    e is where broadcasting puts d
    R       -> S(e,g)    a new or stretched dim: each rank makes its part of it
    P       -> P
    """
    x, y = call.operands[0], call.outputs[0]
    lenders = (None,) * (len(call.operands) - 1)
    for dim, size in enumerate(y.shape):
        own = aligned(x, y.ndim, dim, size)
        places = ((y, dim),) if own is None else ((y, dim), (x, own))
        for groups in groups_of(*places):
            source: Placement = R if own is None else Shard(own, groups)
            yield Row((source, *lenders), (Shard(dim, groups),))
    yield Row((P, *lenders), (P,))
