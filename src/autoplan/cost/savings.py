"""Which values a graph keeps for its backward, with views resolved: each storage counts once.

It is a property of the graph alone. Where decisions come in: a value that is read in another state than it was made in is a
tensor of its own, kept if one of the readers of that state keeps it (`kept_bytes`).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from math import prod

from autoplan.cost.families import ATTENTION, EXPANSIONS, PIECES, is_view, op_name
from autoplan.cost.memory import Saved, saved
from autoplan.cost.moments import Moment
from autoplan.graph.ir import ITEM_BYTES, Graph, Node, Value
from autoplan.placement import Mesh, Placements, forward_of, local_shape
from autoplan.rules.row import Call, calls_of

Reader = tuple[int, int]
"""(node id, operand): one reading of a value, as in `assignment.Need.readers`."""

HELD_ANYHOW = ("parameter", "buffer", "constant")
"""Kinds of values that are no activations."""

Order = tuple[int, ...] | None
"""The dims of a value from the outermost in memory to the innermost; None where it has gaps or repeats."""


@dataclass(frozen=True, slots=True)
class SavedMap:
    """`keepers[v]`: the readers that keep what they read of value v, directly or because a view they make of it is kept.

    `made`: values that their producers keep (softmax's output), or that another value keeps by being a view of them.
    `alias_of[v]`: the value whose memory v shares; in the state it was made in, v then costs nothing of its own.
    """

    keepers: Mapping[int, frozenset[Reader]]
    made: frozenset[int]
    alias_of: Mapping[int, int]

    def base(self, value: int) -> int:
        """The value whose memory `value` shares in the end."""
        while value in self.alias_of:
            value = self.alias_of[value]
        return value


class Savings:
    """What a graph keeps at the moments of its backward; what does not depend on the moment is found once."""

    def __init__(self, graph: Graph, kept: Sequence[Saved] | None = None) -> None:
        """`kept` is what the backward of each node reads; by default what eager ops save."""
        self._graph = graph
        calls = calls_of(graph)
        self._alias_of = aliases(graph, calls)
        self._saved = [saved(call) for call in calls] if kept is None else kept

    def at(self, moment: Moment) -> SavedMap:
        """What is left at a moment of all that is kept from forward to backward.

        A segment that computes its activations again keeps the values that only it reads as they were made, and others as
        it reads them.
        """
        consumers = self._graph.consumers
        made = {value for segment in moment.dropped for value in segment.own_inputs}
        keepers: dict[int, set[Reader]] = {}
        for segment in moment.dropped:
            for value in segment.shared_inputs:
                readers = {(node.id, operand) for node, operand in consumers[value] if node.id in segment.nodes}
                keepers.setdefault(value, set()).update(readers)
        for node, kept in zip(reversed(self._graph.nodes), reversed(self._saved), strict=True):
            if moment.keeps(node):
                for operand in kept.operands:
                    keepers.setdefault(node.inputs[operand], set()).add((node.id, operand))
                made.update(node.outputs[index] for index in kept.outputs)
            if any(out in self._alias_of and (out in made or out in keepers) for out in node.outputs):
                keepers.setdefault(node.inputs[0], set()).add((node.id, 0))
        return SavedMap({value: frozenset(readers) for value, readers in keepers.items()}, frozenset(made), self._alias_of)


def saved_values(graph: Graph, moment: Moment | None = None) -> SavedMap:
    """What a graph keeps from forward to backward, or what is left of that at a moment of the backward."""
    return Savings(graph).at(moment or Moment(len(graph.nodes), ()))


def kept_placements(
    value: int, kept: SavedMap, produced: Placements, needs: Collection[tuple[Placements, Collection[Reader]]]
) -> frozenset[Placements]:
    """The placements in which a device keeps a tensor of its own of `value` from forward to backward.

    `needs` are the states it is read in with their readers; states that differ only in the gradient's kind share one tensor.
    """
    readers = kept.keepers.get(value, frozenset())
    found = {forward_of(state) for state, reading in needs if not readers.isdisjoint(reading)}
    home = forward_of(produced)
    if value in kept.made:
        found.add(home)
    if value in kept.alias_of:
        found.discard(home)
    return frozenset(found)


def kept_bytes(
    graph: Graph, value: int, kept: SavedMap, produced: Placements, needs: Collection[tuple[Placements, Collection[Reader]]], mesh: Mesh
) -> int:
    """Bytes of activations that a device keeps of one value; 0 for parameters, buffers and constants, which are there anyhow."""
    spec = graph.values[value]
    if spec.kind in HELD_ANYHOW:
        return 0
    return sum(local_bytes(spec, placements, mesh) for placements in kept_placements(value, kept, produced, needs))


def local_bytes(value: Value, placements: Placements, mesh: Mesh) -> int:
    """Bytes of one device's part of a value."""
    return prod(local_shape(value.shape, placements, mesh)) * ITEM_BYTES[value.dtype]


def aliases(graph: Graph, calls: Sequence[Call]) -> dict[int, int]:
    """Which values share the memory of their node's first operand: views, and reshapes and copies that change nothing."""
    alias_of: dict[int, int] = {}
    orders: dict[int, Order] = {value.id: _dense(value) for value in graph.values}
    for node, call in zip(graph.nodes, calls, strict=True):
        if _is_alias(call, orders, node):
            alias_of.update(dict.fromkeys(node.outputs, node.inputs[0]))
        for out, order in zip(node.outputs, _orders_after(graph, node, call, orders), strict=True):
            orders[out] = order
    return alias_of


def _is_alias(call: Call, orders: Mapping[int, Order], node: Node) -> bool:
    name = op_name(call.op)
    if name in ("aten.reshape", "aten.flatten", "aten.contiguous"):
        return orders[node.inputs[0]] == tuple(range(call.operands[0].ndim))
    return is_view(call)


def _dense(value: Value) -> Order:
    return tuple(range(len(value.shape)))


def _orders_after(graph: Graph, node: Node, call: Call, orders: Mapping[int, Order]) -> list[Order]:
    """The memory order of each output."""
    dense = [_dense(graph.values[out]) for out in node.outputs]
    name = op_name(call.op)
    if name == ATTENTION and call.operands[0].ndim == 4:
        return [(0, 2, 1, 3)]  # flash attention writes [batch, query, head, size], on CPU and CUDA
    if not node.inputs:
        return dense
    before = orders[node.inputs[0]]
    if name in ("aten.transpose", "aten.swapaxes", "aten.permute", "aten.t", "aten.numpy_T", "aten.mT"):
        return [_permuted(before, call)]
    if not is_view(call):
        same = {orders[v] for v in node.inputs if graph.values[v].shape == graph.values[node.outputs[0]].shape} if node.outputs else set()
        pointwise = len(same) == 1 and name not in _DENSE_OUTPUT
        return [same.copy().pop()] if pointwise and len(dense) == 1 else list(dense)
    if name in EXPANSIONS and call.outputs[0].shape != call.operands[0].shape:
        return [None for _ in dense]
    if name in PIECES or name in ("aten.slice", "aten.narrow", "aten.select", "aten.diagonal"):
        return [
            order if _whole_rows(call, spec.shape) and before == tuple(range(call.operands[0].ndim)) else None
            for order, spec in zip(dense, call.outputs, strict=True)
        ]
    if name in ("aten.reshape", "aten.flatten") or before == tuple(range(call.operands[0].ndim)):
        return list(dense)
    return [before if graph.values[out].shape == call.operands[0].shape else None for out in node.outputs]


_DENSE_OUTPUT = frozenset(("aten.contiguous", "aten.clone", "aten.linear", "aten.matmul", "aten.bmm", "aten.mm", "aten.cat"))


def _whole_rows(call: Call, part: tuple[int, ...]) -> bool:
    """Whether a part of a dense tensor is itself dense: only its first dim (but for dims of 1) is cut."""
    whole = call.operands[0].shape
    if part == whole:
        return True
    dim = call.arg(2 if op_name(call.op) in PIECES and "unbind" not in call.op else 1, "dim", 0)
    dim = dim % len(whole) if isinstance(dim, int) and whole else 0
    return prod(whole[:dim]) == 1


def _permuted(order: Order, call: Call) -> Order:
    if order is None:
        return None
    ndim = len(order)
    moved = list(range(ndim))  # moved[i]: the old dim that becomes dim i
    if op_name(call.op) == "aten.permute":
        dims = call.arg(1, "dims", ())
        moved = [int(dim) % ndim for dim in dims]
    elif ndim > 1:
        a, b = (call.arg(1, "dim0", 0), call.arg(2, "dim1", 1)) if op_name(call.op) in ("aten.transpose", "aten.swapaxes") else (-2, -1)
        a, b = int(a) % ndim, int(b) % ndim
        moved[a], moved[b] = b, a
    new = {old: position for position, old in enumerate(moved)}
    return tuple(new[dim] for dim in order)
