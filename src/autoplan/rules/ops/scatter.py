"""Writing at indices: scatter, index_add, index_put, masked_scatter, diagonals."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from autoplan.graph.ir import Ref
from autoplan.placement import P, Placement, R, Shard
from autoplan.rules.ops.dims import aligned, groups_of, linear_row, shard_or_whole, shards
from autoplan.rules.registry import LocalCall, local, rule
from autoplan.rules.row import Call, Row


@rule("aten.scatter.src", "aten.scatter.value", "aten.scatter_add", "aten.scatter_reduce")
def scatter(call: Call) -> Iterator[Row]:
    """x, index, src (or a number) -> y: x with y[.., index[i], ..] = src[i] along dim c

    x          index     src         y
    S(d,g)     S(d,g)    S(d,g)   -> S(d,g)    any other dim in which all have the same size
    P          R         P        -> P         where src is a tensor, unless it is reduced by anything but a sum; where it is 0
    P          S(c,g)    S(c,g)   -> P         scatter_add: each rank adds its part
    """
    x, *others = call.operands
    if x.ndim == 0:
        return
    dim = int(call.arg(1, "dim")) % x.ndim
    for other in range(x.ndim):
        if other != dim and all(spec.shape[other] == x.shape[other] for spec in others):
            for groups in shards(*((spec, other) for spec in (*call.operands, *call.outputs))):
                yield Row(tuple(Shard(other, groups) for _ in call.operands), (Shard(other, groups),))
    if call.op.startswith("aten.scatter_reduce"):
        return
    if len(others) == 1:
        if call.op.startswith("aten.scatter.value") and call.arg(3, "value") == 0:
            yield Row((P, R), (P,))
        return
    yield Row((P, R, P), (P,))
    if call.op.startswith("aten.scatter_add"):
        yield from _added_parts(others[0].shape[dim] == others[1].shape[dim], call, dim, dim)


def _added_parts(possible: bool, call: Call, index_dim: int, dim: int) -> Iterator[Row]:
    """Rows in which each rank adds a part of what is to be added."""
    index, source = call.operands[1:3]
    for groups in shards((index, index_dim), (source, dim)) if possible else ():
        yield Row((P, Shard(index_dim, groups), Shard(dim, groups)), (P,))


@rule("aten.index_add", "aten.index_copy")
def index_add(call: Call) -> Iterator[Row]:
    """x, index[K], source -> y: x with source[i] added to (or put in place of) y[index[i]] along dim c

    x          index     source      y
    S(d,g)     R         S(d,g)   -> S(d,g)    any other dim
    P          R         P        -> P
    P          S(0,g)    S(c,g)   -> P         index_add: each rank adds its part
    """
    x, index, source = call.operands
    if x.ndim == 0 or index.ndim == 0 or source.ndim != x.ndim:
        return
    dim = int(call.arg(1, "dim")) % x.ndim
    for other in range(x.ndim):
        if other != dim:
            for groups in shards((x, other), (source, other), (call.outputs[0], other)):
                yield Row((Shard(other, groups), R, Shard(other, groups)), (Shard(other, groups),))
    yield Row((P, R, P), (P,))
    yield from _added_parts(call.op.startswith("aten.index_add"), call, 0, dim)


@rule("aten.index_fill")
def index_fill(call: Call) -> Iterator[Row]:
    """x, index[K] (and a value without dims) -> y: x with a value at index along dim c

    x          the others    y
    S(d,g)     R          -> S(d,g)    any other dim
    P          R          -> P         filled with 0
    P          R, value P -> P         where the value is a tensor
    """
    x, *others = call.operands
    rest: tuple[Placement, ...] = tuple(R for _ in others)
    for other in range(x.ndim):
        if other != int(call.arg(1, "dim")) % x.ndim:
            for groups in shards((x, other), (call.outputs[0], other)):
                yield Row((Shard(other, groups), *rest), (Shard(other, groups),))
    if call.operand(3, "value") is not None:
        yield Row((P, R, P), (P,))
    elif call.arg(3, "value") == 0:
        yield Row((P, *rest), (P,))


@rule("aten.index_put", "aten._unsafe_index_put")
def index_put(call: Call) -> Iterator[Row]:
    """x, indices[..] (None for dims that are kept), values -> y: x with values put (or added) at the indices

    x          indices    values       y
    S(d,g)     R          S(e,g)    -> S(d,g)    a dim that is kept; R where values have no such dim
    S(d,g)     S(d',g)    R         -> S(d,g)    one value put where a mask says so, which has d' at d
    P          R          P         -> P
    P          S(d,g)     S(e,g)    -> P         accumulated: each rank adds its part; R where it is stretched
    """
    x, values = call.operands[0], call.operands[-1]
    chosen = list(call.arg(1, "indices"))
    indices = call.operands[1:-1]
    if any(spec.dtype in ("bool", "uint8") for spec in indices):
        yield from _masked_put(call, chosen)
        return
    indexed = [dim for dim, item in enumerate(chosen) if isinstance(item, Ref)]
    ndim = max(spec.ndim for spec in indices)
    kept = [dim for dim in range(x.ndim) if dim not in indexed]
    front = indexed[0] if indexed == list(range(indexed[0], indexed[-1] + 1)) else 0
    width = len(kept) + ndim  # of x[indices], to which values are broadcast
    for position, dim in enumerate(kept):
        own = aligned(values, width, position if position < front else position + ndim, x.shape[dim])
        places = ((x, dim), (call.outputs[0], dim)) if own is None else ((x, dim), (call.outputs[0], dim), (values, own))
        for groups in shards(*places):
            yield Row((Shard(dim, groups), *(R for _ in indices), shard_or_whole(own, groups)), (Shard(dim, groups),))
    yield Row((P, *(R for _ in indices), P), (P,))
    if call.arg(3, "accumulate", False):
        yield from _accumulated(call, ndim, front, width)


def _accumulated(call: Call, ndim: int, front: int, width: int) -> Iterator[Row]:
    indices, values = call.operands[1:-1], call.operands[-1]
    shape = torch.broadcast_shapes(*(spec.shape for spec in indices))
    for dim, size in enumerate(shape):
        own = [aligned(spec, ndim, dim, size) for spec in indices]
        there = aligned(values, width, front + dim, size)
        places = [(spec, d) for spec, d in zip((*indices, values), (*own, there), strict=True) if d is not None]
        for groups in groups_of(*places) if size > 1 else ():
            yield Row((P, *(shard_or_whole(d, groups) for d in own), shard_or_whole(there, groups)), (P,))


def _masked_put(call: Call, chosen: list[object]) -> Iterator[Row]:
    """Rows where one value is put at a single mask, which covers the dims of x from the first that is not kept."""
    x, values = call.operands[0], call.operands[-1]
    if len(call.operands) != 3 or any(size != 1 for size in values.shape):
        return
    mask, first = call.operands[1], next(dim for dim, item in enumerate(chosen) if isinstance(item, Ref))
    for dim in range(x.ndim):
        own = dim - first if 0 <= dim - first < mask.ndim else None
        for groups in shards((x, dim), (call.outputs[0], dim), *([] if own is None else [(mask, own)])):
            yield Row((Shard(dim, groups), shard_or_whole(own, groups), R), (Shard(dim, groups),))
    if not call.arg(3, "accumulate", False):
        yield Row((P, R, P), (P,))


@rule("aten.masked_scatter")
def masked_scatter(call: Call) -> Iterator[Row]:
    """x, mask, source -> y: x with the elements of source, one after another, where the mask says so

    x          mask      source      y
    S(0)       S(0)      R        -> S(0)    each rank begins where those before it end: an all-gather of how many they take
                                             (local implementation)
    P          R         P        -> P
    """
    x, mask, _ = call.operands
    if x.ndim and x.shape == mask.shape:
        yield Row((Shard(0), Shard(0), R), (Shard(0),), local="masked_scatter", inside=("all-gather",))
    yield Row((P, R, P), (P,))


@local("masked_scatter")
def local_masked_scatter(call: LocalCall) -> Tensor:
    """This rank's part: its k-th chosen element is that of the source behind all that ranks before it take."""
    x, mask, source = call.arg(0, "self"), call.arg(1, "mask"), call.arg(2, "source")
    taken = mask.sum().reshape(1)
    before = torch.zeros_like(taken)
    for axis in reversed(call.axes(0, 0)):
        counts = call.group.all_gather(taken, (axis,))
        before = before + counts[: call.group.coordinate[axis]].sum()
        taken = counts.sum().reshape(1)
    position = before + mask.flatten().cumsum(0).view(mask.shape) - 1
    return torch.where(mask, source.flatten()[torch.where(mask, position, 0)], x)


@rule("aten.diagonal", "aten.diag_embed")
def diagonal(call: Call) -> Iterator[Row]:
    """x -> y: two dims to their diagonal, which comes last, or the last dim to the diagonal of two

    x          y
    S(d,g)  -> S(e,g)    any other dim; e is where it goes
    P       -> P
    """
    x, y = call.operands[0], call.outputs[0]
    embeds = call.op.startswith("aten.diag_embed")
    wide, narrow = (y, x) if embeds else (x, y)
    defaults = (-2, -1) if embeds else (0, 1)
    taken = {int(call.arg(2 + i, f"dim{i + 1}", defaults[i])) % wide.ndim for i in (0, 1)}
    for own, there in enumerate(dim for dim in range(wide.ndim) if dim not in taken):
        for groups in shards((narrow, own), (wide, there)):
            source, target = (own, there) if embeds else (there, own)
            yield Row((Shard(source, groups),), (Shard(target, groups),))
    yield linear_row(call)
