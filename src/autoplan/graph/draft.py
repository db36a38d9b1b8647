"""A graph while it is being made: calls are appended, useless ones dropped, then all is numbered for good."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch._subclasses.fake_tensor import FakeTensor

from autoplan.errors import TargetError
from autoplan.graph.ir import Graph, Node, Parameter, Ref, Value, ValueKind, map_refs, refs
from autoplan.graph.ops import op_name, short_name

# Outputs of these never require a gradient although an input does (no formula in torch's derivatives.yaml) ...
_NO_GRADIENT = frozenset({"detach", "zeros_like", "ones_like", "empty_like", "full_like", "rand_like", "randn_like", "new_zeros", "new_ones", "new_empty", "new_full", "new_empty_strided"})  # fmt: skip
# ... and these take shape or dtype from all but their first input.
_FIRST_INPUT_ONLY = frozenset({"type_as", "expand_as", "view_as", "reshape_as", "to"})


@dataclass(frozen=True, slots=True)
class Place:
    """Where a call comes from: its module's FQN and `file.py:12`."""

    module: str
    source: str


@dataclass(slots=True)
class DraftValue:
    """A value before numbering; `example` is the fake tensor that knows its shape, dtype and strides."""

    kind: ValueKind
    address: str
    example: Tensor
    needs_grad: bool
    would_need_grad: bool = False  # made in a no-grad region from something that needs a gradient


@dataclass(slots=True)
class Call:
    """A node before numbering."""

    target: OpOverload
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    place: Place
    outputs: tuple[int, ...]
    address: str = ""
    reads: tuple[int, ...] = field(init=False, repr=False, compare=False)  # kept, since many ask for it

    def __post_init__(self) -> None:
        self.reads = tuple(ref.value for ref in refs((self.args, self.kwargs)))


