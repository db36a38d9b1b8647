"""The pieces of a local program: every copy of a repeated block is one, and so is what lies before, between and behind them.

A piece is one function of local tensors. Pieces that compute the same share it, so that it is compiled once for all of them;
what tells them apart, tensors and seeds, are its arguments.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from itertools import count
from types import FunctionType
from typing import Any, cast

import torch
from torch import Tensor, fx, nn
from torch._functorch import config as functorch_config
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from autoplan.graph.ir import Graph
from autoplan.graph.segments import Segment
from autoplan.rules.seeds import default_generator_of
from autoplan.runtime.program.parts import LocalImplementation
from autoplan.runtime.program.run import Local, Run


@dataclass(frozen=True, slots=True)
class Span:
    """The nodes of one piece; `segment` is the copy of a block that it is, if it is one."""

    name: str
    nodes: range
    segment: Segment | None = None


def spans(graph: Graph, segments: Sequence[Segment]) -> list[Span]:
    """The graph's nodes in pieces: the segments, and the stretches that they leave."""
    found, begin = [], 0
    for segment in segments:
        if segment.nodes.start > begin:
            found.append(Span(f"until_{segment.name}", range(begin, segment.nodes.start)))
        found.append(Span(segment.name, segment.nodes, segment))
        begin = segment.nodes.stop
    if begin < len(graph.nodes):
        found.append(Span("rest" if found else "whole", range(begin, len(graph.nodes))))
    return found


class Function:
    """What pieces that compute the same run: `function(local, *tensors)` gives the tensors that others read.

    `again` is the part of it that backward runs once more where activations are recomputed, with the same arguments; None where
    they are kept. `drawing` are its parts that draw random numbers, by seeds that differ from call to call.
    """

    def __init__(self, forward: fx.GraphModule, again: fx.GraphModule | None, drawing: Sequence[LocalImplementation] = ()) -> None:
        self.forward = forward
        self.again = again
        self.drawing = drawing
        self._compiled: Callable[..., tuple[Tensor, ...]] | None = None

    def __call__(self, local: Local, *tensors: Tensor) -> tuple[Tensor, ...]:
        if self._compiled is not None:
            with self._default_generator(local, tensors):
                return self._compiled(local, *tensors)
        if self.again is None or not torch.is_grad_enabled():
            return self.forward(local, *tensors)
        return checkpoint(
            _Twice(self.forward, self.again, local), *tensors, use_reentrant=False, preserve_rng_state=False, early_stop=False
        )

    def compile(self, **options: Any) -> None:
        """Run through torch.compile from now on; recomputation is a part of what is compiled.

        What is compiled cannot seed the default generator, which is seeded before it. Where two parts draw from it as different
        shards, one seed will not do, and the function stays as it is.
        """
        if len({part.shards for part in self._by_default_generator}) > 1:
            return
        forward, recomputes = self.forward, self.again is not None

        def function(local: Local, *tensors: Tensor) -> tuple[Tensor, ...]:
            if not recomputes or not torch.is_grad_enabled():
                return forward(local, *tensors)
            said: dict[str, Any] = {"context_fn": _all_again} if _TAGS_OUTER_OPS_ONLY else {}
            return checkpoint(lambda *read: forward(local, *read), *tensors, use_reentrant=False, preserve_rng_state=False, **said)

        dynamic = None if self.drawing else False  # sizes are the plan's; of seeds the second is compiled as any number
        self._compiled = torch.compile(_with_own_code(cast(FunctionType, function)), **({"dynamic": dynamic} | options))

    @property
    def is_compiled(self) -> bool:
        """Whether it runs through torch.compile."""
        return self._compiled is not None

    @cached_property
    def _by_default_generator(self) -> list[LocalImplementation]:
        return [part for part in self.drawing if part.op.draws_by_default_generator]

    @contextmanager
    def _default_generator(self, local: Local, tensors: Sequence[Tensor]) -> Iterator[None]:
        """The default generator as the first part that draws from it wants it, if there is one.

        What is recomputed draws again from the state that this generator had: "graph-safe" states would be those of generators that
        torch.compile makes, which are not seeded.
        """
        part = next(iter(self._by_default_generator), None)
        if part is None:
            yield
            return
        local.seeded = True
        seeded = default_generator_of(local.node_seed(part.node), part.shard(local.group), tensors[0].device)
        with seeded, functorch_config.patch(graphsafe_rng_functionalization=False) if self.again else nullcontext():
            yield


_TAGS_OUTER_OPS_ONLY = not hasattr(torch._higher_order_ops.wrap, "_always_prefer_recompute")
"""Whether torch.compile, of what is checkpointed, overlooks ops inside of autograd functions, as torch 2.11 does. It then keeps what
their collectives give."""


