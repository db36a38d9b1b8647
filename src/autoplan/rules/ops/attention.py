"""Scaled dot product attention: batch, heads and queries."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from autoplan.placement import Placement, R, Shard
from autoplan.rules.ops.dims import aligned, groups_of, index_tensor, shard_or_whole
from autoplan.rules.registry import LocalCall, local, rule
from autoplan.rules.row import Call, Row


@rule("aten.scaled_dot_product_attention")
def attention(call: Call) -> Iterator[Row]:
    """q[B, H, T, E], k[B, K, S, E], v[B, K, S, F], mask[.., T, S] -> out[B, H, T, F]

    q         k         v         mask       out
    S(0,g)    S(0,g)    S(0,g)    S(0,g)  -> S(0,g)    batch; mask (and k, v) R where they are stretched along it
    S(1)      S(1)      S(1)      S(1)    -> S(1)      heads, where the ranks divide the K key/value heads
    S(1)      R         R         S(1)    -> S(1)      heads, more ranks than key/value heads: each rank takes those it
                                                       reads (local implementation)
    S(2,g)    R         R         S(2,g)  -> S(2,g)    queries; causal: the mask begins at the rank's first query (local)

    Left out: keys split along S (ring attention) and F split along v (repeats all of q k^T on each rank). With dropout
    every row, also the all-R one, runs the local implementation, for which the default generator is seeded.
    """
    q, k, v = call.operands[:3]
    mask = call.operands[3] if len(call.operands) > 3 else None
    out = call.outputs[0]
    random = "attention" if _drops(call) else None
    causal = bool(call.arg(5, "is_causal", False))
    heads, queries = q.ndim - 3, q.ndim - 2
    ratio = call.uncut_shape(0)[heads] // call.uncut_shape(1)[heads] if heads >= 0 and call.uncut_shape(1)[heads] else 1
    shared = ratio > 1

    def row(dim: int, groups: int, cut_kv: bool, implementation: str | None) -> Row:
        ins: list[Placement] = [Shard(dim, groups)]
        for spec in (k, v):
            ins.append(shard_or_whole(dim if cut_kv and spec.shape[dim] > 1 else None, groups))
        if mask is not None:
            ins.append(shard_or_whole(aligned(mask, q.ndim, dim, q.shape[dim]), groups))
        return Row(tuple(ins), (Shard(dim, groups),), local=implementation or random)

    if random:
        yield Row(tuple(R for _ in call.operands), (R,), local=random)
    if 0 in q.shape or 0 in k.shape:
        return
    for dim in range(queries):
        if dim != heads or not shared:
            for groups in groups_of((q, dim), (out, dim)):
                yield row(dim, groups, True, None)
    if shared:
        # once an earlier axis has cut the queries' heads alone, those that a rank reads are no longer the ones it would be cut
        together = k.shape[heads] % call.axis_size == 0 and q.shape[heads] // k.shape[heads] == ratio
        yield row(heads, 1, together, None if together else "attention")
    for groups in groups_of((q, queries), (out, queries)):
        yield row(queries, groups, False, "attention" if causal else None)


def _drops(call: Call) -> bool:
    return call.arg(4, "dropout_p", 0.0) > 0


@local("attention", by_default_generator=_drops)
def local_attention(call: LocalCall) -> Tensor:
    """Attention of this rank's queries and heads; gradients of whole k and v come out as partial sums.

    The mask of split causal queries is a tensor: `causal_lower_right` fails under torch.compile (2.11) and saves a tenth
    (H100, 2048 of 8192 queries, 32 heads on 8, bf16, forward and backward: 2.9 against 3.3 ms).
    """
    q, k, v = (call.arg(i, name) for i, name in enumerate(("query", "key", "value")))
    mask, dropout, causal = call.arg(3, "attn_mask"), call.arg(4, "dropout_p", 0.0), bool(call.arg(5, "is_causal", False))
    heads, queries = q.ndim - 3, q.ndim - 2
    gqa = bool(call.kwargs.get("enable_gqa", False))
    if gqa and k.shape[heads]:
        k, v, gqa = _own_heads(call, k, v, heads)
    if causal and call.axes(0, queries):
        rows = call.indices(0, queries)
        last = min(max(rows) + 1, k.shape[queries])  # no query of this rank reads a key behind it
        k, v, causal = k.narrow(queries, 0, last), v.narrow(queries, 0, last), False
        mask = index_tensor(rows, q.device)[:, None] >= torch.arange(last, device=q.device)
    options: dict[str, Any] = {
        "attn_mask": mask,
        "dropout_p": dropout,
        "is_causal": causal,
        "scale": call.kwargs.get("scale"),
        "enable_gqa": gqa,
    }
    return F.scaled_dot_product_attention(q, k, v, **options)


def _own_heads(call: LocalCall, k: Tensor, v: Tensor, heads: int) -> tuple[Tensor, Tensor, bool]:
    """The key/value heads that this rank's query heads read, and whether queries still share them."""
    q_spec, k_spec = call.call.operands[:2]
    ratio = q_spec.shape[heads] // k_spec.shape[heads]
    held = {head: i for i, head in enumerate(call.indices(1, heads))}
    wanted = [held[head // ratio] for head in call.indices(0, heads)]
    first, count = wanted[0], len(set(wanted))
    shared = len(wanted) // count
    if wanted == [first + i // shared for i in range(len(wanted))]:
        return k.narrow(heads, first, count), v.narrow(heads, first, count), shared > 1
    chosen = torch.tensor(wanted, device=k.device)
    return k.index_select(heads, chosen), v.index_select(heads, chosen), False
