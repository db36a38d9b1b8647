"""Repeated blocks during export: the first two copies are traced, each later one stands in the graph as a single op.

What stands around the blocks runs as it is, at the model's true depth. A call stands for an earlier one if the modules are copies
of one another (`alike`) and their arguments agree but for the values of tensors; whatever does not fit is traced like the rest, and
what could not be told apart raises Unlike.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import wraps
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor, nn

from autoplan.graph.alike import NotComparable, counting_attributes, plain, signature

TRACED = 2  # calls of equal blocks that are traced: the first reads what comes before the blocks, the second another block


class Unlike(Exception):
    """The calls of a block are not the same computation, or it cannot be told: all have to be exported."""


@dataclass(frozen=True, slots=True)
class BlockCall:
    """One call of a block: its module's FQN, and the traced calls that it repeats, none if it was traced itself."""

    fqn: str
    repeats: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class _Block:
    fqn: str
    counts: frozenset[str]  # its attributes that number the copies


@dataclass(frozen=True, slots=True)
class _Traced:
    """A traced call's result: what every leaf is, and the layout of the new tensors among them."""

    number: int
    spec: pytree.TreeSpec
    leaves: tuple[tuple[str, Any], ...]  # ("argument", i), ("new", i) or ("plain", value)
    layouts: tuple[tuple[int, ...], ...]
    requires_grad: tuple[bool, ...]


