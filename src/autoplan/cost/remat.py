"""What a compiled graph keeps for its backward: least bytes, where results of fused ops may be computed again from what is kept.

AOTAutograd partitions each compiled function by a minimum cut (`torch._functorch.partitioners`, torch 2.11 to 2.13), and so do we,
on the graph as it was captured, of whole tensors. Never computed again is what an op with a kernel of its own makes, or reads in
backward (it has to lie in memory then anyhow), what reductions make (4 times smaller than what they read), and what the function
is given. A result that only fused ops read weighs twice: it is written for backward alone. Random masks and statistics of rows are
kept beside all that. Not followed are preferences among equals, which go by distances in a graph that we do not have.

It is a property of the graph alone: where placements put a collective between two fused ops, the copy that it makes is kept
though what lies before it might be smaller.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cache
from itertools import groupby

from autoplan.cost.families import op_name, spec_bytes
from autoplan.cost.memory import Saved, saved
from autoplan.cost.passes import row_bytes
from autoplan.cost.savings import aliases
from autoplan.cost.stages import Stages, stages_of
from autoplan.graph.ir import Graph, Node
from autoplan.graph.once import once
from autoplan.rules.row import Call, calls_of

Edge = tuple[int, int, int]
"""(from, to, capacity)."""

ENDLESS = 1 << 62
REDUCED = 4  # `ban_recompute_reductions` of the partitioner
MADE_TO_KEEP = 2  # `get_node_weight` of the partitioner
SOURCE, SINK = 0, 1


def compiled_saved(call: Call) -> Saved:
    """What the backward of a call reads when it is compiled, with the bytes that no value of the graph holds.

    Cross-entropy comes from its logits, and keeps of each row the maximum and the logarithm of the sum, in fp32.
    """
    found = saved(call)
    if op_name(call.op) == "aten.cross_entropy_loss" and found.operands:
        return replace(found, operands=found.operands | {0}, extra_bytes=2 * row_bytes(call))
    return found


@once
def kept_when_compiled(graph: Graph) -> tuple[Saved, ...]:
    """By node, what its backward draws on of all that is kept: operands and outputs; and the bytes it keeps beside."""
    alias_of, stages = aliases(graph, calls_of(graph)), stages_of(graph)
    needs = [compiled_saved(call) for call in calls_of(graph)]
    found: list[Saved] = []
    for _, nodes in groupby(graph.nodes, lambda node: stages.piece[node.id]):
        found += _Piece(graph, tuple(nodes), stages, alias_of, needs).saved()
    return tuple(found)


@once
def repeated_when_compiled(graph: Graph) -> frozenset[int]:
    """The nodes whose forward runs once more where their piece recomputes: those that make what backward reads.

    What leads to the piece's outputs alone, like the last product of a layer, the compiler leaves out, since it compiles
    recomputation and backward as one (`runtime.pieces`); an eager piece runs again up to the last op that keeps anything.
    """
    piece, calls = stages_of(graph).piece, calls_of(graph)
    found: set[int] = set()
    needed: set[int] = set()
    for node in reversed(graph.nodes):
        need = compiled_saved(calls[node.id])
        operands: Collection[int] = need.operands
        if need.outputs or need.extra_bytes or not needed.isdisjoint(node.outputs):
            found.add(node.id)
            operands = range(len(node.inputs))
        made = (node.inputs[k] for k in operands if node.inputs[k] in graph.producers)
        needed.update(value for value in made if piece[graph.producers[value].id] == piece[node.id])
    return frozenset(found)


class _Piece:
    """The cut of one piece. A value stands for what it is an alias of; each is two numbers, before and behind its edge."""

    def __init__(self, graph: Graph, nodes: Sequence[Node], stages: Stages, alias_of: Mapping[int, int], needs: Sequence[Saved]) -> None:
        self.graph, self.nodes, self.stages, self.alias_of, self.needs = graph, nodes, stages, alias_of, needs
        self.inside = {node.id for node in nodes}
        self.number: dict[int, int] = {}

    def saved(self) -> list[Saved]:
        """By node of the piece."""
        again = _sink_side(tuple(self._edges()))
        kept = {value for value, k in self.number.items() if _behind(k) in again and _before(k) not in again}
        runs_again = {value for value, k in self.number.items() if _before(k) in again}
        return [self._draws(node, kept, runs_again) for node in self.nodes]

    def _draws(self, node: Node, kept: set[int], runs_again: set[int]) -> Saved:
        need = self.needs[node.id]
        if any(out in self.alias_of for out in node.outputs):
            return need
        is_again = any(out in runs_again for out in node.outputs)
        operands = range(len(node.inputs)) if is_again else need.operands
        return Saved(
            frozenset(k for k in operands if self._base(node.inputs[k]) in kept),
            frozenset(j for j in need.outputs if self._base(node.outputs[j]) in kept),
            need.extra_bytes,
        )

    def _edges(self) -> Iterator[Edge]:
        for node in self.nodes:
            need = self.needs[node.id]
            needed = [self._base(node.inputs[k]) for k in sorted(need.operands)] + [
                self._base(node.outputs[j]) for j in sorted(need.outputs)
            ]
            for value in needed:
                yield from self._value(value)
                yield _behind(self.number[value]), SINK, ENDLESS
                if not self.stages.fusing[node.id] and not self.stages.viewing[node.id]:
                    yield SOURCE, _before(self.number[value]), ENDLESS
            if any(out in self.alias_of for out in node.outputs):
                continue
            for out in node.outputs:
                yield from self._value(out)
                for value in dict.fromkeys(map(self._base, node.inputs)):
                    yield from self._value(value)
                    yield _behind(self.number[value]), _before(self.number[out]), ENDLESS
                if not self._can_run_again(node, out):
                    yield SOURCE, _before(self.number[out]), ENDLESS

    def _value(self, value: int) -> Iterator[Edge]:
        """The edge of a value that is met for the first time."""
        if value in self.number:
            return
        k = self.number[value] = len(self.number)
        yield _before(k), _behind(k), self._weight(value)
        producer = self.graph.producers.get(value)
        if producer is None or producer.id not in self.inside:
            yield SOURCE, _before(k), ENDLESS

    def _can_run_again(self, node: Node, out: int) -> bool:
        if not self.stages.fusing[node.id] and not self.stages.viewing[node.id]:
            return False
        return REDUCED * self.graph.values[out].bytes >= sum(map(spec_bytes, calls_of(self.graph)[node.id].operands))

    def _weight(self, value: int) -> int:
        spec = self.graph.values[value]
        if spec.kind in ("parameter", "buffer", "constant"):
            return 0
        producer = self.graph.producers.get(value)
        is_passed_on = producer is not None and self.stages.fusing[producer.id] and self._is_read_by_fused_alone(value)
        return spec.bytes * (MADE_TO_KEEP if is_passed_on else 1)

    def _is_read_by_fused_alone(self, value: int) -> bool:
        if value in self.graph.outputs or value in self.graph.mutations.values():
            return False
        readers = [node for node, _ in self.graph.consumers[value]]
        if not all(reader.id in self.inside and (self.stages.fusing[reader.id] or self.stages.viewing[reader.id]) for reader in readers):
            return False
        shown = [out for reader in readers if self.stages.viewing[reader.id] for out in reader.outputs]
        return all(map(self._is_read_by_fused_alone, shown))

    def _base(self, value: int) -> int:
        while value in self.alias_of:
            value = self.alias_of[value]
        return value


def _before(number: int) -> int:
    return 2 * number + 2


def _behind(number: int) -> int:
    return 2 * number + 3


@cache
def _sink_side(edges: tuple[Edge, ...]) -> frozenset[int]:
    """The points on the sink's side of the minimum cut that is nearest to it, by paths that still lead more (Edmonds and Karp 1972).

    Copies of a block have the same edges and are cut once.
    """
    left: dict[int, dict[int, int]] = {SOURCE: {}, SINK: {}}
    for start, end, capacity in edges:
        left.setdefault(start, {})[end] = max(capacity, left.setdefault(start, {}).get(end, 0))
        left.setdefault(end, {}).setdefault(start, 0)
    while path := _path(left):
        amount = min(left[start][end] for start, end in path)
        for start, end in path:
            left[start][end] -= amount
            left[end][start] += amount
    return _reaching(left)


def _path(left: Mapping[int, Mapping[int, int]]) -> list[tuple[int, int]]:
    """A shortest way from source to sink along which something is left; empty if there is none."""
    came_from: dict[int, int] = {SOURCE: SOURCE}
    waiting = deque((SOURCE,))
    while waiting and SINK not in came_from:
        here = waiting.popleft()
        for there, capacity in left[here].items():
            if capacity and there not in came_from:
                came_from[there] = here
                waiting.append(there)
    path, here = [], SINK
    while here != SOURCE and here in came_from:
        path.append((came_from[here], here))
        here = came_from[here]
    return path


def _reaching(left: Mapping[int, Mapping[int, int]]) -> frozenset[int]:
    """The points from which something still leads to the sink."""
    found, waiting = {SINK}, [SINK]
    while waiting:
        here = waiting.pop()
        for there in left[here]:
            if left[there][here] and there not in found:
                found.add(there)
                waiting.append(there)
    return frozenset(found)
