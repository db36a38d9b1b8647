"""Mixtures of experts found among the calls of a draft, each then made one op: `autoplan::routed_experts`.

Known are the forms in which the experts' rows are sorted: ids sorted (sort, argsort), rows taken in that order (index, gather,
index_select), the experts' matrices applied to runs of rows (grouped_mm with offsets that count the ids), and the order undone (index by
the inverse permutation) or the rows added up per token (scatter_add, index_add). What is not recognised stays as it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch._ops import OpOverload

from autoplan.graph.draft import Call, Draft
from autoplan.graph.ir import Ref, map_refs
from autoplan.graph.ops import bind, op_name, short_name
from autoplan.graph.routed_experts import Body, Step

_SORTS = frozenset({"sort", "argsort"})
_FLATTENINGS = frozenset({"view", "reshape", "flatten"})
_CASTS = frozenset({"to", "_to_copy", "type_as", "contiguous", "clone", "detach"})
GROUPED_MATMULS = frozenset({"_grouped_mm", "grouped_mm", "grouped_mm_fallback"})
# Beside pointwise ops: those that treat each row for itself as long as their dim is not the first.
_ALONG_DIM = {
    "chunk": 2,
    "split": 2,
    "split_with_sizes": 2,
    "slice": 1,
    "unsqueeze": 1,
    "squeeze": 1,
    "softmax": 1,
    "select": 1,
    "narrow": 1,
}
_ROWWISE = frozenset({"linear", "rms_norm", "layer_norm", "glu", *_CASTS})


@dataclass(slots=True)
class _Routing:
    """What is known of the values that follow from one sort, by number."""

    ids: int
    size: int
    order: set[int] = field(default_factory=set)  # the permutation that sorts
    tokens: dict[int, int] = field(default_factory=dict)  # permutation // top_k, with top_k
    sorted_ids: set[int] = field(default_factory=set)
    counts: set[int] = field(default_factory=set)
    offsets: set[int] = field(default_factory=set)
    inverse: set[int] = field(default_factory=set)
    rows: dict[int, tuple[int, int]] = field(default_factory=dict)  # rows taken in sorted order: whose, and how often each is repeated
    made: set[int] = field(default_factory=set)  # rows that calls have made of rows
    calls: list[Call] = field(default_factory=list)  # those calls
    experts: int = 0


def fuse_routed_experts(draft: Draft) -> None:
    """Replace every mixture of experts that is recognised by one call; the calls it replaces have no readers then."""
    for index, call in enumerate(list(draft.calls)):
        if short_name(call.target) in _SORTS and _shape(draft, call.reads[0]) == (draft.values[call.outputs[0]].example.numel(),):
            _fuse(draft, call, draft.calls[index + 1 :])


def _fuse(draft: Draft, sort: Call, following: Sequence[Call]) -> None:
    ids = sort.reads[0]
    if draft.values[ids].example.dtype not in (torch.int64, torch.int32):
        return
    routing = _Routing(ids, _shape(draft, ids)[0])
    routing.order.add(sort.outputs[-1])
    if len(sort.outputs) == 2:
        routing.sorted_ids.add(sort.outputs[0])
    _count_ids(draft, routing)
    for call in following:
        end = _end_of(draft, routing, call)
        if end is not None:
            _replace(draft, routing, call, *end)
            return
        _follow(draft, routing, call)


def _count_ids(draft: Draft, routing: _Routing) -> None:
    """Counts per expert may be taken of the ids before they are sorted, in another view or dtype."""
    makers = {output: call for call in draft.calls for output in call.outputs}

    def origin(value: int) -> int:
        while value in makers and short_name(makers[value].target) in _CASTS | _FLATTENINGS:
            value = makers[value].reads[0]
        return value

    for call in draft.calls:
        if short_name(call.target) == "histc" and origin(call.reads[0]) == origin(routing.ids):
            _count(routing, call)


def _count(routing: _Routing, call: Call) -> None:
    """histc that counts each id in a bin of its own: with the range [0, E - 1] the last bin has its upper end."""
    bound = bind(call.target, call.args, call.kwargs)
    if bound["min"] == 0 and bound["bins"] in (bound["max"], bound["max"] + 1):
        routing.counts.add(call.outputs[0])
        routing.experts = bound["bins"]


def _follow(draft: Draft, routing: _Routing, call: Call) -> None:
    """What a call makes of the values known so far."""
    name, reads = short_name(call.target), call.reads
    if not reads:
        return
    first, output = reads[0], call.outputs[0]
    if first in routing.order and name in ("floor_divide", "div") and len(reads) == 1:
        top_k = call.args[1]
        if isinstance(top_k, int) and routing.size % top_k == 0:
            routing.tokens[output] = top_k
    elif first in routing.order and name in _SORTS:
        routing.inverse.add(call.outputs[-1])
    elif name == "index_put" and reads[1:2] and reads[1] in routing.order and _is_arange(draft, reads[2], routing.size):
        routing.inverse.add(output)
    elif first in routing.sorted_ids and name in _CASTS:
        routing.sorted_ids.add(output)
    elif first in routing.sorted_ids and name == "histc":
        _count(routing, call)
    elif first in routing.counts and name in _CASTS:
        routing.counts.add(output)
    elif (first in routing.counts and name == "cumsum") or (first in routing.offsets and name in _CASTS):
        routing.offsets.add(output)
    elif _is_index_form(routing, call):
        _same_kind(routing, first, output)
    else:
        _follow_rows(draft, routing, call)


def _is_index_form(routing: _Routing, call: Call) -> bool:
    """Whether the call only brings an index into the shape that gather and scatter want."""
    known = call.reads[0] in routing.order or call.reads[0] in routing.tokens
    return known and short_name(call.target) in ("view", "reshape", "unsqueeze", "expand", *_CASTS) and len(call.reads) == 1


def _same_kind(routing: _Routing, source: int, output: int) -> None:
    if source in routing.order:
        routing.order.add(output)
    else:
        routing.tokens[output] = routing.tokens[source]


def _follow_rows(draft: Draft, routing: _Routing, call: Call) -> None:
    taken = _taken(call)
    if taken is not None:
        source, index = taken
        if source == routing.ids and index in routing.order:
            routing.sorted_ids.add(call.outputs[0])
            return
        repeat = 1 if index in routing.order else routing.tokens.get(index, 0)
        if repeat and _shape(draft, source)[0] * repeat == routing.size and _shape(draft, call.outputs[0])[0] == routing.size:
            routing.rows[call.outputs[0]] = (source, repeat)
            return
    if _is_rowwise(draft, routing, call):
        routing.made.update(call.outputs)
        routing.calls.append(call)


def _taken(call: Call) -> tuple[int, int] | None:
    """(source, index) of a call that takes rows of a tensor by an index."""
    name = short_name(call.target)
    if name == "index" and len(call.args[1]) == 1 and len(call.reads) == 2:
        return call.reads[0], call.reads[1]
    if name in ("index_select", "gather") and call.args[1] == 0 and len(call.reads) == 2:
        return call.reads[0], call.reads[1]
    return None


def _is_rowwise(draft: Draft, routing: _Routing, call: Call) -> bool:
    """Whether each row of the outputs depends on the same row of the operands alone, on its expert's id and on weights."""
    name, reads = short_name(call.target), call.reads
    rows = [value for value in reads if value in routing.rows or value in routing.made]
    if name in GROUPED_MATMULS:
        return len(reads) == 3 and reads[0] in rows and reads[1] not in rows and reads[2] in routing.offsets
    taken = _taken(call)
    if taken is not None:
        return taken[1] in routing.sorted_ids and taken[0] not in rows and _shape(draft, taken[0])[:1] == (routing.experts,)
    if not rows or any(_is_routing(routing, value) for value in reads):
        return False
    if name in _ALONG_DIM:
        dim = bind(call.target, call.args, call.kwargs)["dim"]
        ndim = len(_shape(draft, reads[0])) + (name == "unsqueeze")
        return isinstance(dim, int) and dim % ndim > 0 and len(reads) == 1
    others = [value for value in reads if value not in rows]
    if torch.Tag.pointwise in call.target.tags or name in _ROWWISE:
        whole = all(_shape(draft, output)[:1] == (routing.size,) for output in call.outputs)
        aligned = name not in ("linear", "rms_norm", "layer_norm") or reads[0] in rows
        ndim = len(_shape(draft, call.outputs[0]))
        return whole and aligned and all(len(_shape(draft, value)) < ndim or name == "linear" for value in others)
    return False


