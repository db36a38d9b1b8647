"""What each node of a compiled graph moves between memory and registers: a stage reads what it needs once, and what only it reads stays inside.

In backward a stage reads what was kept for it, once too, and the gradients that arrive from elsewhere; it writes those of what
it was given, and each of these in the place of the kept value if nobody else reads that (Inductor reuses a buffer that a
pointwise kernel is the last to read; what forward hands to backward may be overwritten, `donated_buffer` of AOTAutograd).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

from autoplan.cost.families import CASTS, op_name
from autoplan.cost.remat import kept_when_compiled
from autoplan.cost.stages import stages_of
from autoplan.graph.ir import ITEM_BYTES, Graph, Node
from autoplan.graph.once import once
from autoplan.rules.row import calls_of

Place = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Fused:
    """How one node takes part in a compiled piece. `fuses`: in a kernel with others (views too, where all that read them do).

    `reads[k]`: operand k comes from memory, and this node is the first of its stage that reads it; `again[k]`: the same in backward,
    of what is kept. `inside[k]`: it is made in the stage. `made_fused[k]`: in some stage of the piece. `item_bytes[k]`: those of an
    element of operand k as it lies in memory, casts looked through. `writes[j]`: output j is read elsewhere; `arrives[j]`: and
    nowhere else. `in_place[k]`, `made_in_place[j]`: the gradient of operand k or of output j lies where the value was kept.
    """

    fuses: bool
    reads: tuple[bool, ...]
    again: tuple[bool, ...]
    inside: tuple[bool, ...]
    made_fused: tuple[bool, ...]
    item_bytes: tuple[int, ...]
    writes: tuple[bool, ...]
    arrives: tuple[bool, ...]
    in_place: tuple[bool, ...]
    made_in_place: tuple[bool, ...]


@once
def fused_nodes(graph: Graph) -> tuple[Fused, ...]:
    """Of every node, what it moves when the graph runs compiled."""
    finder = _Finder(graph)
    return tuple(finder.fused(node) for node in graph.nodes)


class _Finder:
    def __init__(self, graph: Graph) -> None:
        self.graph, self.stages, self.kept = graph, stages_of(graph), kept_when_compiled(graph)
        self.leaving = {*graph.outputs, *graph.mutations.values()}
        self.whole: defaultdict[Place, set[int]] = defaultdict(set)  # by stage, the values that are read whole
        for node in graph.nodes:
            if self.stages.fusing[node.id]:
                self.whole[self.stages.place(node)] |= {self.stages.source(v) for v in node.inputs if v not in self.stages.parts}
        self.read: set[tuple[Place, int]] = set()
        self.read_again: set[tuple[Place, int]] = set()

    def fused(self, node: Node) -> Fused:
        stages, none = self.stages, (False,) * len(node.inputs)
        elsewhere = [set(self._places(out)) - {stages.place(node)} for out in node.outputs]
        here = [stages.place(node) in self._places(out) for out in node.outputs]
        writes = tuple(map(bool, elsewhere))
        arrives = tuple(wrote and not also for wrote, also in zip(writes, here, strict=True))
        items = tuple(map(self._item_bytes, node.inputs))
        made_fused = tuple([self._is_made_fused(node, value) for value in node.inputs])
        in_place = tuple([self._is_replaced(stages.source(value)) for value in node.inputs])
        made_in_place = tuple(map(self._is_replaced, node.outputs))
        if not stages.fusing[node.id]:
            is_free = stages.viewing[node.id] and not any(None in places for places in elsewhere)
            return Fused(is_free, none, none, none, made_fused, items, writes, arrives, in_place, made_in_place)
        inside = tuple(self._is_made_in(stages.place(node), value) for value in node.inputs)
        first = tuple([not made and self._is_first(node, value, self.read) for made, value in zip(inside, node.inputs, strict=True)])
        drawn = self.kept[node.id].operands
        again = tuple([k in drawn and self._is_first(node, value, self.read_again) for k, value in enumerate(node.inputs)])
        return Fused(True, first, again, inside, made_fused, items, writes, arrives, in_place, made_in_place)

    def _is_replaced(self, value: int) -> bool:
        """Whether a value is made by an op with a kernel of its own, kept, and read by one stage of its piece alone."""
        producer = self.graph.producers.get(value)
        if producer is None or self.stages.fusing[producer.id] or self.stages.viewing[producer.id]:
            return False
        pieces = [None if place is None else place[0] for place in set(self._places(value))]
        return pieces == [self.stages.piece[producer.id]] and any(k in self.kept[reader.id].operands for reader, k in self._readers(value))

    def _readers(self, value: int) -> Iterator[tuple[Node, int]]:
        """Who reads a value or a view of it."""
        for shown in self._shown(value):
            yield from ((reader, k) for reader, k in self.graph.consumers[shown] if not self.stages.viewing[reader.id])

    def _shown(self, value: int) -> Iterator[int]:
        """A value and its views."""
        yield value
        for reader, _ in self.graph.consumers[value]:
            if self.stages.viewing[reader.id]:
                for out in reader.outputs:
                    yield from self._shown(out)

    def _is_made_in(self, place: Place, value: int) -> bool:
        producer = self.graph.producers.get(self.stages.source(value))
        return producer is not None and self.stages.fusing[producer.id] and self.stages.place(producer) == place

    def _is_made_fused(self, node: Node, value: int) -> bool:
        producer = self.graph.producers.get(self.stages.source(value))
        return producer is not None and self.stages.fusing[producer.id] and self.stages.piece[producer.id] == self.stages.piece[node.id]

    def _is_first(self, node: Node, value: int, read: set[tuple[Place, int]]) -> bool:
        place, source = self.stages.place(node), self.stages.source(value)
        is_part = value in self.stages.parts
        if is_part and source in self.whole[place]:
            return False
        key = (place, value if is_part else source)
        is_new = key not in read
        read.add(key)
        return is_new

    def _places(self, value: int) -> Iterator[Place | None]:
        """Where a value or a view of it is read: the stage of a fusing op, None for ops with kernels of their own and what leaves."""
        if not self.leaving.isdisjoint(self._shown(value)):
            yield None
        for reader, _ in self._readers(value):
            yield self.stages.place(reader) if self.stages.fusing[reader.id] else None

    def _item_bytes(self, value: int) -> int:
        producer = self.graph.producers.get(value)
        while producer is not None and producer.inputs and self._only_casts(producer):
            value = producer.inputs[0]
            producer = self.graph.producers.get(value)
        return ITEM_BYTES[self.graph.values[value].dtype]

    def _only_casts(self, node: Node) -> bool:
        return self.stages.viewing[node.id] or op_name(calls_of(self.graph)[node.id].op) in CASTS
