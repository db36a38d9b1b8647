"""What every choice costs and takes, whatever recomputes: the arrays that problems of one planning run are put together from.

The graph is never copied: every node and value of it belongs to a class, a class is one decision, and values that look
alike (same producer class, same reader classes) are one term whose cost counts as often as there are of them. That folds
repeated blocks and prices what passes between their copies, without a word about first and last ones.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from autoplan.assignment.names import block_of, kind_of_block
from autoplan.cost.buckets import start_seconds
from autoplan.cost.hardware import Host
from autoplan.cost.seconds import ComputeCost
from autoplan.cost.transitions import Moves
from autoplan.graph.ir import Value
from autoplan.placement import Placements
from autoplan.planner.candidates import Candidates
from autoplan.planner.prices import Array, Prices
from autoplan.planner.problem import FORBIDDEN, Reader, Vector
from autoplan.planner.states import StateNumbers, States
from autoplan.planner.travel import Paid, Parts, Travel

RESOLUTION = 1e-7  # of the step's least compute time: what one unit of cost stands for
TIES = 4096  # cost units are cut this fine below `unit_s`, so that small preferences decide between equal plans
MOST_PREFERENCE = TIES // 64 - 1
COLLECTIVE = 8  # what a collective counts among equals; of the rows of an op each counts one more than the one before it

Readers = tuple[tuple[int, int], ...]
"""(problem node, operand) of everyone who reads a value."""


@dataclass(frozen=True, slots=True)
class OpTerms:
    """A class of nodes, by strategy: seconds of a step, and of running again; bytes of a moment, kept beside values, and of each output.

    All are of one member, `made_bytes[output]` with the values that are that output of the members. Of the seconds those in
    `computing` are no collectives inside the op, and may hide others: of a step, and of running again. `kind` is that of the block.
    """

    name: str
    kind: str | None
    members: tuple[int, ...]
    seconds: Array
    again_s: Array
    computing: tuple[Array, Array]
    transient_bytes: Array
    beside_bytes: Array
    made: tuple[tuple[tuple[int, ...], Array], ...]

    def less(self, part: float) -> OpTerms:
        """Without so much of the computing."""
        step, again = self.computing
        return replace(self, seconds=self.seconds - part * step, again_s=self.again_s - part * again)

    def hosted(self, part: float, host: Host, *, trains: bool) -> OpTerms:
        """With so much of what the host is busy with it, and the rest of what it costs."""
        host_s = host.op_s if trains else host.one_way_s
        return replace(self, seconds=(1 - part) * self.seconds + part * host_s, again_s=(1 - part) * self.again_s + part * host.one_way_s)


@dataclass(frozen=True, slots=True)
class SourceTerms:
    """A class of sources, by state: seconds of the optimizer, bytes held all the time, of the gradient, and kept as an activation (an input)."""

    name: str
    members: tuple[int, ...]
    seconds: Array
    held_bytes: Array
    gradient_bytes: Array
    made_bytes: Array


@dataclass(frozen=True, slots=True)
class ValueTerms:
    """Values whose producers and readers are of the same classes. Costs are of all members, seconds and bytes of one.

    `forward[p][f]` and `backward[p][q]` as in ProblemValue, of `forward_s` and `backward_s`; `again_s[p][f]` what bringing it there
    once more takes; `host_s` is what the host is busy with, as [p][f] and as [p][q]; `travel` what these are made of, of a block's parameters;
    `home[p]` is the forward class in which it is made, free of what `kept_bytes[f]`, a copy that lasts until backward, takes if `home_is_free`; `in_flight_bytes[f]` what the block at work needs of a parameter,
    `unreduced_bytes[p]` of one that is read as it is stored.
    """

    name: str
    kind: str
    members: tuple[int, ...]
    producer: int
    reading: Readers
    readers: tuple[Reader, ...]
    made: Vector
    forward_class: Vector
    forward: Array
    forward_s: Array
    again_s: Array
    backward: Array
    backward_s: Array
    host_s: tuple[Array, Array]
    home: tuple[int | None, ...]
    home_is_free: bool
    kept_bytes: Array
    in_flight_bytes: Array
    unreduced_bytes: Array
    block: str | None
    travel: Travel | None = None

    @property
    def free(self) -> tuple[int | None, ...]:
        """The forward class, if any, in which no copy of its own is kept, by how it is made."""
        return self.home if self.home_is_free else (None,) * len(self.home)

    @property
    def is_parameter(self) -> bool:
        """Whether the values are parameters."""
        return self.kind == "parameter"

    def ahead(self, counted: float) -> ValueTerms:
        """With so much of what it costs where ranks talk to each other, and with that of one block more in flight."""
        assert self.travel is not None
        forth, back = self.travel.talks()
        return replace(
            self,
            forward=np.where(forth, _part_of(self.forward, counted), self.forward),
            backward=np.where(back, _part_of(self.backward, counted), self.backward),
            again_s=np.where(forth, counted * self.again_s, self.again_s),
            in_flight_bytes=2 * self.in_flight_bytes,
            unreduced_bytes=2 * self.unreduced_bytes,
        )

    def charged(self, parts: Parts, unit_s: float) -> ValueTerms:
        """With these parts of the starts of its block's collectives to pay for."""
        assert self.travel is not None
        travel = replace(self.travel, parts=parts)
        forward_s, backward_s, host_s = travel.seconds()
        return replace(
            self,
            forward=recosted(self.forward, forward_s * len(self.members), unit_s),
            forward_s=forward_s,
            backward=recosted(self.backward, backward_s * len(self.members), unit_s),
            backward_s=backward_s,
            host_s=host_s,
            again_s=travel.recomputed_s(),
            travel=travel,
        )

    def starts(self, choice: Sequence[int]) -> set[Paid]:
        """The starts of its block's collectives that it is in, by a choice."""
        if self.travel is None:
            return set()
        made = self.made[choice[self.producer]]
        states = {q for reader in self.readers if (q := reader.needs[choice[reader.node]]) is not None}
        return self.travel.starts(made, {self.forward_class[q] for q in states}, states)

    @property
    def most_host_s(self) -> float:
        """No less than the host is busy with any state of it, were it alone in every collective."""
        if self.travel is None:
            return sum(float(host_s.max(initial=0.0)) for host_s in self.host_s)
        return sum(float(host_s.max(initial=0.0)) for host_s in self.travel.seconds(alone=True)[2])

    def hosted(self, part: float, unit_s: float) -> ValueTerms:
        """With so much of what the host is busy with, and the rest of what it costs."""
        forward, backward = (
            np.where(costs == FORBIDDEN, FORBIDDEN, _part_of(costs, 1 - part) + rounded(part * len(self.members) * seconds, unit_s))
            for costs, seconds in zip((self.forward, self.backward), self.host_s, strict=True)
        )
        return replace(self, forward=forward, backward=backward, again_s=(1 - part) * self.again_s)


