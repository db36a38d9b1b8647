"""Copies of repeated blocks as stretches of a graph: what may run as one function, and may be run again in backward."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from itertools import groupby

from autoplan.graph.blocks import find_blocks, foldable_prefixes
from autoplan.graph.ir import Graph, Node


@dataclass(frozen=True, slots=True)
class Segment:
    """One copy of a block, its nodes without a gap: `graph.nodes[i] for i in nodes`.

    What it reads from outside is in one of two lists. `own_inputs` are computed values that only this segment reads: it
    redistributes them itself. `shared_inputs` are those that others read as well, or that leave the graph: they come in the
    states that it needs. Parameters, buffers and constants are in neither. `outputs` are read outside, or leave the graph.
    """

    prefix: str  # "layers"
    index: int
    nodes: range
    own_inputs: tuple[int, ...]
    shared_inputs: tuple[int, ...]
    outputs: tuple[int, ...]

    @property
    def name(self) -> str:
        """The module it is: `layers.3`."""
        return f"{self.prefix}.{self.index}" if self.prefix else str(self.index)


def find_segments(graph: Graph, prefixes: Collection[str]) -> tuple[Segment, ...]:
    """The copies under `prefixes` in execution order; a prefix with a copy whose nodes have gaps has none."""
    stretches: dict[str, list[tuple[int, range]]] = {}
    for copy, nodes in groupby(graph.nodes, lambda node: _copy_of(node, prefixes)):
        if copy is not None:
            numbers = [node.id for node in nodes]
            prefix, index = copy
            stretches.setdefault(prefix, []).append((index, range(numbers[0], numbers[-1] + 1)))
    whole = {prefix: found for prefix, found in stretches.items() if len({index for index, _ in found}) == len(found)}
    segments = [_segment(graph, prefix, index, nodes) for prefix, found in whole.items() for index, nodes in found]
    return tuple(sorted(segments, key=lambda segment: segment.nodes.start))


def block_segments(graph: Graph) -> tuple[Segment, ...]:
    """The copies of all blocks that the graph repeats."""
    return find_segments(graph, foldable_prefixes(find_blocks(graph)))


def redistributed_inside(graph: Graph, segment: Segment) -> tuple[int, ...]:
    """The values that a segment itself brings to the states in which it reads them: its own inputs, and all that it makes."""
    return (*segment.own_inputs, *(value for node in segment.nodes for value in graph.nodes[node].outputs))


def _copy_of(node: Node, prefixes: Collection[str]) -> tuple[str, int] | None:
    """(prefix, index) of the outermost copy that contains the node."""
    parts = node.module.split(".")
    for position, part in enumerate(parts):
        if part.isdecimal() and ".".join(parts[:position]) in prefixes:
            return ".".join(parts[:position]), int(part)
    return None


def _segment(graph: Graph, prefix: str, index: int, nodes: range) -> Segment:
    made = {value for node in nodes for value in graph.nodes[node].outputs}
    leaving = {*graph.outputs, *graph.mutations.values()}
    read = dict.fromkeys(value for node in nodes for value in graph.nodes[node].inputs if value not in made)
    computed = [value for value in read if graph.values[value].kind in ("op", "input")]
    own = [v for v in computed if v not in leaving and all(reader.id in nodes for reader, _ in graph.consumers[v])]
    shared = [value for value in computed if value not in own]
    outputs = [v for v in sorted(made) if v in leaving or any(reader.id not in nodes for reader, _ in graph.consumers[v])]
    return Segment(prefix, index, nodes, tuple(own), tuple(shared), tuple(outputs))