def _is_routing(routing: _Routing, value: int) -> bool:
    known: tuple[Any, ...] = (routing.order, routing.tokens, routing.counts, routing.offsets, routing.inverse, routing.sorted_ids)
    return any(value in kind for kind in known)


def _end_of(draft: Draft, routing: _Routing, call: Call) -> tuple[int, int] | None:
    """(the experts' rows, top_k) where a call ends the mixture; top_k is 0 where the order is undone and nothing is added up."""
    taken = _taken(call)
    if taken is not None and taken[0] in routing.made and taken[1] in routing.inverse:
        return taken[0], 0
    name = short_name(call.target)
    if name in ("scatter_add", "index_add") and call.args[1] == 0 and len(call.reads) == 3 and not call.kwargs:
        _, index, rows = call.reads
        top_k = 1 if index in routing.order else routing.tokens.get(index, 0)
        if rows in routing.made and top_k and _shape(draft, call.reads[0])[0] * top_k == routing.size:
            return rows, top_k
    return None


def _replace(draft: Draft, routing: _Routing, end: Call, result: int, top_k: int) -> None:
    """Make the value of `end` by the op in its place."""
    made = _body(routing, result)
    if made is None:
        return
    rows, weights, body = made
    at = draft.calls.index(end)
    after, draft.calls = draft.calls[at + 1 :], draft.calls[:at]
    operands, repeats = zip(*(routing.rows[value] for value in rows), strict=True)

    def emit(target: OpOverload, *args: Any) -> int:
        return draft.emit(target, args, {}, end.place, grad=True)[0]

    output = emit(
        torch.ops.autoplan.routed_experts.default,
        tuple(map(Ref, operands)),
        Ref(routing.ids),
        tuple(map(Ref, weights)),
        repeats,
        routing.experts,
        body.text(),
    )
    if top_k > 1:
        shape = _shape(draft, output)
        apart = emit(torch.ops.aten.view.default, Ref(output), (shape[0] // top_k, top_k, *shape[1:]))
        output = emit(torch.ops.aten.sum.dim_IntList, Ref(apart), (1,))
    if top_k:
        emit(torch.ops.aten.add.Tensor, Ref(end.reads[0]), Ref(output))
    draft.calls[-1].outputs = end.outputs
    draft.calls += after


def _body(routing: _Routing, result: int) -> tuple[list[int], list[int], Body] | None:
    """The rows and weights that the calls up to `result` read, and these calls as a body; None without a matrix of experts."""
    calls = _calls_up_to(routing, result)
    if not any(short_name(call.target) in GROUPED_MATMULS for call in calls):
        return None
    reads = dict.fromkeys(value for call in calls for value in call.reads)
    rows = [value for value in reads if value in routing.rows]
    made = {output for call in calls for output in call.outputs}
    weights = [value for value in reads if value not in made and value not in routing.rows and not _is_routing(routing, value)]
    numbers: dict[int, int] = {value: k for k, value in enumerate((*rows, *weights))}
    numbers.update(dict.fromkeys(routing.sorted_ids, len(numbers)))
    numbers.update(dict.fromkeys(routing.offsets, len(rows) + len(weights) + 1))
    count = len(rows) + len(weights) + 2
    steps = []
    for call in calls:
        args, kwargs = map_refs((call.args, call.kwargs), lambda ref: Ref(numbers[ref.value]))
        steps.append(Step(op_name(call.target), args, _without_device(kwargs), len(call.outputs)))
        numbers.update({output: count + k for k, output in enumerate(call.outputs)})
        count += len(call.outputs)
    if calls[-1].outputs[0] != result:
        return None
    return rows, weights, Body(len(rows), len(weights), tuple(steps))


def _calls_up_to(routing: _Routing, result: int) -> list[Call]:
    """The calls that make `result` of rows, in order."""
    needed, kept = {result}, []
    for call in reversed(routing.calls):
        if needed.intersection(call.outputs):
            kept.append(call)
            needed.update(call.reads)
    return kept[::-1]


def _without_device(kwargs: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in kwargs.items() if not isinstance(value, torch.device) and value is not None}


def _is_arange(draft: Draft, value: int, size: int) -> bool:
    maker = next((call for call in draft.calls if value in call.outputs), None)
    return maker is not None and short_name(maker.target) == "arange" and maker.args == (size,)


def _shape(draft: Draft, value: int) -> tuple[int, ...]:
    return tuple(draft.values[value].example.shape)
