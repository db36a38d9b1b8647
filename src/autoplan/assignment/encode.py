"""An assignment as the decision sections of a plan: only what the inputs do not determine is written down."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace

from autoplan.assignment.assignment import Assignment
from autoplan.assignment.gathers import Bucket, GatherGroup
from autoplan.assignment.names import input_name, output_names, reader_name, reader_patterns
from autoplan.assignment.redistributions import Redistribution, redistributions_of
from autoplan.assignment.resolve import first_fit, gradient_forms
from autoplan.graph.ir import Graph, Node
from autoplan.placement import Placements, Replicate, forward_of
from autoplan.plan.patterns import collapse
from autoplan.plan.schema import BufferLine, Collective, GatherLine, InputLine, OpLine, OutputLine, ParamLine, ReshardEntry, Uses
from autoplan.redistribution import Step, collectives


@dataclass(frozen=True, slots=True)
class Decisions:
    """The sections of a plan that are executed."""

    inputs: Mapping[str, InputLine]
    outputs: Mapping[str, OutputLine]
    params: Mapping[str, ParamLine]
    buffers: Mapping[str, BufferLine]
    ops: Mapping[str, OpLine]
    reshard: Mapping[str, tuple[ReshardEntry, ...]]
    gather: Mapping[str, GatherLine]


def encode(assignment: Assignment, gathers: Collection[GatherGroup], prefixes: Collection[str]) -> Decisions:
    """The decisions of `assignment`, folded over the blocks under `prefixes` ("layers")."""
    graph = assignment.graph
    reshard = {graph.values[value].address: entries for value in _activations(graph) if (entries := _entries(assignment, value, prefixes))}
    producers = [graph.values[value].address for value in _activations(graph)]
    lines = _op_lines(assignment)
    return Decisions(
        inputs=_inputs(assignment),
        outputs={name: OutputLine(place) for name, place in zip(output_names(graph), map(forward_of, assignment.outputs), strict=True)},
        params=_params(assignment, prefixes),
        buffers=_buffers(assignment, prefixes),
        ops={
            pattern: replace(fold.content, count=fold.count)
            for pattern, fold in collapse(lines, prefixes, existing=[node.address for node in graph.nodes], execution_order=True).items()
        },
        reshard={
            pattern: tuple(replace(entry, count=fold.count) for entry in fold.content)
            for pattern, fold in collapse(reshard, prefixes, existing=producers, execution_order=True).items()
        },
        gather=_gather(assignment, gathers, prefixes),
    )


def _activations(graph: Graph) -> list[int]:
    """Values a `reshard` line may speak of: all but parameters, in execution order."""
    return [value.id for value in graph.values if value.kind != "parameter"]


def _inputs(assignment: Assignment) -> dict[str, InputLine]:
    graph = assignment.graph
    return {
        input_name(graph, value): InputLine(graph.values[value].shape, graph.values[value].dtype, forward_of(assignment.sources[value]))
        for value in graph.inputs
    }


def _params(assignment: Assignment, prefixes: Collection[str]) -> dict[str, ParamLine]:
    graph = assignment.graph
    lines = {}
    for parameter in graph.parameters:
        store = forward_of(assignment.sources[parameter.value])
        lines[parameter.fqn] = _Hashed(
            ParamLine(graph.values[parameter.value].shape, store, _uses(assignment, parameter.value, store, prefixes))
        )
    return {pattern: replace(fold.content.line, count=fold.count) for pattern, fold in collapse(lines, prefixes).items()}


class _Hashed:
    """A parameter line that compares by what it says, whatever the type of its `use`."""

    def __init__(self, line: ParamLine) -> None:
        self.line = line
        use = tuple(line.use.items()) if isinstance(line.use, Mapping) else line.use
        self._key = (line.shape, line.store, use)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Hashed) and self._key == other._key

    def __hash__(self) -> int:
        return hash(self._key)


def _uses(assignment: Assignment, value: int, store: Placements, prefixes: Collection[str]) -> Uses:
    """How a parameter is used: one tuple of placements where all uses agree, else one per pattern of readers."""
    graph = assignment.graph
    by_placement: dict[Placements, list[str]] = {}
    for need in assignment.needs[value]:
        by_placement.setdefault(forward_of(need.state), []).extend(reader_name(graph, *reader) for reader in need.readers)
    if len(by_placement) <= 1:
        return next(iter(by_placement), store)
    readers = [name for names in by_placement.values() for name in names]
    address = graph.values[value].address
    return {pattern: place for place, names in by_placement.items() for pattern in reader_patterns(address, names, readers, prefixes)}


def _buffers(assignment: Assignment, prefixes: Collection[str]) -> dict[str, BufferLine]:
    graph = assignment.graph
    lines = {fqn: BufferLine(graph.values[value].shape, forward_of(assignment.sources[value])) for fqn, value in graph.buffers.items()}
    return {pattern: replace(fold.content, count=fold.count) for pattern, fold in collapse(lines, prefixes).items()}


def _entries(assignment: Assignment, value: int, prefixes: Collection[str]) -> tuple[ReshardEntry, ...]:
    """The redistributions of one value; those that change nothing but the kind of an R's gradient, for free, are derived."""
    graph, produced = assignment.graph, forward_of(assignment.produced[value])
    readers = [reader_name(graph, *reader) for need in assignment.needs[value] for reader in need.readers]
    entries: dict[ReshardEntry, list[str]] = {}
    for move in redistributions_of(assignment, value):
        if is_listed(move, produced):
            entry = ReshardEntry(produced, forward_of(move.state), named(move.forward, assignment), named(move.backward, assignment))
            entries.setdefault(entry, []).extend(reader_name(graph, *reader) for reader in move.readers)
    address = graph.values[value].address
    return tuple(
        entry if len(names) == len(readers) else replace(entry, for_=reader_patterns(address, names, readers, prefixes))
        for entry, names in entries.items()
    )


