"""What may be chosen: strategies for each class of nodes, and states for each class of values that no node makes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import product

from autoplan.graph.blocks import NodeClasses
from autoplan.graph.ir import Graph, Value
from autoplan.placement import Mesh, Placement, Placements, R, Shard, dtensor_holds, fits
from autoplan.rules.combine import strategies_of
from autoplan.rules.hints import group_hints
from autoplan.rules.row import Call, Strategy, call_of

Hints = Mapping[int, tuple[frozenset[int], ...]]


@dataclass(frozen=True, slots=True)
class Candidates:
    """The choices of a folded graph: by node class its call and strategies, by value class the states of a source.

    Sources are inputs, parameters (as stored), buffers and constants; `outputs` are the states in which each output of the
    graph may leave.
    """

    graph: Graph
    mesh: Mesh
    classes: NodeClasses
    calls: tuple[Call, ...]
    strategies: tuple[tuple[Strategy, ...], ...]
    sources: Mapping[int, tuple[Placements, ...]]
    outputs: tuple[tuple[Placements, ...], ...]
    never_gathered: frozenset[int] = frozenset()  # value classes of parameters that must be used as they are stored
    recompute: Mapping[str, int] = field(default_factory=dict)  # by prefix, how many copies must recompute


def enumerate_candidates(graph: Graph, mesh: Mesh, classes: NodeClasses) -> Candidates:
    """Every choice that divides evenly; grouped shards where a neighbour in the graph can use them."""
    hints = group_hints(graph, mesh, classes.node_representatives)
    calls = tuple(call_of(graph, graph.nodes[node], hints) for node in classes.node_representatives)
    sources = {
        c: _source_states(graph.values[value], mesh, hints)
        for c, value in enumerate(classes.value_representatives)
        if graph.values[value].kind != "op"
    }
    outputs = tuple(_output_states(graph, graph.values[value], mesh) for value in graph.outputs)
    return Candidates(graph, mesh, classes, calls, tuple(strategies_of(call, mesh) for call in calls), sources, outputs)


def _source_states(value: Value, mesh: Mesh, hints: Hints) -> tuple[Placements, ...]:
    """Inputs come cut as the plan likes, parameters are stored so; buffers and constants are small and on every rank."""
    if value.kind in ("buffer", "constant"):
        return ((R,) * mesh.ndim,)
    return _shards(value.shape, mesh, hints.get(value.id, ()))


def _output_states(graph: Graph, value: Value, mesh: Mesh) -> tuple[Placements, ...]:
    """The loss is whole on every rank; other outputs leave as the plan likes, but never as partial sums."""
    return ((R,) * mesh.ndim,) if value.id == graph.loss else _shards(value.shape, mesh, ())


def _shards(shape: tuple[int, ...], mesh: Mesh, hints: tuple[frozenset[int], ...]) -> tuple[Placements, ...]:
    """Every combination of R and shards of `shape` on the axes of `mesh` that divides and that a DTensor can hold."""
    single: list[Placement] = [R]
    for dim in range(len(shape)):
        single += [Shard(dim, groups) for groups in (1, *sorted(hints[dim] - {1} if hints else ()))]
    per_axis = [single if n > 1 else [R] for n in mesh.shape]
    return tuple(state for state in product(*per_axis) if fits(shape, state, mesh) and dtensor_holds(state))