@dataclass(frozen=True, slots=True)
class Collective:
    """One that parameters of a block may be in, of one dtype, and of so many copies of the block."""

    block: str
    dtype: str
    paid: Paid
    copies: int


@dataclass(frozen=True, slots=True)
class Terms:
    """All of them. Problem nodes are the node classes first, then the sources, then the outputs of the graph.

    `opened` are collectives of blocks whose starts are paid for whoever is in them (`starts`).
    Parameters of blocks travel `prefetch` pieces ahead; `waiting` is what `ahead` was told, `host` what `hosted` was.
    """

    candidates: Candidates
    prices: Prices
    unit_s: float
    ops: tuple[OpTerms, ...]
    sources: tuple[SourceTerms, ...]
    values: tuple[ValueTerms, ...]
    source_nodes: Mapping[int, int]  # value class -> problem node
    output_nodes: tuple[int, ...]
    opened: tuple[Collective, ...] = ()
    prefetch: int = 0
    waiting: Mapping[str, float] = field(default_factory=dict)
    host: float = 0.0

    def ahead(self, waiting: Mapping[str, float]) -> Terms:
        """The same where parameters of blocks travel one piece ahead, and their gradients while backward goes on.

        What blocks of a kind wait for is max((1 - hides) communication, communication - computing): of these two the second
        counts with a weight (`waiting`, 0 to 1), the first with the rest. Whatever the weights, that is no more than the greater.
        """
        assert not self.prefetch and not self.host
        told = replace(self, prefetch=1, waiting=waiting)
        ops = tuple(op if op.kind is None else op.less(waiting.get(op.kind, 0.0)) for op in self.ops)
        values = tuple(v if v.block is None else v.ahead(told._counted(kind_of_block(v.block))) for v in self.values)
        return replace(told, ops=ops, values=values)

    def hosted(self, part: float) -> Terms:
        """The same where a step costs so much of what the host is busy with it, and the rest of what the device is.

        It lasts as long as the longer of both: whatever the part, this is no more.
        """
        assert not self.host
        if not part:
            return self
        return replace(
            self,
            ops=tuple(op.hosted(part, self.prices.hardware.host, trains=self.prices.trains) for op in self.ops),
            sources=tuple(replace(source, seconds=(1 - part) * source.seconds) for source in self.sources),
            values=tuple(value.hosted(part, self.unit_s) for value in self.values),
            host=part,
        )

    @property
    def most_host(self) -> int:
        """More cost units than the host is busy with any choice, or as much."""
        moves_s = sum(len(v.members) * len(v.readers) * v.most_host_s for v in self.values)
        return self.least_host * 3 // 2 + int(moves_s / self.unit_s + 1) * TIES

    @property
    def least_host(self) -> int:
        """Cost units that the host is busy with the ops alone."""
        host = self.prices.hardware.host
        each_s = host.op_s if self.prices.trains else host.one_way_s
        return int(sum(len(op.members) for op in self.ops) * each_s / self.unit_s + 1) * TIES

    @property
    def opened_s(self) -> float:
        """What the starts of `opened` cost in a step."""
        prices, total = self.prices, 0.0
        for collective in self.opened:
            _, start = collective.paid
            device_s = start_seconds(start.kind, start.axes, prices.mesh, prices.hardware)
            if self.prefetch:
                device_s *= self._counted(kind_of_block(collective.block))
            total += collective.copies * ((1 - self.host) * device_s + self.host * prices.hardware.host.redistribution_s)
        return total

    def _counted(self, kind: str) -> float:
        """How much of what parameters of such blocks cost counts where they travel ahead."""
        return 1 - self.prices.hardware.hides * (1 - self.waiting.get(kind, 0.0))

    @property
    def parts(self) -> tuple[Parts, ...]:
        """By value that travels with a block's others, the parts of starts that it is said to pay for."""
        return tuple(value.travel.parts for value in self.values if value.travel is not None)

    @property
    def rounding_of_starts(self) -> int:
        """As `rounding`, where only who pays for starts differs: forward and back."""
        return TIES * len(self.parts)

    def cost(self, seconds: Array, *, down: bool = False) -> Array:
        """Integer costs of strategies; among equals the earlier ones first."""
        return rounded(seconds, self.unit_s, down=down) + np.minimum(np.arange(len(seconds)), MOST_PREFERENCE)

    @property
    def rounding(self) -> int:
        """By how much a choice's cost, of terms rounded to the nearest, may be less than their sum: half a unit each, of two parts twice."""
        return (4 if self.host else 1) * TIES // 2 * (len(self.ops) + len(self.values))


