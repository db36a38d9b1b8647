"""Mixtures of experts: products of runs of rows with one matrix each, and whole mixtures as one op."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import lru_cache
from math import prod
from typing import Any

import torch
from torch import Tensor

from autoplan.collectives import Collectives
from autoplan.collectives.redistribute import own_output
from autoplan.graph.ir import ITEM_BYTES, Ref, map_refs
from autoplan.graph.routed_experts import body_of, call_step, inverse, routed_experts
from autoplan.graph.routing import GROUPED_MATMULS
from autoplan.placement import P, Placement, R, Shard
from autoplan.rules.combine import rows_of
from autoplan.rules.execute import torch_op
from autoplan.rules.ops.dims import groups_of, shards
from autoplan.rules.registry import LocalCall, local, rule, rule_of
from autoplan.rules.row import Call, Row, TensorSpec

BodyCall = tuple[Call, tuple[int, ...], tuple[int, ...]]
"""A call of a body, with the numbers of the body's values that it reads and makes."""


@rule("aten._grouped_mm", "autoplan.grouped_mm", "transformers.grouped_mm_fallback")
def grouped_mm(call: Call) -> Iterator[Row]:
    """x[N, K], w[E, K, M], ends[E] -> y[N, M]: rows ends[e-1] to ends[e] of x times w[e]

    x         w          ends      y
    S(0,1)    R          R      -> S(0,1)    rows: each rank counts from its first one (local implementation)
    R         S(2,g)     R      -> S(1,g)    column parallel
    S(1,g)    S(1,g)     R      -> P         row parallel
    P         R          R      -> P         linear in x
    R         P          R      -> P         linear in w
    """
    x, w = call.operands[:2]
    if len(call.operands) != 3 or (x.ndim, w.ndim) != (2, 3):
        return
    y = call.outputs[0]
    yield Row((Shard(0), R, R), (Shard(0),), local="grouped_mm")
    for groups in shards((w, 2), (y, 1)):
        yield Row((R, Shard(2, groups), R), (Shard(1, groups),))
    for groups in shards((x, 1), (w, 1)):
        yield Row((Shard(1, groups), Shard(1, groups), R), (P,))
    yield Row((P, R, R), (P,))
    yield Row((R, P, R), (P,))


@local("grouped_mm")
def local_grouped_mm(call: LocalCall) -> Tensor:
    """This rank's rows times their experts' matrices."""
    x, w, ends = call.args[:3]
    first = call.indices(0, 0)[0]
    own = (ends - first).clamp(0, x.shape[0]).to(ends.dtype)
    y: Tensor = torch_op(call.call.op)(x, w, own)
    return y


@rule("autoplan.routed_experts")
def experts(call: Call) -> Iterator[Row]:
    """rows[N / repeat, ..].., ids[N], weights[E, ..].. -> y[N, ..], each row by the expert of its id

    rows      ids       weights      y
    S(0,g)    S(0,g)    R         -> S(0,g)    data parallel: every rank sorts its own rows
    S(0,g)    S(0,g)    S(0)      -> S(0,g)    expert parallel: rows travel to their experts and back (local implementation); weights
                                               that are not by expert are R
    R         R         S(d,g)..  -> P         tensor parallel within the experts, by every chain of rows of the body's ops that
                                               keeps the order of the rows; S(d,g) where nothing is summed
    """
    rows, ids, weights = operand_kinds(call)
    y = call.outputs[0]
    by_expert = weights_by_expert(call)
    for groups in groups_of((call.operands[ids], 0), (y, 0), *((call.operands[k], 0) for k in rows)):
        cut = Shard(0, groups)
        data: dict[int, Placement] = dict.fromkeys((*rows, ids), cut)
        yield Row(tuple(data.get(k, R) for k in range(len(call.operands))), (cut,))
        expert: dict[int, Placement] = data | {k: Shard(0) for k in by_expert}
        inside = ("all-to-all",) * len(exchanges(call))
        back = len(inside) - len(rows) - 3  # forward: counts, ids, rows, results
        states = tuple(expert.get(k, R) for k in range(len(call.operands)))
        yield Row(states, (cut,), local="routed_experts", inside=inside, inside_backward=back)
    yield from _within_experts(call)


def operand_kinds(call: Call) -> tuple[range, int, range]:
    """Which operands are rows, which one is the ids, which are weights."""
    rows = len(call.args[0])
    return range(rows), rows, range(rows + 1, len(call.operands))


