"""The calls of an exported graph, one after another, as functional ops.

Assertions and aliases vanish, no-grad regions are inlined with a `detach` on what leaves them, in-place ops become
functional.
"""

from __future__ import annotations

import operator
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx
from torch._ops import HigherOrderOperator, OpOverload

from autoplan.errors import TargetError
from autoplan.graph.copies import Copies
from autoplan.graph.draft import Draft, Place
from autoplan.graph.inplace import functional_value, is_in_place, refusal, write_back
from autoplan.graph.ir import Ref
from autoplan.graph.ops import bind, short_name, written_arguments
from autoplan.graph.repeats import Unlike
from autoplan.graph.source import source_of_trace

_DROPPED = frozenset({"_assert_async", "_functional_assert_async", "_assert_scalar", "_functional_assert_scalar", "_assert_tensor_metadata", "sym_constrain_range", "sym_constrain_range_for_size"})  # fmt: skip
_ALIASES = frozenset({"alias", "lift", "lift_fresh"})
_DETACHES = frozenset({"detach", "detach_"})  # an alias where no gradient flows, else an op
_FRESH_COPIES = frozenset({"lift_fresh_copy"})  # of a constant: writing to it must not change the constant
_REGIONS = frozenset(
    {"wrap_with_set_grad_enabled", "wrap_with_autocast", "tag_activation_checkpoint", "wrap_activation_checkpoint", "wrap"}
)
_BLOCKS = frozenset({"block_begins", "block_ends", "block_again"})
_REPEAT = re.compile(r"@\d+")  # layers.0@1 is the second call of layers.0


@dataclass(frozen=True, slots=True)
class _View:
    """How an exported node is a view of another: the same memory, so that writing to one changes the other."""

    base: fx.Node
    target: OpOverload | None  # None: one output of an op that has several


