"""The graph every stage reads: values, nodes and where they come from.

Values and nodes are numbered in execution order and know each other by number, so a graph is plain immutable data. An
op's *address* is `module FQN/op name[#ordinal]`: it survives a torch upgrade, and plans are written in addresses.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from math import prod
from typing import Any, Literal

from autoplan.graph.once import Remembering

ValueKind = Literal["input", "parameter", "buffer", "constant", "op"]

ITEM_BYTES: Mapping[str, int] = {
    "float64": 8, "float32": 4, "float16": 2, "bfloat16": 2, "float8_e4m3fn": 1, "float8_e5m2": 1,
    "int64": 8, "int32": 4, "int16": 2, "int8": 1, "uint64": 8, "uint32": 4, "uint16": 2, "uint8": 1, "bool": 1,
    "complex32": 4, "complex64": 8, "complex128": 16,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Ref:
    """A tensor argument of a node: the number of the value it reads."""

    value: int


@dataclass(frozen=True, slots=True)
class Value:
    """A tensor: what makes it, its global shape, and whether a gradient flows back to it."""

    id: int
    kind: ValueKind
    address: str  # inputs/NAME, a parameter's or buffer's FQN, constants/NAME, or the op's address (with [i] if it has several outputs)
    shape: tuple[int, ...]
    dtype: str  # "bfloat16", as torch names it
    needs_grad: bool

    @property
    def bytes(self) -> int:
        """Size of the global tensor in bytes."""
        return prod(self.shape) * ITEM_BYTES[self.dtype]

    @property
    def is_float(self) -> bool:
        """Whether the dtype can carry a gradient."""
        return "float" in self.dtype or "complex" in self.dtype


@dataclass(frozen=True, slots=True)
class Node:
    """One op call. `args` and `kwargs` are the call's own, with `Ref` in place of tensors (nested in tuples and dicts).

    `inputs` are the numbers of the values it reads, in the order of its arguments; one read twice appears twice.
    """

    id: int
    op: str  # "aten.linear.default"
    address: str  # "layers.0.attn.wq/linear"
    module: str  # FQN of the module that called it, "" for the root
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    outputs: tuple[int, ...]  # value numbers
    source: str  # "file.py:12", or the module path where the trace has no line
    inputs: tuple[int, ...] = field(init=False, repr=False, compare=False)  # kept, since every stage asks for it many times

    def __post_init__(self) -> None:
        object.__setattr__(self, "inputs", tuple(ref.value for ref in refs((self.args, tuple(self.kwargs.values())))))

    @property
    def name(self) -> str:
        """The op without its overload: `aten.linear`."""
        return self.op.rsplit(".", 1)[0]


def refs(structure: Any) -> Iterator[Ref]:
    """Every `Ref` nested in an argument structure, in order."""
    if isinstance(structure, Ref):
        yield structure
    elif isinstance(structure, tuple | list):
        for item in structure:
            yield from refs(item)
    elif isinstance(structure, Mapping):
        for item in structure.values():
            yield from refs(item)


def map_refs(structure: Any, replace: Callable[[Ref], Any]) -> Any:
    """The same structure with every `Ref` replaced by `replace(ref)`."""
    if isinstance(structure, Ref):
        return replace(structure)
    if isinstance(structure, tuple | list):
        return type(structure)([map_refs(item, replace) for item in structure])  # a list is made faster than a generator runs
    if isinstance(structure, Mapping):
        return {key: map_refs(item, replace) for key, item in structure.items()}
    return structure


@dataclass(frozen=True, slots=True)
class Parameter:
    """A parameter as `named_parameters()` lists it: tied names are aliases of the first."""

    fqn: str
    value: int
    aliases: tuple[str, ...] = ()
    trainable: bool = True


@dataclass(frozen=True)
class Graph(Remembering):
    """A captured model: one step's forward, on global tensors.

    `constants` holds the real tensors (torch) that forward makes from literals, by value number. `mutations` maps the
    FQN of a buffer to the number of the value that overwrites it at the end of the step. `loss` is None in inference.
    `output_names` go with `outputs`: `loss` in training, else where the tensor is in forward's result (`logits`,
    `output.0`, `output`).

    An op that writes to arguments beside its result (`batch_norm` to its running statistics) has their new values as
    further outputs, so every node is a function of its inputs.
    """

    values: tuple[Value, ...]
    nodes: tuple[Node, ...]
    inputs: tuple[int, ...]
    parameters: tuple[Parameter, ...]
    buffers: Mapping[str, int]  # FQN -> value number
    outputs: tuple[int, ...]
    loss: int | None
    constants: Mapping[int, Any] = field(default_factory=dict)
    mutations: Mapping[str, int] = field(default_factory=dict)
    output_names: tuple[str, ...] = ()

    @cached_property
    def state(self) -> tuple[Value, ...]:
        """Parameters and buffers."""
        return tuple(value for value in self.values if value.kind in ("parameter", "buffer"))

    @cached_property
    def producers(self) -> Mapping[int, Node]:
        """The node that makes each op value."""
        return {value: node for node in self.nodes for value in node.outputs}

    @cached_property
    def consumers(self) -> Mapping[int, tuple[tuple[Node, int], ...]]:
        """For each value, the (node, position among `node.inputs`) pairs that read it, in execution order."""
        table: dict[int, list[tuple[Node, int]]] = {value.id: [] for value in self.values}
        for node in self.nodes:
            for position, value in enumerate(node.inputs):
                table[value].append((node, position))
        return {value: tuple(readers) for value, readers in table.items()}

    @cached_property
    def receiving(self) -> frozenset[int]:
        """The values that the loss's gradient reaches: those that need one and lead to the loss through others that do."""
        if self.loss is None:
            return frozenset()
        reached = {self.loss}
        for node in reversed(self.nodes):
            if reached.intersection(node.outputs):
                reached.update(value for value in node.inputs if self.values[value].needs_grad)
        return frozenset(reached)

    @cached_property
    def by_address(self) -> Mapping[str, Node]:
        """Nodes by address."""
        return {node.address: node for node in self.nodes}

    def __str__(self) -> str:
        from autoplan.graph.show import format_graph

        return format_graph(self)
