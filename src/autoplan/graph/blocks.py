"""Repeated blocks: the copies of a layer that are the same computation, and the classes that folding makes of them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from autoplan.graph.ir import Graph, Node, Parameter, Ref
from autoplan.graph.once import once


@dataclass(frozen=True, slots=True)
class BlockRun:
    """Consecutive copies `prefix.i` that compute the same: `nodes[c][k]` and `parameters[c][k]` of all copies c agree."""

    prefix: str  # "layers": the copies are layers.0, layers.1, ...
    indices: tuple[int, ...]
    nodes: tuple[tuple[int, ...], ...]
    parameters: tuple[tuple[str, ...], ...]

    def __post_init__(self) -> None:
        assert len(self.indices) == len(self.nodes) == len(self.parameters) >= 2
        assert len({len(copy) for copy in self.nodes}) == len({len(copy) for copy in self.parameters}) == 1

    @property
    def count(self) -> int:
        """How many copies there are."""
        return len(self.indices)

    @property
    def pattern(self) -> str:
        """How a reader may name the copies: `layers.{1-5}`."""
        return f"{self.prefix}.{{{self.indices[0]}-{self.indices[-1]}}}"


@once
def find_blocks(graph: Graph) -> tuple[BlockRun, ...]:
    """All runs of at least two equal, consecutive copies, in execution order.

    A copy is all that lies under one integer segment of the FQN, the outermost one; only inside a copy that no run
    contains (`stages.0.blocks.*`, a Sequential in a Sequential) deeper segments count. Copies are equal if their ops,
    arguments, wiring and parameters are; which values they read from outside may differ, but not what these are.
    """
    runs = _runs_under(graph, "", graph.nodes, graph.parameters)
    return tuple(sorted(runs, key=lambda run: run.nodes[0][0]))


def foldable_prefixes(blocks: Iterable[BlockRun]) -> frozenset[str]:
    """The prefixes that have repeated copies."""
    return frozenset(run.prefix for run in blocks)


@dataclass(frozen=True, slots=True)
class NodeClasses:
    """Nodes and values by class: aligned ones of a run's copies share a class, all others are alone in theirs.

    `node_members[c]` lists the nodes of class c in copy order, so its first is the class's representative.
    """

    node_class: tuple[int, ...]  # by node number
    value_class: tuple[int, ...]  # by value number
    parameter_class: Mapping[str, int]  # the value class of a parameter, by FQN
    node_members: tuple[tuple[int, ...], ...]
    value_members: tuple[tuple[int, ...], ...]

    @property
    def node_representatives(self) -> tuple[int, ...]:
        """The first node of every class."""
        return tuple(members[0] for members in self.node_members)

    @property
    def value_representatives(self) -> tuple[int, ...]:
        """The first value of every class."""
        return tuple(members[0] for members in self.value_members)


def classes(graph: Graph, blocks: Iterable[BlockRun]) -> NodeClasses:
    """The classes that folding `blocks` makes; without blocks everything is its own class."""
    same_nodes: list[tuple[int, ...]] = []
    same_values: list[tuple[int, ...]] = []
    value_of = {parameter.fqn: parameter.value for parameter in graph.parameters}
    for run in blocks:
        same_nodes += zip(*run.nodes, strict=True)
        same_values += zip(*([value_of[fqn] for fqn in copy] for copy in run.parameters), strict=True)
        same_values += zip(*(_buffers_of(graph, f"{run.prefix}.{index}.") for index in run.indices), strict=True)
    for nodes in same_nodes:
        same_values += zip(*(graph.nodes[node].outputs for node in nodes), strict=True)
    node_class, node_members = _partition(len(graph.nodes), same_nodes)
    value_class, value_members = _partition(len(graph.values), same_values)
    return NodeClasses(
        node_class,
        value_class,
        {fqn: value_class[value] for fqn, value in value_of.items()},
        node_members,
        value_members,
    )


def state_under(graph: Graph, run: BlockRun, k: int) -> list[int]:
    """The values of the parameters and buffers of copy k of a run, aligned with those of its other copies."""
    value_of = {parameter.fqn: parameter.value for parameter in graph.parameters}
    return [*(value_of[fqn] for fqn in run.parameters[k]), *_buffers_of(graph, f"{run.prefix}.{run.indices[k]}.")]


def _partition(size: int, groups: Iterable[tuple[int, ...]]) -> tuple[tuple[int, ...], tuple[tuple[int, ...], ...]]:
    """Class of every number below `size`, and the members of every class; classes count up with their first member."""
    together = {number: group for group in groups for number in group}
    class_of: dict[int, int] = {}
    members: list[tuple[int, ...]] = []
    for number in range(size):
        if number not in class_of:
            group = together.get(number, (number,))
            class_of.update(dict.fromkeys(group, len(members)))
            members.append(group)
    return tuple(class_of[number] for number in range(size)), tuple(members)


def _runs_under(graph: Graph, path: str, nodes: Sequence[Node], parameters: Sequence[Parameter]) -> list[BlockRun]:
    copies = _split(path, nodes, parameters)
    by_prefix: dict[str, dict[int, _Copy]] = defaultdict(dict)
    for copy in copies:
        by_prefix[copy.prefix][copy.index] = copy
    runs: list[BlockRun] = []
    for prefix, by_index in by_prefix.items():
        signatures = {index: _signature(graph, copy) for index, copy in by_index.items() if copy.nodes}
        for indices in _consecutive_equal(signatures):
            if len(indices) == 1:
                alone = by_index[indices[0]]
                runs += _runs_under(graph, alone.path, alone.nodes, alone.parameters)
            else:
                chosen = [by_index[index] for index in indices]
                runs.append(
                    BlockRun(
                        prefix,
                        indices,
                        tuple(tuple(node.id for node in copy.nodes) for copy in chosen),
                        tuple(tuple(parameter.fqn for parameter in copy.parameters) for copy in chosen),
                    )
                )
    return runs


@dataclass(frozen=True, slots=True)
class _Copy:
    prefix: str
    index: int
    nodes: tuple[Node, ...]
    parameters: tuple[Parameter, ...]

    @property
    def path(self) -> str:
        return f"{self.prefix}.{self.index}." if self.prefix else f"{self.index}."


def _split(path: str, nodes: Sequence[Node], parameters: Sequence[Parameter]) -> list[_Copy]:
    """What lies under each first integer segment behind `path`."""
    nodes_of: dict[tuple[str, int], list[Node]] = defaultdict(list)
    parameters_of: dict[tuple[str, int], list[Parameter]] = defaultdict(list)
    for node in nodes:
        if key := _container(path, node.module):
            nodes_of[key].append(node)
    for parameter in parameters:
        if key := _container(path, parameter.fqn):
            parameters_of[key].append(parameter)
    return [_Copy(*key, tuple(found), tuple(parameters_of[key])) for key, found in nodes_of.items()]


def _container(path: str, fqn: str) -> tuple[str, int] | None:
    """(prefix, index) of the first integer segment of `fqn` behind `path`."""
    segments = fqn[len(path) :].split(".")
    for position, segment in enumerate(segments):
        if segment.isdecimal():
            return (path + ".".join(segments[:position])).rstrip("."), int(segment)
    return None


def _consecutive_equal(signatures: Mapping[int, Hashable]) -> list[tuple[int, ...]]:
    runs: list[list[int]] = []
    for index in sorted(signatures):
        if runs and runs[-1][-1] == index - 1 and signatures[index - 1] == signatures[index]:
            runs[-1].append(index)
        else:
            runs.append([index])
    return [tuple(run) for run in runs]


def _signature(graph: Graph, copy: _Copy) -> Hashable:
    """What makes two copies equal; everything in it is relative to the copy."""
    seen = _Names(graph, copy)
    nodes = tuple(
        (
            node.op,
            _relative(copy, node.address),
            seen.text(node.args),
            seen.text(node.kwargs),
            tuple(_kind(graph, output) for output in node.outputs),
        )
        for node in copy.nodes
    )
    parameters = tuple(
        (_relative(copy, p.fqn), _kind(graph, p.value), p.trainable, tuple(_relative(copy, alias) for alias in p.aliases))
        for p in copy.parameters
    )
    return nodes, parameters, tuple(_kind(graph, value) for value in _buffers_of(graph, copy.path))


class _Names:
    """Names for the values a copy reads: inside values by position, outside ones by kind and order of first use."""

    def __init__(self, graph: Graph, copy: _Copy) -> None:
        self._graph = graph
        self._names: dict[int, Hashable] = {}
        for position, node in enumerate(copy.nodes):
            self._names.update({output: ("made", position, i) for i, output in enumerate(node.outputs)})
        for value in graph.state:
            if value.address.startswith(copy.path):
                self._names[value.id] = ("own", _relative(copy, value.address))
        self._outside = 0

    def text(self, argument: Any) -> Hashable:
        if isinstance(argument, Ref):
            if argument.value not in self._names:
                value = self._graph.values[argument.value]
                self._names[argument.value] = (
                    "outside",
                    self._outside,
                    "op" if value.kind == "input" else value.kind,
                    _kind(self._graph, value.id),
                )
                self._outside += 1
            return ("ref", self._names[argument.value])
        if isinstance(argument, tuple | list):
            return tuple(self.text(item) for item in argument)
        if isinstance(argument, Mapping):
            return tuple((key, self.text(item)) for key, item in sorted(argument.items()))
        return type(argument).__name__, argument


def _kind(graph: Graph, value: int) -> Hashable:
    found = graph.values[value]
    return found.shape, found.dtype, found.needs_grad


def _relative(copy: _Copy, name: str) -> str:
    """`layers.3.attn/add` as `attn/add`; a name outside the copy stays whole."""
    return name[len(copy.path) - 1 :].lstrip(".") if (name + ".").startswith((copy.path, copy.path[:-1] + "/")) else name


def _buffers_of(graph: Graph, path: str) -> list[int]:
    return [value.id for value in graph.state if value.kind == "buffer" and value.address.startswith(path)]