@dataclass
class Draft:
    """Values and calls in execution order."""

    values: list[DraftValue] = field(default_factory=list)
    calls: list[Call] = field(default_factory=list)
    inputs: list[int] = field(default_factory=list)
    parameters: list[Parameter] = field(default_factory=list)
    buffers: dict[str, int] = field(default_factory=dict)
    constants: dict[int, Tensor] = field(default_factory=dict)

    def declare(self, kind: ValueKind, address: str, example: Tensor, needs_grad: bool = False) -> int:
        """A value that no op makes; its number."""
        self.values.append(DraftValue(kind, address, example, needs_grad))
        return len(self.values) - 1

    def declare_constant(self, name: str, tensor: Tensor, example: Tensor) -> int:
        """A tensor that forward makes from literals, or finds in an attribute; its number."""
        value = self.declare("constant", f"constants/{name}", example)
        self.constants[value] = tensor.detach()
        return value

    def emit(
        self, target: OpOverload, args: Sequence[Any], kwargs: Mapping[str, Any], place: Place, *, grad: bool, example: Any = None
    ) -> tuple[int, ...]:
        """Append a call and return its outputs; `example` is the op's fake result, computed here when not given."""
        if example is None:
            example = self.run_fake(target, args, kwargs)
        tensors = _leading_tensors(example, target, place)
        reads = [self.values[ref.value] for ref in refs((tuple(args), dict(kwargs)))]
        reads = [] if short_name(target) in _NO_GRADIENT else reads[:1] if short_name(target) in _FIRST_INPUT_ONLY else reads
        needed = any(value.needs_grad or value.would_need_grad for value in reads)
        outputs = []
        for tensor in tensors:
            _refuse_symbolic(tensor, target, place)
            flows = needed and (tensor.dtype.is_floating_point or tensor.dtype.is_complex)
            self.values.append(DraftValue("op", "", tensor, flows and grad, flows and not grad))
            outputs.append(len(self.values) - 1)
        self.calls.append(Call(target, tuple(args), dict(kwargs), place, tuple(outputs)))
        return tuple(outputs)

    def run_fake(self, target: OpOverload, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """The op's result on the examples of its arguments."""
        structure = (tuple(args), dict(kwargs))
        examples = [self.values[ref.value].example for ref in refs(structure)]
        mode = next(example.fake_mode for example in examples if isinstance(example, FakeTensor))
        real_args, real_kwargs = map_refs(structure, lambda ref: self.values[ref.value].example)
        with mode, torch.no_grad():
            return target(*real_args, **real_kwargs)

    def detached(self, value: int, place: Place) -> int:
        """`value` behind an explicit `detach` if it was made without gradients from something that needs one."""
        if not self.values[value].would_need_grad:
            return value
        return self.emit(torch.ops.aten.detach.default, (Ref(value),), {}, place, grad=True)[0]

    def keep(self, wanted: Iterable[int]) -> None:
        """Drop the calls that none of the `wanted` values needs."""
        needed = set(wanted)
        kept = []
        for call in reversed(self.calls):
            if needed.intersection(call.outputs):
                needed.update(call.reads)
                kept.append(call)
        self.calls = kept[::-1]

    def name_calls(self) -> None:
        """Give every call its address: module FQN / op name, and `#k` from the second of that name in its module on."""
        seen: Counter[tuple[str, str]] = Counter()
        for call in self.calls:
            module, name = call.place.module, short_name(call.target)
            count = seen[module, name]
            seen[module, name] += 1
            call.address = f"{module}/{name}" + (f"#{count}" if count else "")
            for i, output in enumerate(call.outputs):
                self.values[output].address = call.address if len(call.outputs) == 1 else f"{call.address}[{i}]"

    def freeze(self, outputs: Sequence[tuple[str, int]], loss: int | None, mutations: Mapping[str, int]) -> Graph:
        """The finished graph, values and nodes numbered in execution order, unused constants left out."""
        self._refuse_constants_without_values()
        read = {value for call in self.calls for value in call.reads} | {value for _, value in outputs} | set(mutations.values())
        order = [i for i, value in enumerate(self.values) if value.kind in ("input", "parameter", "buffer")]
        order += [i for i, value in enumerate(self.values) if value.kind == "constant" and i in read]
        order += [output for call in self.calls for output in call.outputs]
        number = {old: new for new, old in enumerate(order)}
        shared: dict[Any, Any] = {}
        return Graph(
            values=tuple(_frozen_value(number[old], self.values[old], shared) for old in order),
            nodes=tuple(_frozen_node(i, call, number) for i, call in enumerate(self.calls)),
            inputs=tuple(number[i] for i in self.inputs),
            parameters=tuple(Parameter(p.fqn, number[p.value], p.aliases, p.trainable) for p in self.parameters),
            buffers={fqn: number[i] for fqn, i in self.buffers.items()},
            outputs=tuple(number[value] for _, value in outputs),
            loss=None if loss is None else number[loss],
            constants={number[i]: tensor for i, tensor in self.constants.items() if i in number},
            mutations={fqn: number[value] for fqn, value in mutations.items()},
            output_names=tuple(name for name, _ in outputs),
        )

    def _refuse_constants_without_values(self) -> None:
        problems = []
        for call in self.calls:
            for value in call.reads:
                tensor = self.constants.get(value)
                if tensor is not None and (isinstance(tensor, FakeTensor) or tensor.is_meta):
                    name = self.values[value].address.removeprefix("constants/")
                    problems.append(f"{call.place.source}: the values of {name} are lost: it is a tensor on meta, or .data of one")
        if problems:
            raise TargetError("\n".join(dict.fromkeys(problems)), next_step="register it as a buffer, or make it inside forward")


def describe(tensor: Tensor) -> str:
    """`float32[8, 16]`."""
    return f"{str(tensor.dtype).removeprefix('torch.')}{list(tensor.shape)}"


def _frozen_value(number: int, value: DraftValue, shared: dict[Any, Any]) -> Value:
    shape = tuple(value.example.shape)
    return Value(
        number,
        value.kind,
        value.address,
        shared.setdefault(shape, shape),
        str(value.example.dtype).removeprefix("torch."),
        value.needs_grad,
    )


def _frozen_node(index: int, call: Call, number: Mapping[int, int]) -> Node:
    args, kwargs = map_refs((call.args, call.kwargs), lambda ref: Ref(number[ref.value]))
    return Node(
        index,
        op_name(call.target),
        call.address,
        call.place.module,
        args,
        kwargs,
        tuple(number[o] for o in call.outputs),
        call.place.source,
    )


def _leading_tensors(example: Any, target: OpOverload, place: Place) -> list[Tensor]:
    if isinstance(example, Tensor):
        return [example]
    items = list(example) if isinstance(example, list | tuple) else [example]
    tensors = [item for item in items if isinstance(item, Tensor)]
    if isinstance(example, int | float | torch.SymInt | torch.SymFloat | torch.SymBool):
        what = f"forward depends on the values of a tensor ({op_name(target)})"
        raise TargetError(what, where=place.source, next_step="keep it a tensor, or decide it from shapes or the configuration")
    if not tensors or not all(isinstance(item, Tensor) for item in items[: len(tensors)]):
        raise TargetError(
            f"{op_name(target)} returns something other than tensors",
            where=place.source,
            next_step="autoplan can plan ops that return tensors only",
        )
    return tensors


def _refuse_symbolic(tensor: Tensor, target: OpOverload, place: Place) -> None:
    if not all(type(size) is int for size in tensor.shape):
        raise TargetError(
            f"{op_name(target)} gives a tensor of dynamic shape {list(tensor.shape)}",
            where=place.source,
            next_step="autoplan plans fixed shapes: use a mask in place of boolean indexing or nonzero",
        )