def weights_by_expert(call: Call) -> tuple[int, ...]:
    """The operands whose first dim counts experts: those that a grouped product or a lookup by id reads."""
    body, (_, _, weights) = body_of(call.args[5]), operand_kinds(call)
    found = set()
    for step in body.steps:
        name = step.op.split(".")[1]
        if name in GROUPED_MATMULS:
            found.add(step.args[1].value)
        elif name in ("index", "index_select", "gather"):
            found.add(step.args[0].value)
    return tuple(k for k in weights if k - 1 in found)  # the body numbers weights from the rows on, without ids between


def exchanges(call: Call) -> tuple[int, ...]:
    """Bytes that each rank puts into each collective of the expert-parallel row: counts, ids, rows, results; in backward again both.

    Of a LOCAL call, as if every expert were as popular as any other.
    """
    rows, ids, _ = operand_kinds(call)
    size = call.operands[ids].shape[0]
    there = [(size * row_size(call.operands[k]), call.operands[k].needs_grad) for k in rows]
    back = size * row_size(call.outputs[0])
    forward = [8 * call.axis_size, 8 * size, *(nbytes for nbytes, _ in there), back]
    return (*forward, *([back] if call.outputs[0].needs_grad else ()), *(nbytes for nbytes, flows in there if flows))


def row_size(spec: TensorSpec) -> int:
    """Bytes of one row."""
    return prod(spec.shape[1:]) * ITEM_BYTES[spec.dtype]


def body_calls(call: Call) -> list[BodyCall]:
    """The calls of the body on the operands' sizes."""
    rows, ids, weights = operand_kinds(call)
    size = call.operands[ids].shape[0]
    specs = [replace(call.operands[k], shape=(size, *call.operands[k].shape[1:]), hints=()) for k in rows]
    specs += [call.operands[k] for k in weights]
    experts = call.operands[weights_by_expert(call)[0]].shape[0]
    return _body_calls(call.args[5], experts, size, tuple(specs))


@lru_cache(maxsize=4096)
def _body_calls(text: str, experts: int, size: int, specs: tuple[TensorSpec, ...]) -> list[BodyCall]:
    body = body_of(text)
    routing = (TensorSpec((size,), "int64", False), TensorSpec((experts,), "int32", False))
    known = [*specs, *routing]
    values = [torch.empty(spec.shape, dtype=getattr(torch, spec.dtype), device="meta") for spec in known]
    calls = []
    for step in body.steps:
        reads: list[int] = []

        def number(ref: Ref, reads: list[int] = reads) -> Ref:
            reads.append(ref.value)
            return Ref(len(reads) - 1)

        args, kwargs = map_refs((step.args, step.kwargs), number)
        made = call_step(step, *map_refs((step.args, step.kwargs), lambda ref: values[ref.value]))
        flows = any(known[k].needs_grad for k in reads)
        outputs = tuple(TensorSpec(tuple(y.shape), str(y.dtype).removeprefix("torch."), flows and y.is_floating_point()) for y in made)
        operands = tuple(known[k] for k in reads)
        numbers = tuple(range(len(known), len(known) + len(outputs)))
        calls.append((Call(step.op, args, kwargs, operands, outputs, 1), tuple(reads), numbers))
        known.extend(outputs)
        values.extend(made)
    return calls


def _with_groups(calls: Sequence[BodyCall], axis_size: int) -> list[BodyCall]:
    """The calls with the group counts worth trying that any of them knows of, as `hints.group_hints` finds them in a graph."""
    found: dict[tuple[int, int], frozenset[int]] = {}
    while True:
        hinted = []
        before = dict(found)
        for step, reads, makes in calls:
            operands = tuple(_hinted(spec, k, found) for spec, k in zip(step.operands, reads, strict=True))
            outputs = tuple(_hinted(spec, k, found) for spec, k in zip(step.outputs, makes, strict=True))
            step = replace(step, operands=operands, outputs=outputs, axis_size=axis_size)
            hinted.append((step, reads, makes))
            for row in rows_of(step):
                for k, placement in zip((*reads, *makes), (*row.ins, *row.outs), strict=True):
                    if isinstance(placement, Shard) and placement.groups > 1:
                        found[k, placement.dim] = found.get((k, placement.dim), frozenset()) | {placement.groups}
        if found == before:
            return hinted


def _hinted(spec: TensorSpec, value: int, found: dict[tuple[int, int], frozenset[int]]) -> TensorSpec:
    own = spec.hints or (frozenset(),) * spec.ndim
    return replace(spec, hints=tuple(hint | found.get((value, dim), frozenset()) for dim, hint in enumerate(own)))


