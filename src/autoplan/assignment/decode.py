"""A plan and a graph as an assignment: every value placed by the rules, from what the plan decides.

Forwards through the graph the placements of an op's inputs choose its row; backwards the collectives that the plan lists
tell whether the gradient of a replicated value is whole or partial. All that does not resolve is one PlanError.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from autoplan.assignment.assignment import BUFFER_READER, OUTPUT_READER, Assignment, Need
from autoplan.assignment.encode import named
from autoplan.assignment.names import input_name, output_names, reader_name
from autoplan.assignment.redistributions import gradient_reaches, redistributions_of
from autoplan.assignment.resolve import Edge, Listed, backward_collectives, consistent_forms, fitting_rows, specs
from autoplan.errors import PlanError, join_problems
from autoplan.graph.ir import Graph, Node
from autoplan.placement import Mesh, P, Partial, Placements, R, fits, format_placements, forward_of
from autoplan.plan.match import match_buffers, match_lines, match_params
from autoplan.plan.patterns import match
from autoplan.plan.schema import Collective, ParamLine, Plan, ReshardEntry
from autoplan.rules.row import Row, Strategy, make_strategy

MAX_PROBLEMS = 20


def decode(plan: Plan, graph: Graph, *, exact: bool = True) -> Assignment:
    """The assignment that `plan` decides for `graph`; raises PlanError that lists everything that does not resolve.

    With `exact=False` the graph may lack ops of the planned one, as those of eval mode do (a `contiguous` that has nothing to copy
    there): what the plan says of a value's way to its readers then holds for where it is to come, wherever it comes from, and an
    op that nothing is said of and no row fits runs replicated.
    """
    decoder = _Decoder(plan, graph, exact)
    decoder.place_sources()
    for node in graph.nodes:
        decoder.place(node)
    decoder.raise_problems()
    for node in reversed(graph.nodes):
        decoder.settle_gradients(node)
    decoder.raise_problems()
    assignment = Assignment(graph, plan.mesh, tuple(decoder.strategies[node.id] for node in graph.nodes), decoder.sources, decoder.outputs)
    if exact:
        decoder.check_collectives(assignment)
        decoder.raise_problems()
    return assignment


@dataclass
class _Decoder:
    """What has been resolved so far; `forward` has the placements of values, None downstream of a problem."""

    plan: Plan
    graph: Graph
    exact: bool = True
    problems: list[PlanError] = field(default_factory=list)
    forward: dict[int, Placements | None] = field(default_factory=dict)
    sources: dict[int, Placements] = field(default_factory=dict)
    rows: dict[int, tuple[Row, ...]] = field(default_factory=dict)
    strategies: dict[int, Strategy] = field(default_factory=dict)
    outputs: tuple[Placements, ...] = ()
    reshard_keys: Mapping[str, str] = field(default_factory=dict)
    op_keys: Mapping[str, str] = field(default_factory=dict)
    param_lines: dict[int, tuple[str, ParamLine]] = field(default_factory=dict)

    @property
    def mesh(self) -> Mesh:
        return self.plan.mesh

    def report(self, what: str, *keys: str, next_step: str | None = None) -> None:
        self.problems.append(PlanError(what, where=self.plan.provenance.where(*keys), next_step=next_step))

    def raise_problems(self) -> None:
        if self.problems:
            shown = self.problems[:MAX_PROBLEMS]
            rest = len(self.problems) - len(shown)
            raise join_problems(PlanError, [*shown, *([f"and {rest} more"] if rest else [])])

    def place_sources(self) -> None:
        """Match every line to names of the graph, and place inputs, parameters, buffers and constants."""
        graph, plan = self.graph, self.plan
        values = graph.values
        param_keys = match_params(plan, {p.fqn: values[p.value].shape for p in graph.parameters})
        buffer_keys = match_buffers(plan, {fqn: values[value].shape for fqn, value in graph.buffers.items()})
        input_keys = match_lines(plan, "inputs", [input_name(graph, value) for value in graph.inputs], complete=True)
        output_keys = match_lines(plan, "outputs", output_names(graph), complete=True)
        self.reshard_keys = match_lines(plan, "reshard", [value.address for value in values if value.kind != "parameter"])
        self.op_keys = match_lines(plan, "ops", [node.address for node in graph.nodes])
        for parameter in graph.parameters:
            key = param_keys[parameter.fqn]
            self.param_lines[parameter.value] = (key, plan.params[key])
            self._place_source(parameter.value, plan.params[key].store, "params", key)
        for fqn, value in graph.buffers.items():
            self._place_source(value, plan.buffers[buffer_keys[fqn]].use, "buffers", buffer_keys[fqn])
            self._check_overwritten(fqn, buffer_keys[fqn])
        for value in graph.inputs:
            key = input_keys[input_name(graph, value)]
            line = plan.inputs[key]
            if line.shape != values[value].shape:
                self.report(f"{key}: shape {list(line.shape)}, but the model's is {list(values[value].shape)}", "inputs", key)
            self._place_source(value, line.place, "inputs", key)
        for constant in values:
            if constant.kind == "constant":
                self._place_source(constant.id, (R,) * self.mesh.ndim, "model")
        self.outputs = tuple(plan.outputs[output_keys[name]].place for name in output_names(graph))

    def _place_source(self, value: int, state: Placements, *keys: str) -> None:
        if not fits(self.graph.values[value].shape, state, self.mesh) or any(isinstance(p, Partial) for p in state):
            self.report(
                f"{self.graph.values[value].address}: {format_placements(state)} of shape {list(self.graph.values[value].shape)}", *keys
            )
        self.sources[value] = self.forward[value] = state

    def _check_overwritten(self, fqn: str, key: str) -> None:
        """The module holds its buffers whole on every rank: part of one cannot be overwritten."""
        whole = (R,) * self.mesh.ndim
        if fqn in self.graph.mutations and self.sources[self.graph.buffers[fqn]] != whole:
            what = f"{fqn}: forward overwrites it, so every rank must hold the whole of it"
            self.report(what, "buffers", key, next_step=f"write use: {format_placements(whole)}")

    def place(self, node: Node) -> None:
        """Choose the rows of a node by how its inputs are placed, or as its `ops` line says."""
        found = [self._placed(value, node) for value in node.inputs]
        placed = [state for state in found if not isinstance(state, _Unknown)]
        if len(placed) < len(found):
            self._leave_unknown(node)
            return
        line = self.plan.ops.get(self.op_keys.get(node.address, ""))
        said = (line.row if line else None) or ""
        fitting = fitting_rows(self.graph, node, placed, self.mesh, said)
        if not fitting:
            fitting = fitting_rows(self.graph, node, self._cut_as_needed(node, placed), self.mesh, said)
        if line is not None and line.row is not None:
            fitting = tuple(rows for rows in fitting if self._describe(node, rows) == line.row)
        elif not node.inputs:
            fitting = fitting[:1]
        if not fitting and not self.exact:
            fitting = fitting_rows(self.graph, node, [(R,) * self.mesh.ndim] * len(placed), self.mesh)
        if not fitting:
            self._report_no_row(node, placed, None if line is None else line.row)
            self._leave_unknown(node)
            return
        self.rows[node.id] = rows = fitting[0]
        for j, value in enumerate(node.outputs):
            self.forward[value] = tuple(row.outs[j] for row in rows)

    def _cut_as_needed(self, node: Node, placed: Sequence[Placements]) -> list[Placements | None]:
        """As `placed`, but open for buffers that are whole and of which no line speaks: cutting them costs nothing."""
        whole = (R,) * self.mesh.ndim
        values = [self.graph.values[value] for value in node.inputs]
        return [
            None if value.kind == "buffer" and state == whole and value.address not in self.reshard_keys else state
            for value, state in zip(values, placed, strict=True)
        ]

    def _placed(self, value: int, node: Node) -> Placements | _Unknown:
        """The placements in which `node` reads a value."""
        natural = self.forward[value]
        if value in self.param_lines:
            return self._used(value, node)
        if natural is None:
            return _UNKNOWN
        entry = self._entry(value, node.address)
        if entry is None:
            return natural
        if entry.from_ != natural and self.exact:
            key = self.reshard_keys[self.graph.values[value].address]
            what = f"{key}: from {format_placements(entry.from_)}, but it is made as {format_placements(natural)}"
            self.report(what, "reshard", key, next_step="correct `from`, or what decides the op's inputs")
            return _UNKNOWN
        if not fits(self.graph.values[value].shape, entry.to, self.mesh):
            key = self.reshard_keys[self.graph.values[value].address]
            self.report(f"{key}: {format_placements(entry.to)} does not divide {list(self.graph.values[value].shape)}", "reshard", key)
            return _UNKNOWN
        return entry.to

    def _used(self, value: int, node: Node) -> Placements | _Unknown:
        key, line = self.param_lines[value]
        if not isinstance(line.use, Mapping):
            return line.use
        for pattern, place in line.use.items():
            if match(pattern, node.address):
                return place
        self.report(f"{key}: {node.address} uses it, but no entry of `use` says how", "params", key)
        return _UNKNOWN

    def _entry(self, value: int, reader: str) -> ReshardEntry | None:
        """The redistribution that the plan lists between a value and one of its readers."""
        key = self.reshard_keys.get(self.graph.values[value].address)
        if key is None:
            return None
        for entry in self.plan.reshard[key]:
            if not entry.for_ or any(match(pattern, reader) for pattern in entry.for_):
                return entry
        return None

    def _describe(self, node: Node, rows: tuple[Row, ...]) -> str:
        return make_strategy(rows, tuple(False for _ in rows), *specs(self.graph, node)).describe(self.mesh)

    def _leave_unknown(self, node: Node) -> None:
        for value in node.outputs:
            self.forward[value] = None

    def _report_no_row(self, node: Node, placed: list[Placements], wanted: str | None) -> None:
        inputs = ", ".join(map(format_placements, placed))
        possible = fitting_rows(self.graph, node, [None] * len(placed), self.mesh)
        some = sorted({self._describe(node, rows) for rows in possible})[:4]
        if wanted is not None:
            what = f"{node.address}: no row {wanted!r} for inputs {inputs}"
            self.report(what, "ops", self.op_keys[node.address], next_step=f"rows it has: {' | '.join(some)}")
            return
        key = next((self.reshard_keys[a] for v in node.inputs if (a := self.graph.values[v].address) in self.reshard_keys), None)
        params = [self.param_lines[v][0] for v in node.inputs if v in self.param_lines]
        keys = ("reshard", key) if key else ("params", params[0]) if params else ("reshard",)
        self.report(f"{node.address} ({node.source}): no row takes inputs {inputs}", *keys, next_step=f"rows it has: {' | '.join(some)}")

    def settle_gradients(self, node: Node) -> None:
        """Choose whole or partial gradients for a node's all-R axes, once all its readers are settled."""
        rows = self.rows[node.id]
        line = self.plan.ops.get(self.op_keys.get(node.address, ""))
        edges = [edge for output, value in enumerate(node.outputs) for edge in self._edges(output, value)]
        if line is not None and line.gradient is not None:
            partial: tuple[bool, ...] | None = tuple(placement == P for placement in line.gradient)
        else:
            partial = next(consistent_forms(self.graph, node, rows, self.mesh, edges), None)
        if partial is None:
            keys = {self.reshard_keys[a] for v in node.outputs if (a := self.graph.values[v].address) in self.reshard_keys}
            where = ("reshard", min(keys)) if keys else ("reshard",)
            self.report(
                f"{node.address}: the backward collectives listed for its readers cannot all be right",
                *where,
                next_step=self._expected(node, edges),
            )
            partial = tuple(False for _ in rows)
        self.strategies[node.id] = make_strategy(rows, partial, *specs(self.graph, node))

    def _expected(self, node: Node, edges: list[Edge]) -> str:
        """The backward collectives that whole gradients would take, to be compared with those listed."""
        makes = make_strategy(self.rows[node.id], tuple(False for _ in self.rows[node.id]), *specs(self.graph, node)).makes
        rights = [
            f"to {format_placements(edge.needed)}: {_format(backward_collectives(makes[edge.output], edge, self.mesh), self.mesh)}"
            for edge in edges
        ]
        return "with whole gradients they are " + "; ".join(dict.fromkeys(rights))

    def _edges(self, output: int, value: int) -> list[Edge]:
        """The states in which a value is needed, its readers being settled."""
        readers: dict[Placements, list[tuple[int, int]]] = {}
        for reader, operand in self.graph.consumers[value]:
            state = self.strategies[reader.id].needs[operand]
            if state is not None:
                readers.setdefault(state, []).append((reader.id, operand))
        for position, out in enumerate(self.graph.outputs):
            if out == value:
                readers.setdefault(self.outputs[position], []).append((OUTPUT_READER, position))
        for position, (fqn, overwriting) in enumerate(self.graph.mutations.items()):
            if overwriting == value:
                readers.setdefault(self.sources[self.graph.buffers[fqn]], []).append((BUFFER_READER, position))
        return [
            Edge(
                output,
                state,
                gradient_reaches(self.graph, value, Need(state, tuple(found))),
                self._listed(value, reader_name(self.graph, *found[0])),
            )
            for state, found in readers.items()
        ]

    def _listed(self, value: int, reader: str) -> Listed:
        entry = self._entry(value, reader)
        return () if entry is None else tuple((c.kind, tuple(map(self.mesh.names.index, c.axes))) for c in entry.backward)

    def check_collectives(self, assignment: Assignment) -> None:
        """Every line lists the collectives that its redistribution takes, and every redistribution has its line."""
        told: set[tuple[str, object]] = set()
        for value in self.graph.values:
            if value.kind == "parameter":
                continue
            produced = forward_of(assignment.produced[value.id])
            key = self.reshard_keys.get(value.address, value.address)
            for move in redistributions_of(assignment, value.id):
                right = (named(move.forward, assignment), named(move.backward, assignment))
                for reader in move.readers:
                    entry = self._entry(value.id, reader_name(self.graph, *reader))
                    listed = (entry.forward, entry.backward) if entry else ((), ())
                    if listed != right and (key, right) not in told:
                        told.add((key, right))
                        places = f"from {format_placements(produced)} to {format_placements(forward_of(move.state))}"
                        remedy = f"write forward: {_list(right[0])}, backward: {_list(right[1])}"
                        self.report(f"{key}: {places} takes other collectives than listed", "reshard", key, next_step=remedy)


class _Unknown:
    """Placements that a problem upstream left open."""


_UNKNOWN = _Unknown()


def _list(found: tuple[Collective, ...]) -> str:
    return "[" + ", ".join(map(str, found)) + "]"


def _format(found: Listed, mesh: Mesh) -> str:
    return _list(tuple(Collective(kind, tuple(mesh.names[axis] for axis in axes)) for kind, axes in found))


__all__ = ["decode"]
