"""Tables and indices: embedding, index, index_select, gather, one_hot."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from autoplan.graph.ir import Ref
from autoplan.placement import P, Placement, R, Shard
from autoplan.rules.ops.dims import aligned, groups_of, shard_or_whole, shards
from autoplan.rules.registry import LocalCall, local, rule
from autoplan.rules.row import Call, Row


@rule("aten.embedding")
def embedding(call: Call) -> Iterator[Row]:
    """weight[V, D], ids[..] -> y[.., D]

    weight    ids         y
    R         S(d,g)   -> S(d,g)    data or sequence parallel
    S(1,g)    R        -> S(-1,g)   columns
    S(0)      R        -> P         vocabulary: each rank looks up the ids it holds, zeros elsewhere (local implementation)
    P         R        -> P         linear in the table
    """
    weight, ids, y = *call.operands, call.outputs[0]
    scaled = bool(call.arg(3, "scale_grad_by_freq", False))  # by how often an id occurs in all of ids
    for dim in range(0 if scaled else ids.ndim):
        for groups in shards((ids, dim), (y, dim)):
            yield Row((R, Shard(dim, groups)), (Shard(dim, groups),))
    for groups in shards((weight, 1), (y, ids.ndim)):
        yield Row((Shard(1, groups), R), (Shard(ids.ndim, groups),))
    if not scaled:
        yield Row((Shard(0), R), (P,), local="embedding")
    yield Row((P, R), (P,))


@local("embedding")
def local_embedding(call: LocalCall) -> Tensor:
    """The rows of the ids that this rank's part of the vocabulary holds, zeros for the others."""
    weight, ids = call.arg(0, "weight"), call.arg(1, "indices")
    first = call.indices(0, 0)[0]
    padding = call.arg(2, "padding_idx", -1) - first
    inside = (ids >= first) & (ids < first + weight.shape[0])
    rows = F.embedding(torch.where(inside, ids - first, 0), weight, padding if 0 <= padding < weight.shape[0] else None)
    return rows.masked_fill(~inside.unsqueeze(-1), 0)


@rule("aten.index.Tensor")
def index(call: Call) -> Iterator[Row]:
    """x, indices[..] (None for dims that are kept) -> y

    x         index         y
    S(d,g)    R          -> S(e,g)    a dim that is kept
    R         S(d',g)    -> S(e,g)    a dim of the indices; R where an index is stretched along it
    P         R          -> P
    """
    x, y = call.operands[0], call.outputs[0]
    chosen = list(call.arg(1, "indices"))
    indexed = [dim for dim, item in enumerate(chosen) if isinstance(item, Ref)]
    indices = call.operands[1:]
    if any(spec.dtype in ("bool", "uint8") for spec in indices):
        return
    ndim = max(spec.ndim for spec in indices)
    adjacent = indexed == list(range(indexed[0], indexed[-1] + 1))
    front = indexed[0] if adjacent else 0
    kept = [dim for dim in range(x.ndim) if dim not in indexed]
    for position, dim in enumerate(kept):
        there = position if position < front else position + ndim
        for groups in shards((x, dim), (y, there)):
            yield Row((Shard(dim, groups), *(R for _ in indices)), (Shard(there, groups),))
    for dim in range(ndim):
        size = y.shape[front + dim]
        own = [aligned(spec, ndim, dim, size) for spec in indices]
        places = [(spec, d) for spec, d in zip(indices, own, strict=True) if d is not None]
        for groups in groups_of((y, front + dim), *places):
            yield Row((R, *(shard_or_whole(d, groups) for d in own)), (Shard(front + dim, groups),))
    yield Row((P, *(R for _ in indices)), (P,))


@rule("aten.index_select")
def index_select(call: Call) -> Iterator[Row]:
    """x, index[N] -> y with dim c of x replaced by N chosen ones

    x         index       y
    S(d,g)    R        -> S(d,g)    any other dim
    R         S(0,g)   -> S(c,g)
    P         R        -> P
    """
    x, index, y = *call.operands, call.outputs[0]
    dim = int(call.arg(1, "dim")) % x.ndim
    for other in range(x.ndim):
        if other != dim:
            for groups in shards((x, other), (y, other)):
                yield Row((Shard(other, groups), R), (Shard(other, groups),))
    for groups in groups_of((index, 0), (y, dim)) if index.ndim else ():
        yield Row((R, Shard(0, groups)), (Shard(dim, groups),))
    yield Row((P, R), (P,))


@rule("aten.gather", "aten.take_along_dim")
def gather(call: Call) -> Iterator[Row]:
    """x, index -> y[i] = x[.., index[i], ..] along dim c, shaped as index

    x         index       y
    S(d,g)    S(d,g)   -> S(d,g)    any other dim in which x and index have the same size
    R         S(c,g)   -> S(c,g)
    P         R        -> P
    """
    x, index, y = *call.operands, call.outputs[0]
    position, name = (2, "dim") if call.op.startswith("aten.take_along_dim") else (1, "dim")
    if call.arg(position, name) is None or x.ndim == 0:
        return
    dim = int(call.arg(position, name)) % x.ndim
    for other in range(x.ndim):
        if other != dim and x.shape[other] != index.shape[other]:
            continue
        source: tuple[Placement, ...]
        for groups in shards((index, other), (y, other)):
            source = (R if other == dim else Shard(other, groups), Shard(other, groups))
            yield Row(source, (Shard(other, groups),))
    yield Row((P, R), (P,))


@rule("aten.one_hot")
def one_hot(call: Call) -> Iterator[Row]:
    """ids[..] -> y[.., classes]

    ids        y
    S(d,g)  -> S(d,g)    when the number of classes is given
    """
    if call.arg(1, "num_classes", -1) > 0:
        ids, y = call.operands[0], call.outputs[0]
        for dim in range(ids.ndim):
            for groups in shards((ids, dim), (y, dim)):
                yield Row((Shard(dim, groups),), (Shard(dim, groups),))
