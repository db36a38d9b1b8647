"""An assignment as a program over local tensors: what one rank runs, the same on every rank.

It is a `torch.fx.GraphModule` that calls the pieces (see `pieces`) in order, with the gather groups and redistributions that are
no piece's own between them. In a piece the plain op on local tensors stands for every node, a part for every redistribution
and local implementation. Collectives come with the `Run` that is its first argument, so that one program serves processes
and simulated ranks alike.
"""

from __future__ import annotations

import keyword
import operator
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from autoplan.assignment import Assignment
from autoplan.assignment.gathers import GatherGroup
from autoplan.assignment.recompute import nodes_again
from autoplan.assignment.redistributions import Redistribution, redistributions_of
from autoplan.graph.interpret import on_device
from autoplan.graph.ir import Graph, Node, map_refs
from autoplan.graph.ops import resolve
from autoplan.graph.segments import Segment, block_segments
from autoplan.placement import Placements, forward_of, local_shape
from autoplan.rules import LocalOp, call_of, localize
from autoplan.runtime.program.parameters import Ahead, Gather, Late
from autoplan.runtime.program.parts import LocalImplementation, Redistribute, Written, states
from autoplan.runtime.program.pieces import Function, Piece, PieceGraph, Span, overwritten_buffers, spans
from autoplan.runtime.program.regather import Regathering
from autoplan.runtime.program.run import Run


@dataclass(frozen=True)
class Program:
    """What each rank runs: `module(run, *tensors)` with the local tensors of `reads`, in that order.

    It returns the local tensors of the graph's outputs, then the new values of the buffers in `mutated`. `functions` are those of
    the pieces, each once.
    """

    assignment: Assignment
    groups: tuple[GatherGroup, ...]
    module: fx.GraphModule
    functions: tuple[Function, ...]
    reads: tuple[int, ...]
    mutated: tuple[str, ...]

    @property
    def graph(self) -> Graph:
        """The graph it runs."""
        return self.assignment.graph

    def compile(self, **options: Any) -> None:
        """Run every function through torch.compile; what is between the pieces stays eager."""
        for function in self.functions:
            function.compile(**options)

    def __call__(self, run: Run, tensors: Mapping[int, Tensor]) -> tuple[Tensor, ...]:
        """The outputs for the local tensors of inputs, stored parameters, buffers and constants, by value number."""
        arguments = [tensors[value] for value in self.reads]
        if not torch.is_grad_enabled() or not any(group.regather for group in self.groups):
            return self.module(run, *arguments)
        run.regathering = Regathering()
        with run.regathering.hooks():
            return self.module(run, *arguments)


def build_program(
    assignment: Assignment,
    groups: Sequence[GatherGroup],
    device: torch.device | str,
    *,
    segments: Sequence[Segment] | None = None,
    recomputed: Collection[Segment] = (),
) -> Program:
    """The program of `assignment` for a rank with `device`; `groups` as `assignment.gathers.gather_groups` found them.

    `segments` are the copies of blocks at which it is cut (default: all that the graph has), `recomputed` those of them
    that run again in backward.
    """
    if segments is None:
        segments = block_segments(assignment.graph)
    return _ProgramBuilder(assignment, tuple(groups), torch.device(device)).build(spans(assignment.graph, segments), recomputed)