def rounded(seconds: Array, unit_s: float, *, down: bool = False) -> Array:
    """Seconds in cost units, to the nearest or down, with room for preferences below."""
    units = seconds / unit_s
    return (np.floor(units) if down else np.rint(units)).astype(np.int64) * TIES


def recosted(before: Array, seconds: Array, unit_s: float) -> Array:
    """The costs of so many seconds, with the preferences there were; what was forbidden stays so."""
    return np.where(before == FORBIDDEN, FORBIDDEN, rounded(seconds, unit_s) + before % TIES)


def _part_of(costs: Array, part: float) -> Array:
    """Part of the units of cost; what is forbidden stays so, and so do preferences."""
    return np.where(costs == FORBIDDEN, FORBIDDEN, np.rint(costs // TIES * part).astype(np.int64) * TIES + costs % TIES)


def terms_of(candidates: Candidates, prices: Prices) -> Terms:
    """Price every choice once."""
    return _Pricer(candidates, prices).terms()


class _Pricer:
    def __init__(self, candidates: Candidates, prices: Prices) -> None:
        self.candidates, self.prices = candidates, prices
        self.graph, self.classes = candidates.graph, candidates.classes
        first = len(candidates.strategies)
        self.source_nodes = {c: first + position for position, c in enumerate(candidates.sources)}
        first += len(candidates.sources)
        self.outputs = tuple(range(first, first + len(candidates.outputs)))
        self.numbers = StateNumbers(prices.transitions)

    def terms(self) -> Terms:
        """Ops, sources and values."""
        ops = tuple(self._op(c) for c in range(len(self.candidates.strategies)))
        self.unit_s = RESOLUTION * max(sum(float(op.seconds.min()) * len(op.members) for op in ops), 1e-6)
        return Terms(
            self.candidates,
            self.prices,
            self.unit_s,
            ops,
            tuple(self._source(c, states) for c, states in self.candidates.sources.items()),
            self._values(),
            self.source_nodes,
            self.outputs,
        )

    def _op(self, c: int) -> OpTerms:
        members, call, strategies = self.classes.node_members[c], self.candidates.calls[c], self.candidates.strategies[c]
        node = self.graph.nodes[members[0]]
        examples, like = self.prices.alike(call, strategies)
        costs = self.prices.strategy_costs(node, call, examples)
        again = costs if self.prices.repeats(node) else [ComputeCost()] * len(costs)
        made = []
        for j, value in enumerate(node.outputs):
            nbytes = np.array([self.prices.made_bytes(value, s.makes[j]) for s in examples])
            made.append((tuple(self.graph.nodes[member].outputs[j] for member in members), nbytes[like]))
        return OpTerms(
            node.address,
            kind_of_block(block) if (block := block_of(node.address, self.prices.prefixes)) is not None else None,
            tuple(members),
            np.array([cost.seconds for cost in costs])[like],
            np.array([cost.forward_s + cost.inside_forward_s for cost in again])[like],
            (np.array([cost.forward_s + cost.backward_s for cost in costs])[like], np.array([cost.forward_s for cost in again])[like]),
            np.array([self.prices.transient_bytes(node, call, s) for s in examples])[like],
            np.array([self.prices.kept_by_op_bytes(call, s) for s in examples])[like],
            tuple(made),
        )

    def _source(self, c: int, states: tuple[Placements, ...]) -> SourceTerms:
        members = self.classes.value_members[c]
        value = self.graph.values[members[0]]
        held, gradient = np.array([self.prices.stored_bytes(value, state) for state in states]).T
        made = [self.prices.made_bytes(value.id, state) if value.kind == "input" else 0 for state in states]
        seconds = np.array([self.prices.stored_s(value, state) for state in states])
        return SourceTerms(value.address, tuple(members), seconds, held, gradient, np.array(made))

    def _values(self) -> tuple[ValueTerms, ...]:
        """One for all values whose producers and readers are of the same classes."""
        alike: dict[tuple[int, int, Readers], list[int]] = {}
        for value in self.graph.values:
            alike.setdefault(self._signature(value), []).append(value.id)
        found = []
        for (producer, output, readers), members in alike.items():
            states = States.of(self.numbers, self._made(producer, output), [self._needed(node, operand) for node, operand in readers])
            if states.needed:
                forward = self.prices.transitions.announce(states.homes, states.placements)
                backward = self.prices.transitions.announce(*states.gradients) if self._has_gradient(members) else None
                found.append((tuple(members), producer, readers, states, forward, backward))
        return tuple(self._value(*one) for one in found)

    def _has_gradient(self, members: Sequence[int]) -> bool:
        return self.prices.trains and self.graph.values[members[0]].needs_grad

    def _signature(self, value: Value) -> tuple[int, int, Readers]:
        if value.kind == "op":
            node = self.graph.producers[value.id]
            producer, output = self.classes.node_class[node.id], node.outputs.index(value.id)
        else:
            producer, output = self.source_nodes[self.classes.value_class[value.id]], 0
        readers = {(self.classes.node_class[node.id], operand) for node, operand in self.graph.consumers[value.id]}
        readers |= {(self.outputs[position], -1) for position, out in enumerate(self.graph.outputs) if out == value.id}
        overwritten = [self.graph.buffers[fqn] for fqn, new in self.graph.mutations.items() if new == value.id and value.kind != "buffer"]
        readers |= {(self.source_nodes[self.classes.value_class[buffer]], -1) for buffer in overwritten}
        return producer, output, tuple(sorted(readers))

    def _value(
        self, members: tuple[int, ...], producer: int, readers: Readers, states: States, forward: Moves, backward: Moves | None
    ) -> ValueTerms:
        value = self.graph.values[members[0]]
        block = block_of(value.address, self.prices.prefixes) if value.kind == "parameter" else None
        prices = self.prices.of_value(value, block)
        travel = Travel(prices, forward, backward, len(states.needed))
        again_s = prices.forward_s(forward)
        forward_s, backward_s, host_s = travel.seconds()
        positions = {used: position for position, used in enumerate(states.placements)}
        homes, uses = (self.prices.transitions.placements(numbers) for numbers in (states.homes, states.placements))
        return ValueTerms(
            name=value.address,
            kind=value.kind,
            members=members,
            producer=producer,
            reading=readers,
            readers=tuple(Reader(node, needs) for (node, _), needs in zip(readers, states.needs, strict=True)),
            made=states.made,
            forward_class=states.forward_class,
            forward=self._forward(value, forward_s * len(members), forward),
            forward_s=forward_s,
            again_s=again_s,
            backward=self._backward(backward_s * len(members), backward),
            backward_s=backward_s,
            host_s=host_s,
            home=tuple(map(positions.get, states.homes)),
            home_is_free=prices.home_is_free,
            kept_bytes=np.array([prices.kept_bytes(used) for used in uses]),
            in_flight_bytes=np.array([prices.in_flight_bytes(used) if prices.is_parameter else 0 for used in uses]),
            unreduced_bytes=np.array([prices.unreduced_bytes(home) if prices.is_parameter else 0 for home in homes]),
            block=prices.block,
            travel=travel if block is not None else None,
        )

    def _forward(self, value: Value, seconds: Array, moves: Moves) -> Array:
        """[produced, placements]: what it costs to bring the values there."""
        counts = self.prices.transitions.collectives(moves)
        costs = self._costs(seconds, counts)
        if value.kind == "parameter" and self.classes.value_class[value.id] in self.candidates.never_gathered:
            costs[counts > 0] = FORBIDDEN
        return costs

    def _backward(self, seconds: Array, moves: Moves | None) -> Array:
        """[produced, needed]: what it costs to bring the gradients back."""
        return rounded(seconds, self.unit_s) if moves is None else self._costs(seconds, self.prices.transitions.collectives(moves).T)

    def _costs(self, seconds: Array, collectives: Array) -> Array:
        """The costs of redistributions: among plans that cost the same, the one with fewer collectives is read more easily."""
        return rounded(seconds, self.unit_s) + np.minimum(COLLECTIVE * collectives, MOST_PREFERENCE)

    def _made(self, producer: int, output: int) -> list[int]:
        """The state that each strategy of a producer makes."""
        if producer < len(self.candidates.strategies):
            return self.numbers.of(("made", producer, output), (s.makes[output] for s in self.candidates.strategies[producer]))
        return self._source_states(producer)

    def _needed(self, node: int, operand: int) -> list[int]:
        """The state that each strategy of a reader needs."""
        if node < len(self.candidates.strategies):
            return self.numbers.of(("needed", node, operand), (s.needs[operand] for s in self.candidates.strategies[node]))
        if node >= self.outputs[0]:
            return self.numbers.of(("output", node), self.candidates.outputs[node - self.outputs[0]])
        return self._source_states(node)

    def _source_states(self, node: int) -> list[int]:
        c = next(c for c, source in self.source_nodes.items() if source == node)
        return self.numbers.of(("source", c), self.candidates.sources[c])