class Repeats:
    """What one export of `module` does with its repeated blocks; `calls` are numbered as the ops in the graph are."""

    def __init__(self, module: nn.Module) -> None:
        self.calls: list[BlockCall] = []
        self._blocks: dict[int, _Block] = {}  # by the id of the module's attributes, which torch's proxies of it share
        self._traced: dict[Hashable, list[_Traced]] = defaultdict(list)
        self._inside = False
        self._trouble: str | None = None
        self._types: set[type[nn.Module]] = set()
        for fqn, container in module.named_modules():
            self._add(fqn, container)

    @property
    def possible(self) -> bool:
        """Whether there are blocks that may be equal."""
        return bool(self._blocks)

    @contextmanager
    def recorded(self) -> Iterator[None]:
        """Within it, calls of blocks are marked in the graph that is being traced, or are one op of it.

        Raises Unlike at its end, also where forward has caught that.
        """
        originals = {kind: vars(kind).get("forward") for kind in self._types}
        for kind in self._types:
            kind.forward = self._forward(kind.forward)
        try:
            yield
        finally:
            for kind, original in originals.items():
                if original is None:
                    del kind.forward
                else:
                    kind.forward = original
        if self._trouble is not None:
            raise Unlike(self._trouble)

    def _add(self, fqn: str, container: nn.Module) -> None:
        children = {int(name): child for name, child in container.named_children() if name.isdecimal() and "forward" not in vars(child)}
        if len(children) <= TRACED:
            return
        counts = counting_attributes(children)
        for index, child in children.items():
            self._blocks.setdefault(
                id(vars(child)), _Block(f"{fqn}.{index}".lstrip("."), counts)
            )  # under its first name, as traces have it
            self._types.add(type(child))

    def _forward(self, original: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(original)  # some models read its signature
        def forward(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
            block = self._blocks.get(id(vars(module)))
            if block is None or self._inside:
                return original(module, *args, **kwargs)
            leaves, spec = pytree.tree_flatten((args, kwargs))
            try:
                state = _state(module, block)
                key = state, str(spec), _arguments(leaves), torch.is_grad_enabled()
            except NotComparable:
                return original(module, *args, **kwargs)
            traced = self._traced[key]
            if len(traced) == TRACED:
                return self._stand_in(block, traced, leaves)
            number = self._next(BlockCall(block.fqn))
            torch.ops.autoplan.block_begins(_tensors(leaves), number)
            with self._numberless(module, block):
                result = original(module, *args, **kwargs)
            after = pytree.tree_leaves((args, kwargs))
            if len(after) != len(leaves) or any(old is not new for old, new in zip(leaves, after, strict=True)):
                raise self._refused(f"{block.fqn} changes its arguments")
            if _state(module, block) != state:
                raise self._refused(f"{block.fqn} changes its attributes")
            results, made = pytree.tree_flatten(result)
            torch.ops.autoplan.block_ends(_tensors(results), number)
            traced.append(_traced_call(number, made, results, _tensors(leaves)))
            return result

        return forward

    def _stand_in(self, block: _Block, traced: Sequence[_Traced], leaves: Sequence[Any]) -> Any:
        """The result of a call that repeats the `traced` ones, as one op."""
        like = traced[-1]
        if any(
            (t.spec, t.leaves, t.layouts, t.requires_grad) != (like.spec, like.leaves, like.layouts, like.requires_grad) for t in traced
        ):
            raise self._refused(f"{block.fqn}: calls of equal blocks give results of another form")
        number = self._next(BlockCall(block.fqn, tuple(t.number for t in reversed(traced))))
        given = _tensors(leaves)
        new = torch.ops.autoplan.block_again(given, number, [size for layout in like.layouts for size in layout]) if like.layouts else []
        for tensor, needed in zip(new, like.requires_grad, strict=True):
            tensor.requires_grad_(needed)
        found = {"argument": given, "new": new}
        return pytree.tree_unflatten([found[kind][value] if kind in found else value for kind, value in like.leaves], like.spec)

    def _next(self, call: BlockCall) -> int:
        self.calls.append(call)
        return len(self.calls) - 1

    @contextmanager
    def _numberless(self, module: nn.Module, block: _Block) -> Iterator[None]:
        """Within it, the block's attributes that number the copies may be handed on but not looked at."""
        paths = [path.rpartition(".") for path in block.counts]
        saved = [
            (attributes, name, attributes[name]) for owner, _, name in paths if name in (attributes := vars(module.get_submodule(owner)))
        ]
        self._inside = True
        try:
            for attributes, name, _ in saved:
                attributes[name] = _Number(lambda: self._refused(f"{block.fqn} reads its number"))
            yield
        finally:
            self._inside = False
            for attributes, name, value in saved:
                attributes[name] = value

    def _refused(self, why: str) -> Unlike:
        self._trouble = why
        return Unlike(why)


def _state(module: nn.Module, block: _Block) -> Hashable:
    with torch._C.DisableTorchFunction():  # tracing looks at every question for a tensor's shape
        return signature(module, block.counts)


def _arguments(leaves: Sequence[Any]) -> Hashable:
    """What calls of a block must have in common; raises NotComparable for an argument that is no tensor and not plain."""
    first = {id(leaf): position for position, leaf in reversed(list(enumerate(leaves)))}
    return tuple(
        (first[id(leaf)], type(leaf), leaf.requires_grad, *_layout(leaf)) if isinstance(leaf, Tensor) else plain(leaf) for leaf in leaves
    )


def _traced_call(number: int, spec: pytree.TreeSpec, results: Sequence[Any], given: Sequence[Tensor]) -> _Traced:
    places = {id(tensor): ("argument", i) for i, tensor in reversed(list(enumerate(given)))}
    leaves: list[tuple[str, Any]] = []
    new: list[Tensor] = []
    for leaf in results:
        if isinstance(leaf, Tensor):
            if id(leaf) not in places:
                places[id(leaf)] = ("new", len(new))
                new.append(leaf)
            leaves.append(places[id(leaf)])
        else:
            leaves.append(("plain", leaf))
    return _Traced(number, spec, tuple(leaves), tuple(map(_layout, new)), tuple(tensor.requires_grad for tensor in new))


def _tensors(leaves: Sequence[Any]) -> list[Tensor]:
    return [leaf for leaf in leaves if isinstance(leaf, Tensor)]


class _Number:
    """Stands where an int was, and calls `look` whatever is done with it beyond handing it on."""

    def __init__(self, look: Callable[[], Exception]) -> None:
        self._look = look

    @property  # type: ignore[misc]
    def __class__(self) -> type:
        return int


def _looked_at(number: _Number, *_: Any) -> Any:
    raise object.__getattribute__(number, "_look")()


_MADE_OF = {
    "__new__",
    "__init__",
    "__class__",
    "__init_subclass__",
    "__subclasshook__",
    "__doc__",
    "__getattribute__",
    "__setattr__",
    "__delattr__",
}
for _name in [*(set(dir(int)) - _MADE_OF), "__getattr__"]:
    setattr(_Number, _name, _looked_at)


# The ops that mark calls in a traced graph. They never run: a layout is (dtype, dims, sizes, strides) of a new tensor.
_DTYPES = tuple(sorted({value for value in vars(torch).values() if isinstance(value, torch.dtype)}, key=str))
_LIBRARY = torch.library.Library("autoplan", "FRAGMENT")
_LIBRARY.define("block_begins(Tensor[] arguments, int call) -> ()")
_LIBRARY.define("block_ends(Tensor[] results, int call) -> ()")
_LIBRARY.define("block_again(Tensor[] arguments, int call, int[] layouts) -> Tensor[]")


def _layout(tensor: Tensor) -> tuple[int, ...]:
    return _DTYPES.index(tensor.dtype), tensor.dim(), *tensor.size(), *tensor.stride()


def _mark(tensors: Sequence[Tensor], call: int) -> None:
    return None


def _again(arguments: Sequence[Tensor], call: int, layouts: Sequence[int]) -> list[Tensor]:
    made, at = [], 0
    while at < len(layouts):
        dims = layouts[at + 1]
        size, stride = layouts[at + 2 : at + 2 + dims], layouts[at + 2 + dims : at + 2 + 2 * dims]
        made.append(torch.empty_strided(size, stride, dtype=_DTYPES[layouts[at]], device=arguments[0].device))
        at += 2 + 2 * dims
    return made


torch.library.register_fake("autoplan::block_begins", _mark, lib=_LIBRARY)
torch.library.register_fake("autoplan::block_ends", _mark, lib=_LIBRARY)
torch.library.register_fake("autoplan::block_again", _again, lib=_LIBRARY)