def cast(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """The tensor in this dtype: mostly the one in which it is stored, and then it is itself."""
    return tensor if tensor.dtype is dtype else tensor.to(dtype)


class _ProgramBuilder:
    """The program while it grows: `made` has the fx node of every (value, state) that is there outside of pieces."""

    def __init__(self, assignment: Assignment, groups: tuple[GatherGroup, ...], device: torch.device) -> None:
        self.assignment = assignment
        self.groups = groups
        self.device = device
        self.graph = assignment.graph
        self.fx = fx.Graph()
        self.root = nn.Module()
        self.made: dict[tuple[int, Placements], fx.Node] = {}
        self.pieces: dict[tuple[int, Placements], _PieceBuilder] = {}  # which one made it
        self.planned: dict[tuple[int, Placements], Redistribution] = {
            (r.value, r.state): r
            for value in self.graph.values
            if value.kind != "parameter"
            for r in redistributions_of(assignment, value.id)
        }
        self.group_of = {(member.value, member.state): group for group in groups for member in group.members}
        self.dtype_of = {p.value: getattr(torch, self.graph.values[p.value].dtype) for p in self.graph.parameters}
        self.names = _Names()
        self.late: dict[int, fx.Node] = {}  # stored parameters whose gradients are waited for at the end of backward
        self.gathers = {group.name: Gather(group) for group in groups}

    def build(self, spans: Sequence[Span], recomputed: Collection[Segment]) -> Program:
        self.run = self.fx.placeholder("run")
        reads = tuple(value.id for value in self.graph.values if value.kind != "op" and self.is_read(value.id))
        for value in reads:
            self.made[value, self.assignment.produced[value]] = self.fx.placeholder(self.names.new(self.graph.values[value].address))
        self._wait_late()
        ahead = self._ahead(spans)
        pieces = []
        for span in spans:
            again = nodes_again(self.graph, span.segment) if span.segment and span.segment in recomputed else range(0)
            piece = _PieceBuilder(self, span, again)
            inputs = piece.build()
            for gather in ahead.get(span.name, ()):
                self._call(self.names.new(f"start_{gather.plan.name}"), Ahead(gather), *self._stored(gather))
            piece.call = self.call_piece(piece.name, inputs)
            self.pieces.update(dict.fromkeys(piece.made, piece))
            pieces.append(piece)
        outputs = [self.in_state(value, state) for value, state in zip(self.graph.outputs, self.assignment.outputs, strict=True)]
        mutated = [self.in_state(value, self._place_of(fqn)) for fqn, value in self.graph.mutations.items()]
        self.fx.output((*outputs, *mutated))
        functions: dict[object, Function] = {}
        for piece in pieces:
            self.root.add_module(piece.name, piece.finish(functions))
        module = fx.GraphModule(self.root, self.fx, "LocalProgram")
        return Program(self.assignment, self.groups, module, tuple(functions.values()), reads, tuple(self.graph.mutations))

    def is_read(self, value: int) -> bool:
        return bool(self.graph.consumers[value]) or value in self.graph.outputs or value in self.graph.mutations.values()

    def in_state(self, value: int, state: Placements) -> fx.Node:
        """The fx node of a value in a state outside of pieces, made right here if this is its first reader."""
        if (value, state) not in self.made:
            self.made[value, state] = self._make(value, state)
        return self.made[value, state]

    def any_state(self, value: int) -> tuple[int, Placements]:
        """A state in which a value is there."""
        return next(pair for pair in (*self.made, *self.pieces) if pair[0] == value)

    def call_piece(self, name: str, inputs: Sequence[fx.Node]) -> fx.Node:
        return self.fx.create_node("call_module", name, (self.run, *inputs), {}, name)

    def copied(self, node: fx.Node) -> fx.Node:
        """A copy of a tensor that will be overwritten."""
        return self.fx.call_function(torch.ops.aten.clone.default, (node,))

    def _make(self, value: int, state: Placements) -> fx.Node:
        piece = self.pieces.get((value, state))
        if piece is not None:
            with self.fx.inserting_after(piece.call):
                return self._item(piece.call, piece.output(value, state))
        if self.graph.values[value].kind == "parameter":
            return self._parameter(value, state)
        produced = self.assignment.produced[value]
        source = self.in_state(value, produced)
        planned = self.planned.get((value, state))
        if planned is None:
            return source
        shared = () if planned.shares is None else (self.in_state(value, planned.shares),)
        name = self.names.new(f"{self.graph.values[value].address}_as_{states(state)}")
        return self._call(name, Redistribute(produced, state, self.assignment.mesh), source, *shared)

    def _parameter(self, value: int, state: Placements) -> fx.Node:
        group = self.group_of.get((value, state))
        if group is None:
            return self.fx.call_function(cast, (self.in_state(*self.stored(value, state)), self.dtype_of[value]))
        gather = self.gathers[group.name]
        gathered = self._call(self.names.new(f"gather_{group.name}"), gather, *self._stored(gather))
        for index, member in enumerate(group.members):
            self.made[member.value, member.state] = self._item(gathered, index)
        return self.made[value, state]

    def _stored(self, gather: Gather) -> list[fx.Node]:
        return [self.late.get(value) or self.made[value, self.assignment.produced[value]] for value in gather.values]

    def _wait_late(self) -> None:
        """Parameters whose gradients are reduced while backward goes on pass a part that waits for them, before all else."""
        for gather in self.gathers.values():
            if gather.plan.prefetch and gather.plan.backward:
                passed = self._call(self.names.new(f"late_{gather.plan.name}"), Late(gather), *self._stored(gather))
                self.late.update({value: self._item(passed, index) for index, value in enumerate(gather.values)})

    def _ahead(self, spans: Sequence[Span]) -> dict[str, list[Gather]]:
        """The gathers that are issued before each piece: those of the pieces behind it, as far ahead as the plan says."""
        ahead: dict[str, list[Gather]] = {}
        for gather in self.gathers.values():
            needs = [need for value in gather.values for need in self.assignment.needs[value]]
            first = min((node for need in needs for node, _ in need.readers if node >= 0), default=-1)
            position = next((index for index, span in enumerate(spans) if first in span.nodes), 0)
            if gather.plan.forward and gather.plan.prefetch and position:
                ahead.setdefault(spans[max(0, position - gather.plan.prefetch)].name, []).append(gather)
        return ahead

    def stored(self, value: int, state: Placements) -> tuple[int, Placements]:
        """A parameter that is used as it is stored."""
        produced = self.assignment.produced[value]
        assert forward_of(state) == forward_of(produced), "a gather group is missing"
        return value, produced

    def _place_of(self, buffer: str) -> Placements:
        return self.assignment.sources[self.graph.buffers[buffer]]

    def _call(self, name: str, part: nn.Module, *tensors: fx.Node) -> fx.Node:
        self.root.add_module(name, part)
        return self.fx.create_node("call_module", name, (self.run, *tensors), {}, name)

    def _item(self, node: fx.Node, index: int) -> fx.Node:
        return self.fx.call_function(operator.getitem, (node, index))


class _PieceBuilder:
    """One piece while it grows: `made` has the fx node of every (value, state) that came to be in it."""

    def __init__(self, program: _ProgramBuilder, span: Span, again: range) -> None:
        self.program = program
        self.span = span
        self.again = again
        self.assignment = program.assignment
        self.graph = program.graph
        self.name = program.names.new(span.name)
        self.piece = PieceGraph()
        self.made: dict[tuple[int, Placements], fx.Node] = {}
        self.arrived: dict[tuple[int, Placements], fx.Node] = {}
        self.names = _Names()
        self.values = {value for node in span.nodes for value in self.graph.nodes[node].outputs}
        self.overwritten = overwritten_buffers(self.graph) if again else ()
        self.until: int | None = None

    call: fx.Node

    def build(self) -> tuple[fx.Node, ...]:
        """Builds it; gives what it is called with."""
        for node in self.span.nodes:
            self._node(self.graph.nodes[node])
            if node + 1 == self.again.stop:
                self.until = self.piece.mark()
        return tuple(self.piece.inputs)

    def output(self, value: int, state: Placements) -> int:
        """The position of what it made among its outputs."""
        return self.piece.output(self.made[value, state])

    def finish(self, functions: dict[object, Function]) -> Piece:
        """The finished piece; `functions` are those of the others."""
        return Piece(self.piece.finish("".join(map(str.capitalize, self.name.split("_"))), self.until, functions), self.span.nodes.start)

    def _node(self, node: Node) -> None:
        strategy = self.assignment.strategies[node.id]
        op = localize(call_of(self.graph, node), strategy, self.assignment.mesh, self.program.device)
        operands = [
            self._any_state(value) if state is None else self._in_state(value, state)
            for value, state in zip(node.inputs, strategy.needs, strict=True)
        ]
        part = self._part(op, node)
        if part is None:
            arguments = map_refs((op.args, dict(op.kwargs)), lambda ref: operands[ref.value])
            args, kwargs = on_device(arguments, self.program.device)
            result = self.piece.op(op.target, args, kwargs, self._name(node.address))
        else:
            result = self.piece.part(self._name(node.address), part, operands)
        if len(node.outputs) == 1 and not _returns_several(node):
            self.made[node.outputs[0], strategy.makes[0]] = result
            return
        for index, (value, state) in enumerate(zip(node.outputs, strategy.makes, strict=True)):
            if self.program.is_read(value):
                self.made[value, state] = self.piece.op(operator.getitem, (result, index), {})

    def _part(self, op: LocalOp, node: Node) -> nn.Module | None:
        """The module that runs a node, None where the plain op does."""
        if not op.is_plain:
            return LocalImplementation(op, node.id - self.span.nodes.start)
        return Written(op) if op.written else None

    def _in_state(self, value: int, state: Placements) -> fx.Node:
        """The fx node of a value in a state, made right here if this is its first reader and it is the piece's to make."""
        if (value, state) in self.made:
            return self.made[value, state]
        if self.graph.values[value].kind == "parameter":
            return self._parameter(value, state)
        produced = self.assignment.produced[value]
        if (value, state) in self.program.made or state == produced or not self._is_own(value):
            return self._input(value, state)
        source = self._in_state(value, produced)
        planned = self.program.planned.get((value, state))
        if planned is None:
            return source
        shared = () if planned.shares is None else (self._in_state(value, planned.shares),)
        part = Redistribute(produced, state, self.assignment.mesh)
        name = self._name(f"{self.graph.values[value].address}_as_{states(state)}")
        self.made[value, state] = made = self.piece.part(name, part, (source, *shared))
        return made

    def _is_own(self, value: int) -> bool:
        """Whether the piece redistributes this value: one that it makes or that nobody else reads, and between blocks any."""
        return self.span.segment is None or value in self.values or value in self.span.segment.own_inputs

    def _parameter(self, value: int, state: Placements) -> fx.Node:
        if (value, state) in self.program.group_of:
            return self._input(value, state)
        stored = self._input(*self.program.stored(value, state))
        self.made[value, state] = made = self.piece.op(cast, (stored, self.program.dtype_of[value]), {})
        return made

    def _input(self, value: int, state: Placements) -> fx.Node:
        """The argument by which a value arrives."""
        if (value, state) not in self.arrived:
            found = self.graph.values[value]
            source = self.program.in_state(value, state)
            if value in self.overwritten:
                source = self.program.copied(source)
            key = (found.kind, local_shape(found.shape, forward_of(state), self.assignment.mesh), found.dtype, found.needs_grad)
            self.arrived[value, state] = self.piece.input(source, self._name(found.address), key)
        return self.arrived[value, state]

    def _any_state(self, value: int) -> fx.Node:
        """A value whose shape alone is read: whichever local tensor is there."""
        here = next((node for (other, _), node in self.made.items() if other == value), None)
        return here or self._input(*self.program.any_state(value))

    def _name(self, text: str) -> str:
        return self.names.new(text)


class _Names:
    """Identifiers that no other part of a program has."""

    def __init__(self) -> None:
        self._taken: set[str] = set(dir(nn.Module())) | {"run", "local"}

    def new(self, text: str) -> str:
        """`text` as an identifier that was not given before."""
        name = re.sub(r"\W+", "_", text).strip("_") or "value"
        name = f"_{name}" if name[0].isdigit() or keyword.iskeyword(name) else name
        unique, count = name, 0
        while unique in self._taken:
            count += 1
            unique = f"{name}_{count}"
        self._taken.add(unique)
        return unique


def _returns_several(node: Node) -> bool:
    """Whether the op gives a tuple or a list, be it of one tensor."""
    returns = resolve(node.op)._schema.returns
    return len(returns) != 1 or "[]" in str(returns[0].type) or str(returns[0].type).startswith("List")
