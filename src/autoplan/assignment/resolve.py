"""What follows from what: the row from the placements of an op's inputs, the kind of an R's gradient from its readers.

Encoding and decoding a plan ask these same questions, so what one leaves out the other finds again.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import product

from autoplan.assignment.assignment import Assignment
from autoplan.assignment.redistributions import gradient_reaches
from autoplan.graph.ir import Graph, Node
from autoplan.placement import Mesh, Placement, Placements, Shard, forward_of
from autoplan.redistribution import collectives, transition
from autoplan.rules.combine import cut_call, on_axis, rows_of
from autoplan.rules.row import Call, Row, calls_of, make_strategy

Listed = tuple[tuple[str, tuple[int, ...]], ...]  # (kind, axes) of collectives, in order


@dataclass(frozen=True, slots=True)
class Edge:
    """One state in which an output is needed, whether a gradient comes back from it, and by which collectives as the plan says."""

    output: int
    needed: Placements
    flows: bool
    listed: Listed


def fitting_rows(graph: Graph, node: Node, placed: Sequence[Placements | None], mesh: Mesh, said: str = "") -> tuple[tuple[Row, ...], ...]:
    """Every combination of rows, one per axis, whose inputs are `placed` (None: unknown, or read for its shape alone).

    Grouped shards are among them where an input is grouped so, or the text of a row that the plan `said`.
    """
    call = calls_of(graph)[node.id]
    named = {Shard(int(dim), int(groups)) for dim, groups in _GROUPED.findall(said)}
    operands = tuple(
        replace(spec, hints=_hints(spec.ndim, {*(state or ()), *named})) for spec, state in zip(call.operands, placed, strict=True)
    )
    outputs = tuple(replace(spec, hints=_hints(spec.ndim, named)) for spec in call.outputs)
    return _fitting(_Key(replace(call, operands=operands, outputs=outputs)), tuple(placed), mesh)


class _Key:
    """A call as a dictionary key: its arguments may hold lists and dicts, which compare by what they print."""

    def __init__(self, call: Call) -> None:
        self.call = call
        self._key = (call.op, repr(call.args), repr(sorted(call.kwargs.items())), call.operands, call.outputs)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Key) and self._key == other._key

    def __hash__(self) -> int:
        return hash(self._key)


@lru_cache(maxsize=100_000)
def _fitting(key: _Key, placed: tuple[Placements | None, ...], mesh: Mesh) -> tuple[tuple[Row, ...], ...]:
    return tuple(rows for rows in _walk(key.call, placed, mesh.shape, 0) if len({row.local for row in rows if row.local}) <= 1)


def _walk(call: Call, placed: tuple[Placements | None, ...], sizes: tuple[int, ...], axis: int) -> Iterator[tuple[Row, ...]]:
    if axis == len(sizes):
        yield ()
        return
    here = on_axis(call, sizes[axis])
    for row in rows_of(here):
        if all(p is None or state is None or state[axis] == p for p, state in zip(row.ins, placed, strict=True)):
            for rest in _walk(cut_call(here, row, 1), placed, sizes, axis + 1):
                yield (row, *rest)


_GROUPED = re.compile(r"S\((\d+),(\d+)\)")


def _hints(ndim: int, placements: Iterable[Placement]) -> tuple[frozenset[int], ...]:
    """The groups that placements already have, so that rules offer rows for them."""
    groups: list[set[int]] = [set() for _ in range(ndim)]
    for placement in placements:
        if isinstance(placement, Shard) and placement.groups > 1 and placement.dim < ndim:
            groups[placement.dim].add(placement.groups)
    return tuple(map(frozenset, groups))


def first_fit(assignment: Assignment, node: Node) -> tuple[Row, ...]:
    """The rows that `decode` takes for a node of which the plan says nothing more than how its inputs are placed."""
    strategy = assignment.strategies[node.id]
    placed = [None if state is None else forward_of(state) for state in strategy.needs]
    return fitting_rows(assignment.graph, node, placed, assignment.mesh)[0]


def specs(graph: Graph, node: Node) -> tuple[tuple, tuple]:
    """The global specs of a node's operands and outputs."""
    call = calls_of(graph)[node.id]
    return call.operands, call.outputs


def partial_choices(graph: Graph, node: Node, rows: Sequence[Row], mesh: Mesh) -> Iterator[tuple[bool, ...]]:
    """Every choice of whole or partial gradients on the axes where the row is all-R; all whole first."""
    differentiable = any(spec.needs_grad for spec in specs(graph, node)[1])
    free = [differentiable and n > 1 and row.is_replicated for row, n in zip(rows, mesh.shape, strict=True)]
    choices = product(*((False, True) if is_free else (False,) for is_free in free))
    yield from sorted(choices, key=sum)


def consistent_forms(graph: Graph, node: Node, rows: tuple[Row, ...], mesh: Mesh, edges: Sequence[Edge]) -> Iterator[tuple[bool, ...]]:
    """The choices of `partial_choices` under which every reader's backward collectives are those that the plan lists."""
    operands, outputs = specs(graph, node)
    for partial in partial_choices(graph, node, rows, mesh):
        makes = make_strategy(rows, partial, operands, outputs).makes
        if all(backward_collectives(makes[edge.output], edge, mesh) == edge.listed for edge in edges):
            yield partial


def gradient_forms(assignment: Assignment, node: Node, rows: tuple[Row, ...]) -> Iterator[tuple[bool, ...]]:
    """The forms that `decode` would find consistent for a node of `assignment`, the one it takes first."""
    graph, mesh = assignment.graph, assignment.mesh
    edges = []
    for output, value in enumerate(node.outputs):
        for need in assignment.needs[value]:
            edge = Edge(output, need.state, gradient_reaches(graph, value, need), ())
            edges.append(replace(edge, listed=backward_collectives(assignment.produced[value], edge, mesh)))
    return consistent_forms(graph, node, rows, mesh, edges)


def backward_collectives(produced: Placements, edge: Edge, mesh: Mesh) -> Listed:
    """The (kind, axes) of the collectives that bring a value's gradient back."""
    return collectives(transition(produced, edge.needed, mesh, needs_grad=edge.flows)[1])
