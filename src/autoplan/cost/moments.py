"""The points of a training step at which memory can peak, and what is there at each.

Activations go and gradients come as backward goes down through the graph, both in equal steps from copy to copy of a block.
So between two of these moments memory changes evenly, and is greatest at one of them: where backward begins, where it
reaches the last copy, the last that computes its activations again, and the first, and at the optimizer step.
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
    `dropped` there is only what they read. `at_work` is the segment whose ops now run; None for all ops that are in none of `segments`.
    """

    until: int
    dropped: tuple[Segment, ...]
    at_work: Segment | None = None
    segments: tuple[Segment, ...] = ()

    def reads(self, graph: Graph, value: int) -> bool:
        """Whether an op at work reads the value."""
        return any(self.works(node.id) for node, _ in graph.consumers[value])

    def works(self, node: int) -> bool:
        """Whether the op now runs, or one of those that it stands for."""
        return node in self.at_work.nodes if self.at_work is not None else node not in self._in_segments

    @cached_property
    def _in_segments(self) -> frozenset[int]:
        return frozenset(node for segment in self.segments for node in segment.nodes)

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
    """The moments of a backward pass through `segments`, of which the `recomputed` run again.

    Where it begins, and only ops outside of segments have run; for each prefix where it reaches the last copy, taken not to run again, and
    where it reaches the first; where it reaches the last copy of each that recomputes.
    """
    first = {segment.prefix: segment for segment in reversed(segments)}
    last = {segment.prefix: segment for segment in segments}
    last_again = {segment.prefix: segment for segment in recomputed}

    def backward_of(segment: Segment, *, again: bool) -> Moment:
        until = segment.nodes.stop
        dropped = tuple(other for other in recomputed if other.nodes.stop < until or (other is segment and not again))
        return Moment(until, dropped, segment, tuple(segments))

    return (
        Moment(len(graph.nodes), tuple(recomputed), None, tuple(segments)),
        *(backward_of(segment, again=False) for segment in reversed(last.values())),
        *(backward_of(segment, again=True) for segment in (*reversed(first.values()), *last_again.values())),
    )
