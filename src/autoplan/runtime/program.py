"""An assignment as a program over local tensors: what one rank runs, the same on every rank.

It is a `torch.fx.GraphModule`: the plain op on local tensors for every node, a part for every redistribution, gather group
and local implementation. Collectives come with the `Run` that is its first argument, so that one program serves processes
and simulated ranks alike.
"""

from __future__ import annotations

import keyword
import operator
import re
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from autoplan.assignment import Assignment
from autoplan.assignment.gathers import GatherGroup
from autoplan.assignment.redistributions import Redistribution, redistributions_of
from autoplan.collectives.redistribute import redistribute_by
from autoplan.graph.interpret import on_device
from autoplan.graph.ir import Graph, Node, map_refs
from autoplan.graph.ops import resolve
from autoplan.placement import Mesh, Placements, forward_of
from autoplan.redistribution import transition
from autoplan.rules import LocalOp, call_of, localize, rule_of
from autoplan.runtime.parameters import Gather
from autoplan.runtime.regather import Regathering
from autoplan.runtime.run import Run


@dataclass(frozen=True)
class Program:
    """What each rank runs: `module(run, *tensors)` with the local tensors of `reads`, in that order.

    It returns the local tensors of the graph's outputs, then the new values of the buffers in `mutated`.
    """

    assignment: Assignment
    groups: tuple[GatherGroup, ...]
    module: fx.GraphModule
    reads: tuple[int, ...]
    mutated: tuple[str, ...]

    @property
    def graph(self) -> Graph:
        """The graph it runs."""
        return self.assignment.graph

    def __call__(self, run: Run, tensors: Mapping[int, Tensor]) -> tuple[Tensor, ...]:
        """The outputs for the local tensors of inputs, stored parameters, buffers and constants, by value number."""
        arguments = [tensors[value] for value in self.reads]
        if not torch.is_grad_enabled() or not any(group.regather for group in self.groups):
            return self.module(run, *arguments)
        run.regathering = Regathering()
        with run.regathering.hooks():
            return self.module(run, *arguments)


def build_program(assignment: Assignment, groups: Sequence[GatherGroup], device: torch.device | str) -> Program:
    """The program of `assignment` for a rank with `device`; `groups` as `assignment.gathers.gather_groups` found them."""
    return _Builder(assignment, tuple(groups), torch.device(device)).build()


class Redistribute(nn.Module):
    """A value in another state; `shared` is the result of another state with the same placements, if there is one."""

    def __init__(self, produced: Placements, needed: Placements, mesh: Mesh) -> None:
        super().__init__()
        self.states = f"{_states(produced)} -> {_states(needed)}"
        self.steps = transition(produced, needed, mesh, needs_grad=True)

    def forward(self, run: Run, tensor: Tensor, shared: Tensor | None = None) -> Tensor:
        return redistribute_by(tensor, *self.steps, run.group, shared)

    def extra_repr(self) -> str:
        return self.states


class LocalImplementation(nn.Module):
    """An op whose local form talks to other ranks, or draws random numbers that all ranks must know of."""

    def __init__(self, op: LocalOp, node: int) -> None:
        super().__init__()
        self.op = op
        self.node = node

    def forward(self, run: Run, *operands: Tensor) -> Any:
        return self.op.run(operands, run.group, lambda: run.node_seed(self.node))


_DEFAULT_GENERATOR = threading.Lock()  # simulated ranks share it


class SameRandom(nn.Module):
    """A random op without a rule, replicated: every rank must draw the same numbers."""

    def __init__(self, op: LocalOp, node: int) -> None:
        super().__init__()
        self.op = op
        self.node = node

    def forward(self, run: Run, *operands: Tensor) -> Any:
        devices = list({tensor.device for tensor in operands if tensor.is_cuda})
        with _DEFAULT_GENERATOR, torch.random.fork_rng(devices):
            torch.manual_seed(run.node_seed(self.node))
            return self.op.run(operands, run.group)


class Written(nn.Module):
    """A plain op that writes to arguments: they are copied, and the copies are its further outputs."""

    def __init__(self, op: LocalOp) -> None:
        super().__init__()
        self.op = op

    def forward(self, run: Run, *operands: Tensor) -> Any:
        return self.op.run(operands, run.group)


