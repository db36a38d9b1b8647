"""From candidates to integers: the folded graph as a `Problem`, and a solution of it as an assignment.

The graph is never copied: every node and value of it belongs to a class, a class is one decision, and values that look
alike (same producer class, same reader classes) are one `ProblemValue` whose cost counts as often as there are of them.
That folds repeated blocks and prices what passes between their copies, without a word about first and last ones.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from autoplan.assignment.assignment import Assignment
from autoplan.assignment.names import block_of
from autoplan.cost.moments import Moment
from autoplan.graph.ir import Graph, Value
from autoplan.graph.segments import Segment
from autoplan.placement import Mesh, Placements, forward_of, gradient_of
from autoplan.planner.candidates import Candidates
from autoplan.planner.prices import Array, Prices, ValuePrices
from autoplan.planner.problem import FORBIDDEN, Group, Matrix, Problem, ProblemNode, ProblemValue, Reader, Vector
from autoplan.planner.scenario import Scenario, Span
from autoplan.rules.row import Call, Strategy

TIES = 4096  # cost units are cut this fine below `unit_s`, so that small preferences decide between equal plans
MOST_PREFERENCE = TIES // 64 - 1
FORWARD_END, OPTIMIZER_STEP = 0, 1  # rows of memory; behind them the other moments of `cost.moments`
COLLECTIVE = 8  # what a collective counts among equals; of the rows of an op each counts one more than the one before it

Readers = tuple[tuple[int, int], ...]
"""(problem node, operand) of everyone who reads a value."""


@dataclass(frozen=True, slots=True)
class Built:
    """A problem, and what its decisions stand for: node classes first, then sources, then outputs of the graph.

    `recomputed` are the segments that run again: all, where the problem bounds several.
    """

    problem: Problem
    candidates: Candidates
    source_nodes: Mapping[int, int]  # value class -> problem node
    output_nodes: tuple[int, ...]
    recomputed: tuple[Segment, ...] = ()

    def assignment(self, choice: Sequence[int]) -> Assignment:
        """The unfolded assignment of a choice: every member of a class does as the class does."""
        candidates, graph = self.candidates, self.candidates.graph
        node_class, value_class = candidates.classes.node_class, candidates.classes.value_class
        strategies = tuple(candidates.strategies[c][choice[c]] for c in node_class)
        sources = {}
        for value in graph.values:
            if value.kind != "op":
                c = value_class[value.id]
                sources[value.id] = candidates.sources[c][choice[self.source_nodes[c]]]
        outputs = tuple(states[choice[node]] for states, node in zip(candidates.outputs, self.output_nodes, strict=True))
        return Assignment(graph, candidates.mesh, strategies, sources, outputs)

    def choice(self, assignment: Assignment) -> tuple[int, ...]:
        """The choice that makes `assignment`, which must treat the members of every class alike."""
        candidates = self.candidates
        chosen = [candidates.strategies[c].index(assignment.strategies[n]) for c, n in enumerate(candidates.classes.node_representatives)]
        for c in self.source_nodes:
            chosen.append(candidates.sources[c].index(assignment.sources[candidates.classes.value_representatives[c]]))
        return (*chosen, *(states.index(state) for states, state in zip(candidates.outputs, assignment.outputs, strict=True)))


def build_problem(
    candidates: Candidates, prices: Prices, limit_bytes: int, recomputed: Sequence[Segment] = (), most: Sequence[Segment] | None = None
) -> Built:
    """The problem of choosing among `candidates` within `limit_bytes` of memory per device, where `recomputed` segments run again.

    With `most`, which recomputes further copies, it bounds the problems from one to the other: no choice costs less or
    takes less memory in any of them.
    """
    most = recomputed if most is None else most
    prefixes = tuple(dict.fromkeys(segment.prefix for segment in recomputed))
    ends = (Scenario(candidates.graph, prices.savings, prices.segments, tuple(again), prefixes) for again in (recomputed, most))
    return _Builder(candidates, prices, limit_bytes, Span(*ends)).build()


@dataclass
class _Builder:
    candidates: Candidates
    prices: Prices
    limit_bytes: int
    span: Span
    unit_bytes: int = 1
    nodes: list[ProblemNode] = field(default_factory=list)
    values: list[ProblemValue] = field(default_factory=list)
    source_nodes: dict[int, int] = field(default_factory=dict)
    temporaries: list[tuple[int, Group]] = field(default_factory=list)  # by node class
    gathered: dict[str, list[tuple[int, Vector]]] = field(default_factory=dict)

    @property
    def graph(self) -> Graph:
        return self.candidates.graph

    @property
    def mesh(self) -> Mesh:
        return self.candidates.mesh

    def build(self) -> Built:
        self.unit_bytes = max(1, self.limit_bytes >> 20)
        self.unit_s = self.prices.unit_s(self.candidates)
        for c, strategies in enumerate(self.candidates.strategies):
            self._add_node_class(c, strategies)
        for c, states in self.candidates.sources.items():
            self.source_nodes[c] = len(self.nodes)
            self._add_source(c, states)
        outputs = tuple(self._add_output(position, states) for position, states in enumerate(self.candidates.outputs))
        self._add_values(outputs)
        begin, *later = (self._peaks(*pair) for pair in zip(self.span.least.moments, self.span.most.moments, strict=True))
        peaks = (begin, ((),), *later)
        limits = (self.limit_bytes // self.unit_bytes,) * len(peaks)
        problem = Problem(tuple(self.nodes), tuple(self.values), limits, peaks, self.unit_s / TIES, self.unit_bytes, TIES)
        return Built(problem, self.candidates, self.source_nodes, outputs, self.span.most.recomputed)

    def _peaks(self, least: Moment, most: Moment) -> tuple[tuple[Group, ...], tuple[Group, ...]]:
        """The temporaries of ops and the gathered parameters of blocks, one at a time: of all, or of the segments at work in both."""
        nodes, blocks = self._at_work(least), self._at_work(most)
        working = None if nodes is None or blocks is None else nodes & blocks
        temporaries = tuple(group for c, group in self.temporaries if working is None or c in working)
        gathered = (terms for terms in self.gathered.values() if working is None or any(self._reads(terms[0][0], c) for c in working))
        return temporaries, tuple(Group(values=tuple(terms)) for terms in gathered)

    def _at_work(self, moment: Moment) -> set[int] | None:
        """The node classes of the segment at work; None for all."""
        if moment.at_work is None:
            return None
        return {self.candidates.classes.node_class[node] for node in moment.at_work.nodes}

    def _reads(self, value: int, node: int) -> bool:
        return any(reader.node == node for reader in self.values[value].readers)

    def _add_node_class(self, c: int, strategies: tuple[Strategy, ...]) -> None:
        members = self.candidates.classes.node_members[c]
        call, node = self.candidates.calls[c], self.graph.nodes[members[0]]
        found = [self.prices.strategy_cost(node, call, s) for s in strategies]
        again = self.span.least.runs_again(members)
        costs = tuple(
            self._cost(cost.seconds * len(members) + (cost.forward_s + cost.inside_forward_s) * again, preference)
            for preference, cost in enumerate(found)
        )
        self.nodes.append(ProblemNode(node.address, costs, self._rows(self._kept_by_nodes(members, call, strategies))))
        transient = tuple(self._bytes(self.prices.transient_bytes(call, s)) for s in strategies)
        self.temporaries.append((c, Group(nodes=((c, transient),))))

    def _kept_by_nodes(self, members: Sequence[int], call: Call, strategies: Sequence[Strategy]) -> Array:
        """[row, strategy]: bytes that the nodes of a class keep whoever reads their outputs."""
        beside = np.array([self.prices.kept_by_op_bytes(call, s) for s in strategies])
        total = np.outer(self._least(lambda scenario: scenario.nodes_kept(members)), beside)
        for j, value in enumerate(self.graph.nodes[members[0]].outputs):
            made = np.array([self.prices.made_bytes(value, s.makes[j]) for s in strategies])
            values = [self.graph.nodes[node].outputs[j] for node in members]
            total += np.outer(self._least(lambda scenario: scenario.values_kept_as_made(values)), made)  # noqa: B023  # asked at once
        return total

    def _least(self, amounts: Callable[[Scenario], Sequence[int]]) -> Array:
        """By row, the least that the scenarios have of something, of which there is nothing in the optimizer step."""
        if not self.prices.trains:
            return np.zeros(len(self.span.least.moments) + 1, dtype=np.int64)
        begin, *later = (min(pair) for pair in zip(amounts(self.span.least), amounts(self.span.most), strict=True))
        return np.array([begin, 0, *later])

    def _add_source(self, c: int, states: tuple[Placements, ...]) -> None:
        members = self.candidates.classes.value_members[c]
        value = self.graph.values[members[0]]
        costs = tuple(self._cost(self.prices.stored_s(value, state) * len(members), preference) for preference, state in enumerate(states))
        held, gradient = np.array([self.prices.stored_bytes(value, state) for state in states]).T
        gradients = self._least(lambda scenario: scenario.gradients(members))
        gradients[OPTIMIZER_STEP] = len(members)
        total = held * len(members) + np.outer(gradients, gradient)
        if value.kind == "input":
            made = np.array([self.prices.made_bytes(value.id, state) for state in states])
            total = total + np.outer(self._least(lambda scenario: scenario.values_kept_as_made(members)), made)
        self.nodes.append(ProblemNode(value.address, costs, self._rows(total)))

    def _add_output(self, position: int, states: tuple[Placements, ...]) -> int:
        nothing = self._rows(np.zeros((len(self.span.least.moments) + 1, len(states))))
        self.nodes.append(ProblemNode(f"outputs/{position}", tuple(range(len(states))), nothing))
        return len(self.nodes) - 1

    def _add_values(self, outputs: tuple[int, ...]) -> None:
        """One ProblemValue for all values whose producers and readers are of the same classes."""
        alike: dict[tuple[int, int, Readers], list[int]] = {}
        for value in self.graph.values:
            alike.setdefault(self._signature(value, outputs), []).append(value.id)
        found = []
        for (producer, output, readers), members in alike.items():
            value = self.graph.values[members[0]]
            states = _States.of(self._made(producer, output), [self._needed(node, operand) for node, operand in readers])
            if states.needed:
                found.append((members, producer, readers, states))
                self.prices.transitions.announce(states.homes, states.placements)
                if self.prices.trains and value.needs_grad:
                    self.prices.transitions.announce(*states.gradients)
        for members, producer, readers, states in found:
            self._add_value(members, producer, readers, states)

    def _signature(self, value: Value, outputs: tuple[int, ...]) -> tuple[int, int, Readers]:
        classes = self.candidates.classes
        if value.kind == "op":
            node = self.graph.producers[value.id]
            producer, output = classes.node_class[node.id], node.outputs.index(value.id)
        else:
            producer, output = self.source_nodes[classes.value_class[value.id]], 0
        readers = {(classes.node_class[node.id], operand) for node, operand in self.graph.consumers[value.id]}
        readers |= {(outputs[position], -1) for position, out in enumerate(self.graph.outputs) if out == value.id}
        overwritten = [self.graph.buffers[fqn] for fqn, new in self.graph.mutations.items() if new == value.id and value.kind != "buffer"]
        readers |= {(self.source_nodes[classes.value_class[buffer]], -1) for buffer in overwritten}
        return producer, output, tuple(sorted(readers))

    def _add_value(self, members: Sequence[int], producer: int, readers: Readers, states: _States) -> None:
        value = self.graph.values[members[0]]
        prices = self.prices.of_value(value, block_of(value.address, self.prices.prefixes) if value.kind == "parameter" else None)
        placements = states.placements
        homes: Sequence[Placements | None] = states.homes if prices.home_is_free else [None] * len(states.produced)
        self.values.append(
            ProblemValue(
                name=value.address,
                producer=producer,
                made=states.made,
                readers=tuple(Reader(node, needs) for (node, _), needs in zip(readers, states.needs, strict=True)),
                forward_class=states.forward_class,
                forward=self._forward(members, prices, states),
                backward=self._backward(prices, states, len(members)),
                keepers=self._keepers(value.kind, members, readers),
                kept=self._rows(self._kept(members, prices, placements)),
                free=tuple(placements.index(home) if home in placements else None for home in homes),
            )
        )
        if value.kind == "parameter":
            amounts = tuple(self._bytes(prices.in_flight_bytes(f)) for f in placements)
            self.gathered.setdefault(prices.block or value.address, []).append((len(self.values) - 1, amounts))
        elif times := sum(self.span.least.moves_again[member] for member in members):
            self.values.append(self._again(self.values[-1], self._readers_again(members, readers), times, prices, states))

    def _readers_again(self, members: Sequence[int], readers: Readers) -> list[int]:
        """Positions of the readers that run again, in any copy."""
        node_class = self.candidates.classes.node_class
        consumers = [node.id for member in members for node, _ in self.graph.consumers[member]]
        again = {node_class[node] for node in consumers if self.span.least.runs_again([node])}
        return [position for position, (node, _) in enumerate(readers) if node in again]

    def _again(self, value: ProblemValue, readers: Sequence[int], times: int, prices: ValuePrices, states: _States) -> ProblemValue:
        """The value once more, as those that run again read it: nothing but what it costs to bring it there."""
        seconds = prices.forward_s(states.homes, states.placements) * times
        nothing = self._rows(np.zeros((len(self.span.least.moments) + 1, len(states.placements))))
        return replace(
            value,
            name=f"{value.name} again",
            readers=tuple(value.readers[position] for position in readers),
            forward=self._costs(seconds, np.zeros_like(seconds)),
            backward=np.zeros_like(value.backward),
            keepers=(),
            kept=nothing,
        )

    def _forward(self, members: Sequence[int], prices: ValuePrices, states: _States) -> Array:
        """[produced, placements]: what it costs to bring the values there, in backward once more where they are gathered again."""
        value = prices.value
        times = len(members) * (2 if prices.regathers else 1)
        counts = self.prices.transitions.collectives(states.homes, states.placements)
        costs = self._costs(prices.forward_s(states.homes, states.placements) * times, counts)
        if value.kind == "parameter" and self.candidates.classes.value_class[value.id] in self.candidates.never_gathered:
            costs[counts > 0] = FORBIDDEN
        return costs

    def _backward(self, prices: ValuePrices, states: _States, count: int) -> Array:
        """[produced, needed]: what it costs to bring the gradient back."""
        if not prices.has_gradient:
            return np.zeros((len(states.produced), len(states.needed)), dtype=np.int64)
        counts = self.prices.transitions.collectives(*states.gradients)
        return self._costs(prices.backward_s(*states.gradients) * count, counts).T

    def _keepers(self, kind: str, members: Sequence[int], readers: Readers) -> tuple[int, ...]:
        """Positions of the readers that keep what they read; all readers of a parameter use the copy that was gathered."""
        if kind == "parameter":
            return tuple(range(len(readers)))
        node_class = self.candidates.classes.node_class
        keeping = {(node_class[node], operand) for node, operand in self.span.keepers(members)}
        return tuple(position for position, reader in enumerate(readers) if reader in keeping)

    def _kept(self, members: Sequence[int], prices: ValuePrices, placements: Sequence[Placements]) -> Array:
        """[row, placements]: bytes that the values keep as they are read."""
        if prices.is_parameter:
            counts = self._least(lambda scenario: scenario.readers_to_come(members))
            counts[FORWARD_END] = len(members)
        else:
            counts = self._least(lambda scenario: scenario.values_kept_as_read(members))
        return np.outer(counts, [prices.kept_bytes(used) for used in placements])

    def _made(self, producer: int, output: int) -> list[Placements]:
        if producer < len(self.candidates.strategies):
            return [strategy.makes[output] for strategy in self.candidates.strategies[producer]]
        return self._source_states(producer)

    def _needed(self, node: int, operand: int) -> list[Placements | None]:
        if node < len(self.candidates.strategies):
            return [strategy.needs[operand] for strategy in self.candidates.strategies[node]]
        first_output = len(self.nodes) - len(self.candidates.outputs)
        return list(self.candidates.outputs[node - first_output]) if node >= first_output else [*self._source_states(node)]

    def _source_states(self, node: int) -> list[Placements]:
        return list(self.candidates.sources[next(c for c, source in self.source_nodes.items() if source == node)])

    def _cost(self, seconds: float, preference: int = 0) -> int:
        return round(seconds / self.unit_s) * TIES + min(preference, MOST_PREFERENCE)

    def _costs(self, seconds: Array, collectives: Array) -> Array:
        """The costs of redistributions: among plans that cost the same, the one with fewer collectives is read more easily."""
        return np.rint(seconds / self.unit_s).astype(np.int64) * TIES + np.minimum(COLLECTIVE * collectives, MOST_PREFERENCE)

    def _bytes(self, amount: float) -> int:
        return -int(-amount // self.unit_bytes)

    def _rows(self, amounts: Array) -> Matrix:
        return tuple(map(tuple, (-(-amounts // self.unit_bytes)).astype(np.int64).tolist()))


@dataclass(frozen=True, slots=True)
class _States:
    """The states of a value: those that strategies make, those that readers need, and the placements of the latter."""

    produced: tuple[Placements, ...]
    needed: tuple[Placements, ...]
    placements: tuple[Placements, ...]
    made: Vector  # by the producer's strategy
    needs: tuple[tuple[int | None, ...], ...]  # by reader and its strategy
    forward_class: Vector  # by needed state

    @classmethod
    def of(cls, made: Sequence[Placements], needs: Sequence[Sequence[Placements | None]]) -> _States:
        """What the strategies of the producer make and those of each reader need."""
        produced = {state: p for p, state in enumerate(dict.fromkeys(made))}
        needed = {state: q for q, state in enumerate(dict.fromkeys(state for states in needs for state in states if state is not None))}
        placements = {f: position for position, f in enumerate(dict.fromkeys(map(forward_of, needed)))}
        return cls(
            tuple(produced),
            tuple(needed),
            tuple(placements),
            tuple(produced[state] for state in made),
            tuple(tuple(None if state is None else needed[state] for state in states) for states in needs),
            tuple(placements[forward_of(state)] for state in needed),
        )

    @property
    def homes(self) -> list[Placements]:
        """The placements of the produced states."""
        return [forward_of(state) for state in self.produced]

    @property
    def gradients(self) -> tuple[list[Placements], list[Placements]]:
        """Placements of gradients: from those of the needed states to those of the produced ones."""
        return [gradient_of(state) for state in self.needed], [gradient_of(state) for state in self.produced]