class Walk:
    """Walks the exported graph and its regions; knows what every exported node stands for at this moment.

    An exported node names memory, and in-place ops change what is there. `_current` holds each node's present value;
    nodes that view overwritten memory are `_stale` and made again when they are next read.
    """

    def __init__(self, draft: Draft, placeholders: Mapping[fx.Node, Any], copies: Copies) -> None:
        self._draft = draft
        self._copies = copies
        self._grad = True
        self._roots: dict[fx.Node, Ref] = {node: ref for node, ref in placeholders.items() if isinstance(ref, Ref)}
        self._current: dict[fx.Node, Any] = dict(self._roots)  # a Ref, or a tuple of them for an op with several outputs
        self._same: dict[fx.Node, Any] = {node: value for node, value in placeholders.items() if not isinstance(value, Ref)}
        self._regions: dict[fx.Node, list[Any]] = {}  # what an inlined region returns: nodes and literals
        self._views: dict[fx.Node, _View] = {}
        self._viewers: dict[fx.Node, list[fx.Node]] = defaultdict(list)
        self._stale: set[fx.Node] = set()
        self._places: dict[fx.Node, Place] = {}
        self._block: set[fx.Node] | None = None  # the nodes of the block that is being walked
        self._handed_over: set[fx.Node] = set()  # memory that blocks take or return
        self._written: set[fx.Node] = set()

    def run(self, graph_module: fx.GraphModule, *, grad: bool, place: Place) -> list[Any]:
        """Convert one graph or region, recording gradients or not; the nodes and literals that it returns."""
        outer, self._grad = self._grad, grad
        for node in graph_module.graph.nodes:
            if node.op == "call_function":
                self._places[node] = _place(node, place)
                self._call(node, graph_module)
            elif node.op == "get_attr" and isinstance(attribute := getattr(graph_module, node.target), Tensor):
                self._current[node] = Ref(self._draft.declare_constant(node.target, attribute, node.meta.get("val", attribute)))
        self._grad = outer
        returned = next(iter(reversed(graph_module.graph.nodes))).args[0]
        return list(returned) if isinstance(returned, list | tuple) else [returned]

    def value(self, node: Any) -> Any:
        """What an exported argument stands for now: a Ref, a tuple of them, or a literal."""
        node = self._resolved(node)
        if not isinstance(node, fx.Node):
            return node
        if node in self._stale:
            self._stale.discard(node)
            self._current[node] = self._made_again(node)
        return self._current[node]

    def overwritten_buffers(self) -> dict[str, int]:
        """The last value of every buffer that forward wrote to, by FQN."""
        names = {value: fqn for fqn, value in reversed(self._draft.buffers.items())}
        return {
            names[ref.value]: self.value(node).value for node, ref in self._roots.items() if ref.value in names and self.value(node) != ref
        }

    def _call(self, node: fx.Node, owner: fx.GraphModule) -> None:
        target: Any = node.target
        if self._block is not None:
            self._block.add(node)
        if isinstance(target, HigherOrderOperator):
            self._regions[node] = self._region(node, owner)
        elif isinstance(target, OpOverload) and short_name(target) in _BLOCKS:
            self._block_call(node, short_name(target))
        elif target is operator.getitem:
            self._getitem(node)
        elif not isinstance(target, OpOverload):
            what = f"forward computes with a size that depends on values ({getattr(target, '__name__', target)})"
            raise TargetError(what, where=self._places[node].source, next_step="autoplan plans fixed shapes")
        elif short_name(target) in _DROPPED:
            return
        elif short_name(target) in _ALIASES or (short_name(target) in _DETACHES and not self._needs_grad(node.args[0])):
            self._same[node] = node.args[0]
        elif short_name(target) == "broadcast_tensors" and _changes_nothing(node):
            self._regions[node] = list(node.args[0])
        elif short_name(target) in _FRESH_COPIES:
            self._current[node] = self.value(node.args[0])
        elif is_in_place(target) and short_name(target) not in _DETACHES:
            args, kwargs = self._arguments(node)
            place = self._places[node]
            self._refuse_lost_writes(self._resolved(node.args[0]), place)
            self._write(node.args[0], Ref(functional_value(self._draft, target, args, kwargs, place, grad=self._grad)), place)
            self._same[node] = node.args[0]
        else:
            self._op(node, torch.ops.aten.detach.default if short_name(target) in _DETACHES else target)

    def _block_call(self, node: fx.Node, mark: str) -> None:
        """A mark of a repeated block: where a traced one begins or ends, or one that is a copy of those."""
        given: Any = node.args[0]
        number: Any = node.args[1]
        if any(self._resolved(tensor) in self._stale for tensor in given):
            raise Unlike("a block takes or returns a view of what was overwritten")
        values = [self.value(tensor).value for tensor in given]
        self._handed_over.update(map(self._root, given))
        if mark == "block_begins":
            self._block = set()
            self._copies.begin(number, values, self._places[node], self._grad)
        elif mark == "block_ends":
            self._block = None
            self._copies.end(number, values, self._grad)
        else:
            self._handed_over.add(node)
            self._current[node] = tuple(map(Ref, self._copies.again(number, values, self._places[node], self._grad)))

    def check_blocks(self, leaving: Iterable[int]) -> None:
        """Raises Unlike where a repeated block is more than a function of its arguments; `leaving` are forward's results."""
        if self._written & self._handed_over:
            raise Unlike("an in-place op writes to what a block takes or returns")
        self._copies.check_reads(leaving)

    def _op(self, node: fx.Node, target: OpOverload) -> None:
        args, kwargs = self._arguments(node)
        example, place = node.meta["val"], self._places[node]
        written = _written_nodes(node, target)
        if written:
            example = [*(example if isinstance(example, list | tuple) else [example]), *(argument.meta["val"] for argument in written)]
        outputs = tuple(map(Ref, self._draft.emit(target, args, kwargs, place, grad=self._grad, example=example)))
        for argument in written:
            self._refuse_lost_writes(self._resolved(argument), place)
        for argument, after in zip(written, outputs[len(outputs) - len(written) :], strict=True):
            self._draft.values[after.value].needs_grad = self._draft.values[after.value].would_need_grad = False
            self._write(argument, after, place)
        self._current[node] = outputs[0] if isinstance(node.meta["val"], Tensor) else outputs
        base = _base(node)
        if base is not None:
            self._watch(node, _View(base, target))

    def _getitem(self, node: fx.Node) -> None:
        source, index = self._resolved(node.args[0]), _output_index(node)
        if source in self._regions:
            self._same[node] = self._regions[source][index]
        else:
            self._current[node] = self.value(source)[index]
            self._watch(node, _View(source, None))

    def _region(self, node: fx.Node, owner: fx.GraphModule) -> list[Any]:
        """Inline a region; a value made in it without gradients leaves it through `detach` if it would have had one."""
        target: Any = node.target
        arguments: tuple[Any, ...] = node.args
        name, place = target.name(), self._places[node]
        body_at = next((i for i, arg in enumerate(arguments) if isinstance(arg, fx.Node) and arg.op == "get_attr"), None)
        if body_at is None or name not in _REGIONS:
            raise TargetError(
                f"forward uses {name}, which autoplan cannot plan", where=place.source, next_step="write it without control flow operators"
            )
        body, operands = getattr(owner, arguments[body_at].target), arguments[body_at + 1 :]
        inner = next((_place(n, place) for n in body.graph.nodes if n.op == "call_function"), place)
        if name == "wrap_with_autocast" and arguments[2]:
            what = f"forward uses torch.autocast in {inner.module or 'the root module'}, which a plan cannot keep"
            raise TargetError(what, where=inner.source, next_step="remove autocast and set --precision")
        grad = arguments[0] if name == "wrap_with_set_grad_enabled" else self._grad
        self._cross(operands, self._grad, grad)
        self._same.update(zip([n for n in body.graph.nodes if n.op == "placeholder"], operands, strict=True))
        returned = self.run(body, grad=grad, place=place)
        self._cross(returned, grad, self._grad)
        return returned

    def _cross(self, nodes: Iterable[Any], from_grad: bool, to_grad: bool) -> None:
        if from_grad or not to_grad:
            return
        for node in map(self._resolved, nodes):
            value = self.value(node)
            if isinstance(value, Ref):
                self._current[node] = Ref(self._draft.detached(value.value, self._places.get(node, Place("", "forward"))))

    # In-place ops: memory is overwritten, so are the tensors it is seen through.

    def _write(self, written: Any, after: Ref, place: Place) -> None:
        """The memory of `written` now holds `after`: say so to the node, to what it is a view of, and to other views."""
        node = self._resolved(written)
        self._note_write(node)
        self._set(node, after, None)
        while (view := self._views.get(node)) is not None:
            if view.target is None:
                self._replace_output(node, after, place)
                return
            args, kwargs = self._arguments(node)
            after = Ref(write_back(self._draft, view.target, args, kwargs, after.value, place, grad=self._grad))
            node, child = self._resolved(view.base), node
            self._set(node, after, child)

    def _note_write(self, node: fx.Node) -> None:
        root = self._root(node)
        if self._block is None:
            self._written.add(root)
        elif root not in self._block:
            raise Unlike("an in-place op in a block writes to what it has not made")

    def _replace_output(self, node: fx.Node, after: Ref, place: Place) -> None:
        """One output of an op with several is overwritten, which only matters to who takes the same output again."""
        source, index = self._resolved(node.args[0]), _output_index(node)
        if source in self._views:
            raise refusal("in-place op on one of the views that an op like split or chunk returns", place)
        outputs = list(self._current[source])
        outputs[index] = after
        self._current[source] = tuple(outputs)
        for viewer in self._viewers[source]:
            if viewer is not node and _output_index(viewer) == index:
                self._mark_stale(viewer)

    def _set(self, node: fx.Node, value: Ref, up_to_date: fx.Node | None) -> None:
        self._current[node] = value
        self._stale.discard(node)
        for viewer in self._viewers[node]:
            if viewer is not up_to_date:
                self._mark_stale(viewer)

    def _mark_stale(self, node: fx.Node) -> None:
        self._stale.add(node)
        for viewer in self._viewers[node]:
            self._mark_stale(viewer)

    def _made_again(self, node: fx.Node) -> Any:
        view = self._views[node]
        if view.target is None:
            return self.value(view.base)[_output_index(node)]
        args, kwargs = self._arguments(node)
        outputs = tuple(map(Ref, self._draft.emit(view.target, args, kwargs, self._places[node], grad=self._grad)))
        return outputs[0] if isinstance(node.meta["val"], Tensor) else outputs

    def _refuse_lost_writes(self, node: fx.Node, place: Place) -> None:
        root = self._root(node)
        declared = self._roots.get(root)
        if declared is not None and self._draft.values[declared.value].kind != "buffer":
            value = self._draft.values[declared.value]
            raise refusal(f"in-place op on {value.kind} {value.address.removeprefix('inputs/').removeprefix('constants/')}", place)
        if self._needs_grad(node) and not self._grad:
            raise refusal("in-place op under no_grad on a tensor that needs a gradient", place)

    def _watch(self, node: fx.Node, view: _View) -> None:
        self._views[node] = view
        self._viewers[self._resolved(view.base)].append(node)

    def _needs_grad(self, node: Any) -> bool:
        value = self.value(node)
        return isinstance(value, Ref) and self._draft.values[value.value].needs_grad

    def _root(self, node: fx.Node) -> fx.Node:
        """The node that made the memory which `node` shows."""
        root = self._resolved(node)
        while root in self._views:
            root = self._resolved(self._views[root].base)
        return root

    def _resolved(self, node: Any) -> Any:
        while isinstance(node, fx.Node) and node in self._same:
            node = self._same[node]
        return node

    def _arguments(self, node: fx.Node) -> tuple[tuple[Any, ...], dict[str, Any]]:
        return self._converted(node.args), {name: self._converted(value) for name, value in node.kwargs.items()}

    def _converted(self, argument: Any) -> Any:
        if isinstance(argument, fx.Node):
            return self.value(argument)
        if isinstance(argument, list | tuple):
            return tuple(self._converted(item) for item in argument)
        return argument


