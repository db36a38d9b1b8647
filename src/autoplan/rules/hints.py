"""Which group counts are worth trying for grouped shards: those that some op of the graph can make or use.

A flatten of [B, T] with T cut makes `S(0,B)` of its output; everything that reads it, and what that makes in turn, then
must know `S(0,B)` too. Rules say so themselves: a group count that occurs in a row for one value is worth trying wherever
that value is read or made.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterable
from dataclasses import replace

from autoplan.graph.ir import Graph, Node
from autoplan.placement import Mesh, Placement, Shard
from autoplan.rules.combine import cut_call, rows_of
from autoplan.rules.row import Call, call_of

Hints = dict[int, tuple[frozenset[int], ...]]

MOST_GROUPS = 6  # per dim: every one adds a row to each op that touches the value
MOST_VISITS = 12  # per node


def group_hints(graph: Graph, mesh: Mesh, nodes: Collection[int] | None = None) -> Hints:
    """The group counts beside 1 of each dim of each value, by value number; values without any are left out.

    A fixpoint over `nodes` (all by default): the rows of a node, on what any choice of rows leaves of it on earlier axes,
    add groups to its values, and its neighbours are asked again. Group counts are found in order of discovery, so the
    cap keeps those that come straight from a view rather than from a combination.
    """
    chosen = [node for node in graph.nodes if nodes is None or node.id in nodes]
    neighbours = _neighbours(chosen)
    found: dict[int, list[dict[int, None]]] = {}
    visits = dict.fromkeys((node.id for node in chosen), 0)
    waiting = deque(chosen)
    queued = {node.id for node in chosen}
    while waiting:
        node = waiting.popleft()
        queued.discard(node.id)
        visits[node.id] += 1
        changed = _add(found, graph, _groups(call_of(graph, node, _frozen(found, node)), node, mesh))
        for value in changed:
            for other in neighbours[value]:
                if other.id != node.id and other.id not in queued and visits[other.id] < MOST_VISITS:
                    queued.add(other.id)
                    waiting.append(other)
    return {value: tuple(map(frozenset, dims)) for value, dims in found.items()}


def _neighbours(nodes: Iterable[Node]) -> dict[int, list[Node]]:
    """The nodes that read or make each value."""
    table: dict[int, list[Node]] = {}
    for node in nodes:
        for value in dict.fromkeys((*node.inputs, *node.outputs)):
            table.setdefault(value, []).append(node)
    return table


def _frozen(found: dict[int, list[dict[int, None]]], node: Node) -> Hints:
    return {value: tuple(map(frozenset, found[value])) for value in (*node.inputs, *node.outputs) if value in found}


def _groups(call: Call, node: Node, mesh: Mesh) -> dict[tuple[int, int, int], None]:
    """(value, dim, groups) of every grouped shard in the rows of a call and of what earlier axes leave of it."""
    groups: dict[tuple[int, int, int], None] = {}
    contexts = {_shapes(call): call}
    for n in mesh.shape:
        if n == 1:
            continue
        following: dict[tuple[tuple[int, ...], ...], Call] = {}
        for context in contexts.values():
            here = replace(context, axis_size=n)
            for row in rows_of(here):
                for value, placement in (*zip(node.inputs, row.ins, strict=True), *zip(node.outputs, row.outs, strict=True)):
                    if _is_grouped(placement):
                        groups[value, placement.dim, placement.groups] = None  # type: ignore[union-attr]
                cut = cut_call(here, row, n)
                following.setdefault(_shapes(cut), cut)
        contexts = following
    return groups


def _shapes(call: Call) -> tuple[tuple[int, ...], ...]:
    return tuple(spec.shape for spec in (*call.operands, *call.outputs))


def _is_grouped(placement: Placement | None) -> bool:
    return isinstance(placement, Shard) and placement.groups > 1


def _add(found: dict[int, list[dict[int, None]]], graph: Graph, groups: Iterable[tuple[int, int, int]]) -> list[int]:
    """Enter what is new and fits under the cap; the values that changed."""
    changed: dict[int, None] = {}
    for value, dim, count in groups:
        dims = found.setdefault(value, [{} for _ in graph.values[value].shape])
        if count not in dims[dim] and len(dims[dim]) < MOST_GROUPS:
            dims[dim][count] = None
            changed[value] = None
    return list(changed)
