"""From candidates to integers: the folded graph as a `Problem`, and a solution of it as an assignment."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np

from autoplan.assignment.assignment import Assignment
from autoplan.cost.moments import Moment
from autoplan.graph.segments import Segment
from autoplan.planner.candidates import Candidates
from autoplan.planner.prices import Array
from autoplan.planner.problem import Group, Matrix, Problem, ProblemNode, ProblemValue, Vector
from autoplan.planner.scenario import Scenario, Span
from autoplan.planner.terms import TIES, OpTerms, SourceTerms, Terms, ValueTerms, rounded

FORWARD_END, OPTIMIZER_STEP = 0, 1  # rows of memory; behind them the other moments of `cost.moments`


@dataclass(frozen=True, slots=True)
class Built:
    """A problem, and the terms that say what its decisions stand for.

    `recomputed` are the segments that run again: all, where the problem bounds several.
    """

    problem: Problem
    terms: Terms
    recomputed: tuple[Segment, ...] = ()

    @property
    def candidates(self) -> Candidates:
        """Among which the problem chooses."""
        return self.terms.candidates

    def assignment(self, choice: Sequence[int]) -> Assignment:
        """The unfolded assignment of a choice: every member of a class does as the class does."""
        candidates, graph = self.candidates, self.candidates.graph
        node_class, value_class = candidates.classes.node_class, candidates.classes.value_class
        strategies = tuple(candidates.strategies[c][choice[c]] for c in node_class)
        sources = {}
        for value in graph.values:
            if value.kind != "op":
                c = value_class[value.id]
                sources[value.id] = candidates.sources[c][choice[self.terms.source_nodes[c]]]
        outputs = tuple(states[choice[node]] for states, node in zip(candidates.outputs, self.terms.output_nodes, strict=True))
        return Assignment(graph, candidates.mesh, strategies, sources, outputs)

    def choice(self, assignment: Assignment) -> tuple[int, ...]:
        """The choice that makes `assignment`, which must treat the members of every class alike."""
        candidates = self.candidates
        chosen = [candidates.strategies[c].index(assignment.strategies[n]) for c, n in enumerate(candidates.classes.node_representatives)]
        for c in self.terms.source_nodes:
            chosen.append(candidates.sources[c].index(assignment.sources[candidates.classes.value_representatives[c]]))
        return (*chosen, *(states.index(state) for states, state in zip(candidates.outputs, assignment.outputs, strict=True)))


def build_problem(
    terms: Terms,
    limit_bytes: int,
    recomputed: Sequence[Segment] = (),
    most: Sequence[Segment] | None = None,
    *,
    down: bool = False,
) -> Built:
    """The problem of choosing within `limit_bytes` of memory per device, where `recomputed` segments run again.

    With `most`, which recomputes further copies, it bounds the problems from one to the other: no choice costs less or
    takes less memory in any of them. With `down` all that depends on what recomputes is rounded down, else memory is rounded up
    and costs to the nearest.
    """
    most = recomputed if most is None else most
    prefixes = tuple(dict.fromkeys(segment.prefix for segment in recomputed))
    prices = terms.prices
    ends = (Scenario(prices.graph, prices.savings, prices.segments, tuple(again), prefixes) for again in (recomputed, most))
    return _Builder(terms, limit_bytes, Span(*ends), down).build()


@dataclass
class _Builder:
    terms: Terms
    limit_bytes: int
    span: Span
    down: bool
    temporaries: list[tuple[int, Group]] = field(default_factory=list)  # by node class
    moving: list[tuple[int, Group]] = field(default_factory=list)  # by value: while it is there in both states
    gathered: dict[str, list[tuple[int, Vector]]] = field(default_factory=dict)  # by block: values
    unreduced: dict[str, list[tuple[int, Vector]]] = field(default_factory=dict)  # by block: nodes

    def build(self) -> Built:
        self.unit_bytes = max(1, self.limit_bytes >> 20)
        terms = self.terms
        outputs = [self._output(position, len(states)) for position, states in enumerate(terms.candidates.outputs)]
        nodes = (*(self._op(c, op) for c, op in enumerate(terms.ops)), *map(self._source, terms.sources), *outputs)
        values = self._values()
        begin, *later = (self._peaks(values, working) for working in self.working)
        peaks = (begin, ((),), *later)
        limits = (self.limit_bytes // self.unit_bytes,) * len(peaks)
        problem = Problem(nodes, tuple(values), limits, peaks, terms.unit_s / TIES, self.unit_bytes, TIES)
        return Built(problem, terms, self.span.most.recomputed)

    @cached_property
    def working(self) -> list[set[int]]:
        """By moment, the node classes of the ops at work in all scenarios."""
        return [
            self._at_work(least) & self._at_work(most) for least, most in zip(self.span.least.moments, self.span.most.moments, strict=True)
        ]

    @cached_property
    def sure(self) -> list[int]:
        """By moment, what temporaries of ops at work take whatever is chosen."""
        least = {c: min(amounts) for c, group in self.temporaries for _, amounts in group.nodes}
        return [max((least[c] for c in working), default=0) for working in self.working]

    def _peaks(self, values: Sequence[ProblemValue], working: set[int]) -> tuple[tuple[Group, ...], tuple[Group, ...]]:
        """Of ops at work: temporaries of ops or redistributions, one at a time, and the parameters and gradients in flight of one block."""
        temporaries = [group for c, group in self.temporaries if c in working]
        temporaries += [group for v, group in self.moving if any(values[v].readers[keeper].node in working for keeper in values[v].keepers)]
        gathered = (
            Group(nodes=tuple(self.unreduced[block]), values=tuple(terms))
            for block, terms in self.gathered.items()
            if any(reader.node in working for reader in values[terms[0][0]].readers)
        )
        return tuple(temporaries), tuple(gathered)

    def _at_work(self, moment: Moment) -> set[int]:
        """The node classes of the ops at work."""
        return {node_class for node, node_class in enumerate(self.terms.candidates.classes.node_class) if moment.works(node)}

    def _op(self, c: int, op: OpTerms) -> ProblemNode:
        seconds = op.seconds * len(op.members) + op.again_s * self.span.least.runs_again(op.members)
        kept = np.outer(self._least(lambda scenario: scenario.nodes_kept(op.members)), op.beside_bytes)
        for values, made in op.made:
            kept += np.outer(self._least(lambda scenario: scenario.values_kept_as_made(values)), made)  # noqa: B023  # asked at once
        self.temporaries.append((c, Group(nodes=((c, self._units(op.transient_bytes)),))))
        if c == 0:
            seconds = seconds + self.terms.opened_s
        return ProblemNode(op.name, _vector(self.terms.cost(seconds, down=self.down)), self._rows(kept))

    def _source(self, source: SourceTerms) -> ProblemNode:
        gradients = self._least(lambda scenario: scenario.gradients(source.members))
        gradients[OPTIMIZER_STEP] = len(source.members)
        total = source.held_bytes * len(source.members) + np.outer(gradients, source.gradient_bytes)
        total = total + np.outer(self._least(lambda scenario: scenario.values_kept_as_made(source.members)), source.made_bytes)
        return ProblemNode(source.name, _vector(self.terms.cost(source.seconds * len(source.members))), self._rows(total))

    def _output(self, position: int, states: int) -> ProblemNode:
        return ProblemNode(f"outputs/{position}", tuple(range(states)), self._nothing(states))

    def _nothing(self, choices: int) -> Matrix:
        return self._rows(np.zeros((len(self.span.least.moments) + 1, choices), dtype=np.int64))

    def _least(self, amounts: Callable[[Scenario], Sequence[int]]) -> Array:
        """By row, the least that the scenarios have of something, of which there is nothing in the optimizer step."""
        if not self.terms.prices.trains:
            return np.zeros(len(self.span.least.moments) + 1, dtype=np.int64)
        begin, *later = (min(pair) for pair in zip(amounts(self.span.least), amounts(self.span.most), strict=True))
        return np.array([begin, 0, *later])

    def _values(self) -> list[ProblemValue]:
        found: list[ProblemValue] = []
        for terms in self.terms.values:
            value = self._value(terms)
            found.append(value)
            if terms.is_parameter:
                block = terms.block or terms.name
                self.gathered.setdefault(block, []).append((len(found) - 1, self._units(terms.in_flight_bytes)))
                self.unreduced.setdefault(block, []).append((terms.producer, self._units(terms.unreduced_bytes[list(terms.made)])))
                if terms.travel is not None and not terms.travel.prices.gathers_again and (times := self._recomputed(terms.members)):
                    found.append(self._again(terms, value, times))
                continue
            if self._can_peak(terms, value):
                found.append(self._moving(terms, value))
                self.moving.append((len(found) - 1, Group(values=((len(found) - 1, self._units(terms.kept_bytes)),))))
            if times := sum(self.span.least.moves_again[member] for member in terms.members):
                found.append(self._again(terms, value, times))
        return found

    def _value(self, terms: ValueTerms) -> ProblemValue:
        return ProblemValue(
            name=terms.name,
            producer=terms.producer,
            made=terms.made,
            readers=terms.readers,
            forward_class=terms.forward_class,
            forward=terms.forward,
            backward=terms.backward,
            keepers=self._keepers(terms),
            kept=self._rows(np.outer(self._copies_kept(terms), terms.kept_bytes)),
            free=terms.free,
        )

    def _can_peak(self, terms: ValueTerms, value: ProblemValue) -> bool:
        """Whether more memory can be in use while the value is redistributed than ops at work with its readers need anyhow."""
        if not self.terms.prices.trains or value.classes == 1:
            return False
        keeping = {value.readers[keeper].node for keeper in value.keepers}
        most = sum(sorted(self._units(terms.kept_bytes))[-len(value.keepers) :]) if value.keepers else 0
        return any(keeping & working and most > sure for working, sure in zip(self.working, self.sure, strict=True))

    def _moving(self, terms: ValueTerms, value: ProblemValue) -> ProblemValue:
        """The value once more, as it moves: only the copies that are kept in a state that it was not made in, which take nothing by themselves."""
        return replace(
            value,
            name=f"{terms.name} moving",
            forward=np.zeros_like(terms.forward),
            backward=np.zeros_like(terms.backward),
            kept=self._nothing(len(terms.kept_bytes)),
            free=terms.home,
            in_transit=True,
        )

    def _recomputed(self, members: Sequence[int]) -> int:
        """How many parameters a block reads that runs again: with it they are gathered again, be they needed or not."""
        graph, again = self.terms.prices.graph, self.span.least.recomputed
        return sum(any(node.id in segment.nodes for node, _ in graph.consumers[member] for segment in again) for member in members)

    def _again(self, terms: ValueTerms, value: ProblemValue, times: int) -> ProblemValue:
        """The value once more, as those that run again read it: nothing but what it costs to bring it there."""
        return replace(
            value,
            name=f"{terms.name} again",
            readers=terms.readers if terms.is_parameter else tuple(terms.readers[position] for position in self._readers_again(terms)),
            forward=rounded(terms.again_s * times, self.terms.unit_s, down=self.down),
            backward=np.zeros_like(terms.backward),
            keepers=(),
            kept=self._nothing(len(terms.kept_bytes)),
        )

    def _readers_again(self, terms: ValueTerms) -> list[int]:
        """Positions of the readers that run again, in any copy."""
        graph, node_class = self.terms.prices.graph, self.terms.candidates.classes.node_class
        consumers = [node.id for member in terms.members for node, _ in graph.consumers[member]]
        again = {node_class[node] for node in consumers if self.span.least.runs_again([node])}
        return [position for position, (node, _) in enumerate(terms.reading) if node in again]

    def _keepers(self, terms: ValueTerms) -> tuple[int, ...]:
        """Positions of the readers that keep what they read; all readers of a parameter use the copy that was gathered."""
        if terms.is_parameter:
            return tuple(range(len(terms.reading)))
        node_class = self.terms.candidates.classes.node_class
        keeping = {(node_class[node], operand) for node, operand in self.span.keepers(terms.members)}
        return tuple(position for position, reader in enumerate(terms.reading) if reader in keeping)

    def _copies_kept(self, terms: ValueTerms) -> Array:
        """By row, how many of the values are kept as they are read."""
        if not terms.is_parameter:
            return self._least(lambda scenario: scenario.values_kept_as_read(terms.members))
        counts = self._least(lambda scenario: scenario.readers_to_come(terms.members))
        counts[FORWARD_END] = len(terms.members)
        return counts

    def _units(self, amounts: Array) -> Vector:
        return _vector(-(-amounts // self.unit_bytes))

    def _rows(self, amounts: Array) -> Matrix:
        rounded_amounts = amounts // self.unit_bytes if self.down else -(-amounts // self.unit_bytes)
        return tuple(map(tuple, rounded_amounts.astype(np.int64).tolist()))


def _vector(numbers: Array) -> Vector:
    return tuple(numbers.tolist())