def _all_again() -> tuple[Any, Any]:
    return create_selective_checkpoint_contexts(_recompute)


def _recompute(_context: object, _op: object, *_args: object, **_kwargs: object) -> CheckpointPolicy:
    return CheckpointPolicy.PREFER_RECOMPUTE


_numbers = count()


def _with_own_code(function: FunctionType) -> FunctionType:
    """The function with a code object of its own: torch.compile counts by code object, and gives up on one at the eighth compilation."""
    code = function.__code__.replace(co_name=f"piece_{next(_numbers)}")
    return FunctionType(code, function.__globals__, code.co_name, function.__defaults__, function.__closure__)


class _Twice:
    """The whole function when it is called first, afterwards what backward needs of it: seeds are arguments, so both do the same."""

    def __init__(self, forward: fx.GraphModule, again: fx.GraphModule, local: Local) -> None:
        self._next = forward
        self._again = again
        self._local = local

    def __call__(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        function, self._next = self._next, self._again
        return function(self._local, *tensors)


class Piece(nn.Module):
    """One piece in the program: the function with the seeds of its own nodes."""

    def __init__(self, function: Function, first: int) -> None:
        super().__init__()
        self.function = function
        self.first = first

    def forward(self, run: Run, *tensors: Tensor) -> tuple[Tensor, ...]:
        return self.function(run.local(self.first), *tensors)


class PieceGraph:
    """The fx graph of a piece while it grows, and a key that pieces which compute the same have in common."""

    def __init__(self) -> None:
        self.fx = fx.Graph()
        self.root = nn.Module()
        self.local = self.fx.placeholder("local")
        self.inputs: dict[Any, fx.Node] = {}
        self.outputs: dict[fx.Node, int] = {}
        self.drawing: list[LocalImplementation] = []
        self._last_input = self.local
        self._key: list[str] = []
        self._number: dict[fx.Node, int] = {self.local: 0}

    def input(self, source: Any, name: str, key: object) -> fx.Node:
        """The argument for `source`, which is new if it is the first time; `key` says what kind of tensor it is."""
        if source not in self.inputs:
            with self.fx.inserting_after(self._last_input):
                self._last_input = self.inputs[source] = self.fx.placeholder(name)
            self._note(self.inputs[source], f"input {key}")
        return self.inputs[source]

    def op(self, target: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], name: str | None = None) -> fx.Node:
        """A call of a plain op."""
        node = self.fx.create_node("call_function", target, args, kwargs, name)
        written = fx.map_arg((args, kwargs), lambda other: f"%{self._number[other]}")  # type: ignore[arg-type, return-value]
        self._note(node, f"{target} {written}")
        return node

    def part(self, name: str, part: nn.Module, tensors: Sequence[fx.Node]) -> fx.Node:
        """A call of a part, which has a `key`."""
        self.root.add_module(name, part)
        if isinstance(part, LocalImplementation) and part.draws:
            self.drawing.append(part)
        node = self.fx.create_node("call_module", name, (self.local, *tensors), {}, name)
        self._note(node, f"{part.key} {[self._number[tensor] for tensor in tensors]}")
        return node

    def output(self, node: fx.Node) -> int:
        """The position of a tensor among the outputs, which it joins."""
        return self.outputs.setdefault(node, len(self.outputs))

    def mark(self) -> int:
        """How much there is by now; see `finish`."""
        return len(self._number)

    def finish(self, name: str, until: int | None, shared: dict[object, Function]) -> Function:
        """The function of the finished graph, one of `shared` if it is the same; backward runs again what was there at the mark `until`."""
        key = (tuple(self._key), tuple(self._number[node] for node in self.outputs), until)
        if key not in shared:
            self.fx.output(tuple(self.outputs))
            again = None if until is None else fx.GraphModule(self.root, self._first(until), f"{name}Again")
            shared[key] = Function(fx.GraphModule(self.root, self.fx, name), again, self.drawing)
        return shared[key]

    def _first(self, until: int) -> fx.Graph:
        """The graph's beginning, with all its arguments and without results."""
        copy = fx.Graph()
        made: dict[fx.Node, fx.Node] = {}
        for node in self.fx.nodes:
            if node.op == "placeholder" or self._number.get(node, until) < until:
                made[node] = copy.node_copy(node, lambda other: made[other])
        copy.output(())
        return copy

    def _note(self, node: fx.Node, said: str) -> None:
        self._number[node] = len(self._number)
        self._key.append(said)


def overwritten_buffers(graph: Graph) -> Collection[int]:
    """The values of buffers that have other contents when backward runs."""
    return {graph.buffers[fqn] for fqn in graph.mutations}