class _Builder:
    """The fx graph while it grows: `made` has the fx node of every (value, state) that is there."""

    def __init__(self, assignment: Assignment, groups: tuple[GatherGroup, ...], device: torch.device) -> None:
        self.assignment = assignment
        self.groups = groups
        self.device = device
        self.graph = assignment.graph
        self.fx = fx.Graph()
        self.root = nn.Module()
        self.made: dict[tuple[int, Placements], fx.Node] = {}
        self.planned: dict[tuple[int, Placements], Redistribution] = {
            (r.value, r.state): r
            for value in self.graph.values
            if value.kind != "parameter"
            for r in redistributions_of(assignment, value.id)
        }
        self.group_of = {(member.value, member.state): group for group in groups for member in group.members}
        self.names: set[str] = set()
        self.dtype_of = {p.value: getattr(torch, self.graph.values[p.value].dtype) for p in self.graph.parameters}

    def build(self) -> Program:
        self.run = self.fx.placeholder("run")
        reads = tuple(value.id for value in self.graph.values if value.kind != "op" and self._is_read(value.id))
        for value in reads:
            self.made[value, self.assignment.produced[value]] = self.fx.placeholder(self._name(self.graph.values[value].address))
        for node in self.graph.nodes:
            self._node(node)
        outputs = [self._in_state(value, state) for value, state in zip(self.graph.outputs, self.assignment.outputs, strict=True)]
        mutated = [self._in_state(value, self._place_of(fqn)) for fqn, value in self.graph.mutations.items()]
        self.fx.output((*outputs, *mutated))
        module = fx.GraphModule(self.root, self.fx, "LocalProgram")
        return Program(self.assignment, self.groups, module, reads, tuple(self.graph.mutations))

    def _is_read(self, value: int) -> bool:
        return bool(self.graph.consumers[value]) or value in self.graph.outputs or value in self.graph.mutations.values()

    def _node(self, node: Node) -> None:
        strategy = self.assignment.strategies[node.id]
        op = localize(call_of(self.graph, node), strategy, self.assignment.mesh, self.device)
        operands = [
            self._any_state(value) if state is None else self._in_state(value, state)
            for value, state in zip(node.inputs, strategy.needs, strict=True)
        ]
        part = self._part(op, node)
        if part is None:
            arguments = map_refs((op.args, dict(op.kwargs)), lambda ref: operands[ref.value])
            args, kwargs = on_device(arguments, self.device)
            result = self.fx.create_node("call_function", op.target, args, kwargs, self._name(node.address))
        else:
            result = self._call(self._name(node.address), part, *operands)
        if len(node.outputs) == 1 and not _returns_several(node):
            self.made[node.outputs[0], strategy.makes[0]] = result
            return
        for index, (value, state) in enumerate(zip(node.outputs, strategy.makes, strict=True)):
            if self._is_read(value):
                self.made[value, state] = self._item(result, index)

    def _part(self, op: LocalOp, node: Node) -> nn.Module | None:
        """The module that runs a node, None where the plain op does."""
        if not op.is_plain:
            return LocalImplementation(op, node.id)
        target = resolve(node.op)
        if op.written:
            return Written(op)
        if torch.Tag.nondeterministic_seeded in target.tags and rule_of(node.op) is None and self.assignment.mesh.size > 1:
            return SameRandom(op, node.id)
        return None

    def _in_state(self, value: int, state: Placements) -> fx.Node:
        """The fx node of a value in a state, made right here if this is its first reader."""
        if (value, state) in self.made:
            return self.made[value, state]
        if self.graph.values[value].kind == "parameter":
            return self._parameter(value, state)
        produced = self.assignment.produced[value]
        source = self.made[value, produced]
        planned = self.planned.get((value, state))
        if planned is None:
            self.made[value, state] = source
            return source
        shared = () if planned.shares is None else (self._in_state(value, planned.shares),)
        name = f"{self.graph.values[value].address}_as_{_states(state)}"
        self.made[value, state] = made = self._call(self._name(name), Redistribute(produced, state, self.assignment.mesh), source, *shared)
        return made

    def _parameter(self, value: int, state: Placements) -> fx.Node:
        group = self.group_of.get((value, state))
        if group is None:
            assert forward_of(state) == forward_of(self.assignment.produced[value]), "a gather group is missing"
            cast = self.fx.call_function(torch.ops.aten.to.dtype, (self.made[value, self.assignment.produced[value]], self.dtype_of[value]))
            self.made[value, state] = cast
            return cast
        part = Gather(group)
        stored = [self.made[parameter, self.assignment.produced[parameter]] for parameter in part.values]
        gathered = self._call(self._name(f"gather_{group.name}"), part, *stored)
        for index, member in enumerate(group.members):
            self.made[member.value, member.state] = self._item(gathered, index)
        return self.made[value, state]

    def _place_of(self, buffer: str) -> Placements:
        return self.assignment.sources[self.graph.buffers[buffer]]

    def _any_state(self, value: int) -> fx.Node:
        """A value whose shape alone is read: whichever local tensor is there."""
        return next(node for (other, _), node in self.made.items() if other == value)

    def _call(self, name: str, part: nn.Module, *tensors: fx.Node) -> fx.Node:
        self.root.add_module(name, part)
        return self.fx.create_node("call_module", name, (self.run, *tensors), {}, name)

    def _item(self, node: fx.Node, index: int) -> fx.Node:
        return self.fx.call_function(operator.getitem, (node, index))

    def _name(self, text: str) -> str:
        """`text` as an identifier that no other part of the program has."""
        name = re.sub(r"\W+", "_", text).strip("_") or "value"
        name = f"_{name}" if name[0].isdigit() or keyword.iskeyword(name) else name
        unique, count = name, 0
        while hasattr(self.root, unique) or unique in self.names:
            count += 1
            unique = f"{name}_{count}"
        self.names.add(unique)
        return unique


def _returns_several(node: Node) -> bool:
    """Whether the op gives a tuple or a list, be it of one tensor."""
    returns = resolve(node.op)._schema.returns
    return len(returns) != 1 or "[]" in str(returns[0].type) or str(returns[0].type).startswith("List")


def _states(placements: Placements) -> str:
    return "_".join(str(p).replace("(", "").replace(")", "").replace(",", "g") for p in placements)