def _changes_nothing(broadcast: fx.Node) -> bool:
    """Whether all tensors have the shape that they are broadcast to."""
    given: Any = broadcast.args[0]
    return all(before.meta["val"].shape == after.shape for before, after in zip(given, broadcast.meta["val"], strict=True))


def _output_index(getitem: fx.Node) -> int:
    index: Any = getitem.args[1]
    return index


def _written_nodes(node: fx.Node, target: OpOverload) -> list[fx.Node]:
    """Arguments that a call writes to beside what it returns: their new values become further outputs."""
    positions = written_arguments(target, node.args, node.kwargs)
    arguments = list(bind(target, node.args, node.kwargs).values())
    return [arguments[i] for i in positions if isinstance(arguments[i], fx.Node)]


def _base(node: fx.Node) -> fx.Node | None:
    """The argument whose memory the node's result shares, if any."""
    storage = _storage(node)
    return None if storage is None else next((arg for arg in node.all_input_nodes if _storage(arg) == storage), None)


def _storage(node: fx.Node) -> int | None:
    example = node.meta.get("val")
    if isinstance(example, list | tuple):
        example = next((item for item in example if isinstance(item, Tensor)), None)
    return example.untyped_storage()._cdata if isinstance(example, Tensor) else None


def _place(node: fx.Node, fallback: Place) -> Place:
    stack = node.meta.get("nn_module_stack")
    module = _REPEAT.sub("", list(stack.values())[-1][0]) if stack else fallback.module
    return Place(module, source_of_trace(node.meta.get("stack_trace")) or module or "forward")
