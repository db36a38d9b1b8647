"""The points of a training step at which memory can peak, and what is there at each.

Activations go and gradients come as backward goes down through the graph, both in equal steps from copy to copy of a block.
So between two of these moments memory changes evenly, and is greatest at one of them: where backward begins, where it
reaches the last copy that computes its activations again, where it reaches the first copy, and at the optimizer step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from autoplan.graph.ir import Graph, Node
from autoplan.graph.segments import Segment


@dataclass(frozen=True)
class Moment:
    """A moment of the backward pass, which has come down to node `until`, itself not included.

    What later nodes kept is gone, and the gradients of the parameters that they read are there. Of the segments in
    `dropped` there is only what they read. `at_work` is the segment whose ops now run, None for all that remain.
    """

    until: int
    dropped: tuple[Segment, ...]
    at_work: Segment | None = None

    @property
    def prefix(self) -> str | None:
        """That of the segment at work."""
        return None if self.at_work is None else self.at_work.prefix

    def keeps(self, node: Node) -> bool:
        """Whether what the node keeps for its backward is still there, and there already."""
        return node.id < self.until and node.id not in self._dropped_nodes

    @cached_property
    def _dropped_nodes(self) -> frozenset[int]:
        return frozenset(node for segment in self.dropped for node in segment.nodes)

    def is_to_come(self, graph: Graph, value: int) -> bool:
        """Whether backward has still to come to a reader of the value."""
        return any(node.id < self.until for node, _ in graph.consumers[value])

    def has_gradient(self, graph: Graph, parameter: int) -> bool:
        """Whether the parameter (its value number) has a gradient by now."""
        return any(node.id >= self.until for node, _ in graph.consumers[parameter])


def moments(graph: Graph, segments: Sequence[Segment], recomputed: Sequence[Segment] = ()) -> tuple[Moment, ...]:
    """The moments of a backward pass through `segments`, in execution order, of which the `recomputed` run again.

    Where it begins; where it reaches the first copy of each prefix; where it reaches the last copy of each that recomputes.
    """
    first = {segment.prefix: segment for segment in reversed(segments)}
    last = {segment.prefix: segment for segment in recomputed}
    reached = [*reversed(first.values()), *last.values()]
    return (Moment(len(graph.nodes), tuple(recomputed)), *(_backward_of(segment, recomputed) for segment in reached))


def _backward_of(segment: Segment, dropped: Sequence[Segment]) -> Moment:
    until = segment.nodes.stop
    return Moment(until, tuple(other for other in dropped if other.nodes.stop < until), segment)
