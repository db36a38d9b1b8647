"""Elementwise ops: ATen's pointwise tag, and a table of what the tag misses."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from autoplan.placement import P, Placement, R, Shard
from autoplan.rules.ops.dims import aligned, groups_of, shard_or_whole, shards
from autoplan.rules.registry import rule, rule_of_tag
from autoplan.rules.row import Call, Row

# f(a + b) = f(a) + f(b): partial sums pass through.
_LINEAR = frozenset({
    "neg", "negative", "positive", "clone", "contiguous", "alias", "detach", "lift_fresh_copy", "to", "_to_copy", "type_as", "float", "double",
    "add", "sub", "rsub", "subtract", "_conj_physical", "conj_physical", "deg2rad", "rad2deg",
})  # fmt: skip
_PRODUCTS = frozenset({"mul", "multiply"})
_QUOTIENTS = frozenset({"div", "divide", "true_divide"})
# Those linear in some of their operands together, the others being whole; a number in place of an operand must be 0.
_JOINTLY: dict[str, tuple[tuple[int, ...], ...]] = {
    "lerp": ((0, 1),),
    "addcmul": ((0, 1), (0, 2)),
    "addcdiv": ((0, 1),),
    "where": ((1, 2),),
    "masked_fill": ((0, 2),),
}
# Operands that lend shape, dtype or device only: their values are not read.
_LENDERS = {"aten.type_as.default": 1, "aten.to.other": 1}

_UNTAGGED = (
    "aten.to", "aten._to_copy", "aten.type_as", "aten.contiguous", "aten.alias", "aten.detach", "aten.lift_fresh_copy",
    "aten.__and__", "aten.__or__", "aten.__xor__", "aten.__lshift__", "aten.__rshift__",
    "aten.where.Scalar", "aten.where.ScalarOther", "aten.where.ScalarSelf", "aten.fill", "aten.masked_fill", "aten.rsub",
    "aten.divide", "aten.multiply", "aten.subtract", "aten.negative", "aten.floor_divide", "aten.not_equal", "aten.greater",
    "aten.greater_equal", "aten.less", "aten.less_equal", "aten.log_sigmoid", "aten.isreal", "aten.isclose", "aten.absolute", "aten.fix",
    "aten.softplus", "aten.leaky_relu", "aten.hardswish", "aten.special_expit", "aten.special_log1p",
    "aten.clamp",
)  # fmt: skip


@rule_of_tag(torch.Tag.pointwise)
@rule(*_UNTAGGED)
def pointwise(call: Call) -> Iterator[Row]:
    """f(a, b, ..) for each element, operands broadcast to the output

    a        b           out
    S(d,g)   S(d',g)  -> S(d,g)    d' is the dim of b that broadcasting puts at d; R where b has none or it is stretched
    P        P        -> P         ops linear in all tensors together: add, sub, neg, casts between floats, clone, ..
    P        R        -> P         mul, div
    R        P        -> P         mul
    R P      P        -> P         where; masked_fill (R, the mask, comes second there); a number in place of a tensor must be 0
    P P      R        -> P         lerp; addcmul and addcdiv, where the factors may change places
    """
    output, name = call.outputs[0], _name(call)
    lender = _LENDERS.get(call.op)
    for dim, size in enumerate(output.shape):
        if size < 2:
            continue
        own = [None if k == lender else aligned(spec, output.ndim, dim, size) for k, spec in enumerate(call.operands)]
        places = [(spec, d) for spec, d in zip(call.operands, own, strict=True) if d is not None]
        for groups in groups_of((output, dim), *places):
            ins = tuple(None if k == lender else shard_or_whole(d, groups) for k, d in enumerate(own))
            yield Row(ins, tuple(shard_or_whole(dim, groups) for _ in call.outputs))
    if all(spec.is_float for spec in call.outputs):
        for partial in _linear_forms(call, name):
            ins = tuple(None if k == lender else placement for k, placement in enumerate(partial))
            yield Row(ins, tuple(P for _ in call.outputs))


@rule("aten.prelu", "aten._prelu_kernel")
def prelu(call: Call) -> Iterator[Row]:
    """x[N, C, ..], weight[C] (or one number) -> y

    x          weight    y
    S(d,g)     R      -> S(d,g)    any dim but that of the weight
    S(1,g)     S(0,g) -> S(1,g)    channels

    `_prelu_kernel` has a weight that broadcasts to x.
    """
    x, weight = call.operands
    if weight.ndim == x.ndim > 1:
        yield from pointwise(call)
        return
    for dim in range(x.ndim):
        own = 0 if weight.ndim and weight.shape[0] > 1 and dim == min(1, x.ndim - 1) else None
        for groups in shards((x, dim), (call.outputs[0], dim), *([] if own is None else [(weight, own)])):
            yield Row((Shard(dim, groups), shard_or_whole(own, groups)), (Shard(dim, groups),))


@rule("aten.bucketize.Tensor", "aten.isin.Tensor_Tensor", "aten.searchsorted.Tensor")
def looked_up(call: Call) -> Iterator[Row]:
    """x, a vector -> for each element of x where it stands among those of the vector, or whether it is one of them

    x          vector    y
    S(d,g)     R      -> S(d,g)    any dim; searchsorted has the vector first
    """
    if len(call.operands) != 2:
        return
    x, vector = call.operands if not call.op.startswith("aten.searchsorted") else call.operands[::-1]
    for dim in range(x.ndim if vector.ndim == 1 or call.op.startswith("aten.isin") else 0):
        for groups in shards((x, dim), (call.outputs[0], dim)):
            yield Row(tuple(Shard(dim, groups) if spec is x else R for spec in call.operands), (Shard(dim, groups),))


@rule("aten.cosine_similarity", "aten.pairwise_distance")
def similarity(call: Call) -> Iterator[Row]:
    """a, b, broadcast to each other -> y without dim c (the last, for distances), or with 1 there

    a          b           y
    S(d,g)     S(d',g)  -> S(e,g)    any other dim, d and d' where it is in a and b (R where it is stretched), e in y
    """
    shape = torch.broadcast_shapes(*(spec.shape for spec in call.operands))
    similar = call.op.startswith("aten.cosine_similarity")
    along = int(call.arg(2, "dim", 1)) % len(shape) if similar else len(shape) - 1
    keeps = call.outputs[0].ndim == len(shape)
    for dim, size in enumerate(shape):
        own = [aligned(spec, len(shape), dim, size) for spec in call.operands]
        there = dim - (dim > along and not keeps)
        places = [(spec, d) for spec, d in zip(call.operands, own, strict=True) if d is not None]
        for groups in groups_of((call.outputs[0], there), *places) if dim != along and size > 1 else ():
            yield Row(tuple(shard_or_whole(d, groups) for d in own), (Shard(there, groups),))


@rule("aten.cdist", "aten._cdist_forward")
def distances(call: Call) -> Iterator[Row]:
    """a[.., M, C], b[.., N, C] -> y[.., M, N], the distance of each pair

    a           b           y
    S(d,g)      S(d,g)   -> S(d,g)     leading dims, where neither is stretched
    S(-2,g)     R        -> S(-2,g)
    R           S(-2,g)  -> S(-1,g)
    S(-1,g)     S(-1,g)  -> P          the distance |a - b| summed over coordinates (p = 1)
    """
    a, b, y = *call.operands, call.outputs[0]
    for dim in range(y.ndim - 2):
        if a.shape[:-2] == b.shape[:-2]:
            for groups in shards((a, dim), (b, dim), (y, dim)):
                yield Row((Shard(dim, groups), Shard(dim, groups)), (Shard(dim, groups),))
    for groups in shards((a, a.ndim - 2), (y, y.ndim - 2)):
        yield Row((Shard(a.ndim - 2, groups), R), (Shard(y.ndim - 2, groups),))
    for groups in shards((b, b.ndim - 2), (y, y.ndim - 1)):
        yield Row((R, Shard(b.ndim - 2, groups)), (Shard(y.ndim - 1, groups),))
    if call.arg(2, "p", 2.0) == 1.0:
        for groups in shards((a, a.ndim - 1), (b, b.ndim - 1)):
            yield Row((Shard(a.ndim - 1, groups), Shard(b.ndim - 1, groups)), (P,))


def _linear_forms(call: Call, name: str) -> Iterator[tuple[Placement, ...]]:
    """Placements of the operands under which the op passes partial sums on."""
    n = len(call.operands)
    if name in _LINEAR:
        if name not in ("add", "sub", "rsub", "subtract") or n == 2 or call.arg(1, "other") == 0:
            yield (P,) * n
    elif name in _PRODUCTS:
        for chosen in range(n):
            yield tuple(P if k == chosen else R for k in range(n))
    elif name in _QUOTIENTS and call.operand(0, "self") == 0 and call.kwargs.get("rounding_mode") is None:
        yield (P, *(R for _ in range(n - 1)))
    for together in _JOINTLY.get(name, ()):
        tensors = {operand for k in together if (operand := call.operand(k)) is not None}
        if all(call.operand(k) is not None or call.arg(k, "value") == 0 for k in together):
            yield tuple(P if k in tensors else R for k in range(n))


def _name(call: Call) -> str:
    return call.op.split(".")[1]
