"""All decisions about one graph, on one mesh: what the solver chooses, the plan encodes and the runtime runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from autoplan.graph.ir import Graph, Node
from autoplan.graph.once import Remembering
from autoplan.placement import Mesh, Placements
from autoplan.rules.row import Strategy


@dataclass(frozen=True, slots=True)
class Need:
    """One state in which a value is needed, and the (node id, operand) pairs that read it so.

    The graph's outputs read as node id -1, with their position as operand; the buffers that it overwrites as -2, with
    their position among `graph.mutations`.
    """

    state: Placements
    readers: tuple[tuple[int, int], ...]


OUTPUT_READER = -1
BUFFER_READER = -2


@dataclass(frozen=True)
class Assignment(Remembering):
    """A strategy for each node, and the states of what no node makes.

    `sources` gives the state of inputs, buffers and constants, and how parameters are STORED, by value number; `outputs` the
    placements in which the graph's outputs leave. What overwrites a buffer is needed as the buffer is placed. Everything else
    follows: a value whose producer makes one state and whose reader needs another is redistributed, once per state.
    """

    graph: Graph
    mesh: Mesh
    strategies: tuple[Strategy, ...]
    sources: Mapping[int, Placements]
    outputs: tuple[Placements, ...]

    @cached_property
    def produced(self) -> Mapping[int, Placements]:
        """The state in which each value comes to be."""
        states = dict(self.sources)
        for node, strategy in zip(self.graph.nodes, self.strategies, strict=True):
            states.update(zip(node.outputs, strategy.makes, strict=True))
        return states

    @cached_property
    def needs(self) -> Mapping[int, tuple[Need, ...]]:
        """For each value the distinct states its readers need, in order of first use; readers of shape alone are left out."""
        table: dict[int, dict[Placements, list[tuple[int, int]]]] = {value.id: {} for value in self.graph.values}
        for node in self.graph.nodes:
            for operand, value in enumerate(node.inputs):
                state = self.needed(node, operand)
                if state is not None:
                    table[value].setdefault(state, []).append((node.id, operand))
        for position, (value, state) in enumerate(zip(self.graph.outputs, self.outputs, strict=True)):
            table[value].setdefault(state, []).append((OUTPUT_READER, position))
        for position, (fqn, value) in enumerate(self.graph.mutations.items()):
            table[value].setdefault(self.sources[self.graph.buffers[fqn]], []).append((BUFFER_READER, position))
        return {value: tuple(Need(state, tuple(readers)) for state, readers in states.items()) for value, states in table.items()}

    def needed(self, node: Node, operand: int) -> Placements | None:
        """The state in which `node` reads an operand; None if it reads only its shape."""
        return self.strategies[node.id].needs[operand]