def is_listed(move: Redistribution, produced: Placements) -> bool:
    """Whether a redistribution has a line: its placements differ, or its gradient takes a collective."""
    return forward_of(move.state) != produced or bool(collectives(move.backward))


def named(steps: tuple[Step, ...] | tuple[Bucket, ...], assignment: Assignment) -> tuple[Collective, ...]:
    """The collectives among `steps`, with their axes by name."""
    return tuple(Collective(kind, tuple(assignment.mesh.names[axis] for axis in axes)) for kind, axes in collectives(steps))  # type: ignore[arg-type]  # a bucket is named like a step


def _op_lines(assignment: Assignment) -> dict[str, OpLine]:
    """Ops whose strategy does not follow from their inputs and readers, and those that talk to other ranks inside."""
    lines = {}
    for node in assignment.graph.nodes:
        strategy = assignment.strategies[node.id]
        inside = tuple(Collective(kind, tuple(assignment.mesh.names[axis] for axis in axes)) for kind, axes in strategy.inside())
        follows = node.inputs and first_fit(assignment, node) == strategy.rows
        row = None if follows and not inside else strategy.describe(assignment.mesh)
        if not node.inputs and all(map(_replicated, strategy.makes)):
            row = None  # what nothing determines is replicated unless the plan says otherwise
        gradient = _explicit_gradient(assignment, node)
        if row or inside or gradient:
            lines[node.address] = OpLine(row, inside, gradient)
    return lines


def _replicated(state: Placements) -> bool:
    return all(isinstance(p, Replicate) for p in state)


def _explicit_gradient(assignment: Assignment, node: Node) -> Placements | None:
    """The kind of an all-R row's gradients, where it is not the one that `decode` would derive."""
    from autoplan.placement import P, R

    strategy = assignment.strategies[node.id]
    if not any(flag for flag in strategy.partial) and not any(row.is_replicated for row in strategy.rows):
        return None
    derived = next(iter(gradient_forms(assignment, node, strategy.rows)), None)
    if derived == strategy.partial:
        return None
    return tuple(P if flag else R for flag in strategy.partial)


def _gather(assignment: Assignment, gathers: Collection[GatherGroup], prefixes: Collection[str]) -> dict[str, GatherLine]:
    """Gather lines by group; several groups of one block (different axes) are one line that lists the collectives of all."""
    lines: dict[str, GatherLine] = {}
    for group in gathers:
        forward, backward = named(group.forward, assignment), named(group.backward, assignment)
        again = named(group.again, assignment)
        line = GatherLine(group.kind, group.regather, group.prefetch, forward, again + backward)
        before = lines.get(group.name)
        if before:
            line = replace(
                line,
                regather=before.regather or line.regather,
                forward=before.forward + line.forward,
                backward=before.backward + line.backward,
            )
        if line.forward or line.backward:
            lines[group.name] = line
    return {pattern: replace(fold.content, count=fold.count) for pattern, fold in collapse(lines, prefixes).items()}