def _within_experts(call: Call) -> Iterator[Row]:
    """Rows in which every rank has all rows and a part of each expert: chains of the rows of the body's ops."""
    rows, _, weights = operand_kinds(call)
    body = body_of(call.args[5])
    calls = _with_groups(body_calls(call), call.axis_size)
    start: dict[int, Placement] = dict.fromkeys((*rows, body.ids, body.offsets), R)
    for placed in dict.fromkeys(map(_frozen, _chains(calls, start))):
        found = dict(placed)
        chosen = [found.get(len(rows) + i, R) for i in range(len(weights))]
        if any(isinstance(placement, Shard) for placement in chosen):
            out = found[calls[-1][2][0]]
            yield Row((*(R for _ in rows), R, *chosen), (out,))


def _frozen(placed: dict[int, Placement]) -> tuple[tuple[int, Placement], ...]:
    return tuple(sorted(placed.items(), key=lambda item: item[0]))


def _chains(calls: Sequence[BodyCall], placed: dict[int, Placement]) -> Iterator[dict[int, Placement]]:
    """Every way to run the calls on values as they are placed; a weight that nobody has read yet may be cut as it pleases."""
    if not calls:
        yield placed
        return
    (step, reads, makes), rest = calls[0], calls[1:]
    for row in rows_of(step):
        needs = [(k, placement) for k, placement in zip(reads, row.ins, strict=True) if placement is not None]
        new = dict(placed)
        agree = (
            (row.is_replicated or _has_no_sizes(step))
            and row.local is None
            and all(new.setdefault(k, placement) == placement for k, placement in needs)
        )
        if agree and not any(isinstance(p, Shard) and p.dim == 0 for p in row.outs):
            yield from _chains(rest, new | dict(zip(makes, row.outs, strict=True)))


def _has_no_sizes(step: Call) -> bool:
    """Whether the op on local tensors takes the arguments it has: the body is text that all ranks run alike."""
    rule = rule_of(step.op)
    if rule is None or rule.localize is None:
        return True
    name = step.op.split(".")[1]
    return name in ("chunk", "unsqueeze", "squeeze") or (name == "slice" and step.arg(4, "step", 1) > 1)


@local("routed_experts")
def local_routed_experts(call: LocalCall) -> Tensor:
    """Rows go to the rank that has their expert, axis by axis, and what the expert made of them comes back."""
    rows, ids, _, repeats, experts, _ = call.args
    return _visit(call, rows, ids, repeats, call.axes(weights_by_expert(call.call)[0], 0), range(experts))


def _visit(call: LocalCall, rows: Sequence[Tensor], ids: Tensor, repeats: Sequence[int], axes: tuple[int, ...], held: range) -> Tensor:
    """What the experts in `held`, which the ranks of `axes` share, make of these rows."""
    if not axes:
        return routed_experts(rows, ids - held.start, call.args[2], repeats, len(held), call.args[5])
    axis, *rest = axes
    n = call.mesh.shape[axis]
    each = len(held) // n
    owner = (ids - held.start) // each
    order = torch.argsort(owner, stable=True)
    counts = (owner.unsqueeze(1) == torch.arange(n, device=ids.device)).sum(0)
    arriving = call.group.all_to_all(counts, (axis,))
    send, receive = counts.tolist(), arriving.tolist()
    sorted_rows = [x[order // repeat] if repeat > 1 else x[order] for x, repeat in zip(rows, repeats, strict=True)]
    there_ids = call.group.exchange(ids[order], send, receive, (axis,))
    there = [_Exchange.apply(x, send, receive, axis, call.group) for x in sorted_rows]
    first = held.start + call.group.coordinate[axis] * each
    made = _visit(call, there, there_ids, [1] * len(there), tuple(rest), range(first, first + each))
    back = _Exchange.apply(made, receive, send, axis, call.group)
    return back[inverse(order)]


class _Exchange(torch.autograd.Function):
    """Rows by ranks: the first `send[0]` go to the first rank of the axis, and so on; gradients go back the same way."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, send: list[int], receive: list[int], axis: int, group: Collectives) -> Tensor:
        ctx.route = (receive, send, axis, group)
        return own_output(group.exchange(x.contiguous(), send, receive, (axis,)))

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        send, receive, axis, group = ctx.route
        return group.exchange(gradient.contiguous(), send, receive, (axis,)), None, None, None, None
