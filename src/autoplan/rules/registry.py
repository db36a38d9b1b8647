"""The registry: which rule an op has, which local implementations exist, and how sizes among its arguments become local."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, TypeVar

import torch
from torch import Tensor

from autoplan.collectives import Collectives
from autoplan.placement import Mesh, Placements, Shard, local_shape
from autoplan.rules.row import Call, Row, Strategy, TensorSpec
from autoplan.rules.seeds import shard_number

Shapes = tuple[tuple[int, ...], ...]
RowsOf = Callable[[Call], Iterable[Row]]
# (the global call, local shapes of its outputs) -> args and kwargs with local sizes
Localize = Callable[[Call, Shapes], tuple[tuple[Any, ...], dict[str, Any]]]


@dataclass(frozen=True, slots=True)
class LocalCall:
    """What a local implementation is handed: local tensors in the call's own arguments, and all it must know of the rest.

    `call` has the GLOBAL specs of operands and outputs; `strategy.needs` and `strategy.makes` place them on all axes.
    """

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    call: Call
    strategy: Strategy
    mesh: Mesh
    group: Collectives
    draw_seed: Callable[[], int]

    @property
    def seed(self) -> int:
        """Differs from op to op and from step to step, equal on all ranks. Only random ops ask: what changes with the step is compiled again."""
        return self.draw_seed()

    @property
    def shard(self) -> int:
        """Which shard of its first output this rank makes, for random numbers: equal on ranks that hold the same values."""
        return shard_number(self.strategy.makes[0], self.mesh, self.group.coordinate)

    def arg(self, position: int, name: str, default: Any = None) -> Any:
        """The argument at `position`, or by `name`, or its default; tensors are local."""
        if position < len(self.args):
            return self.args[position]
        return self.kwargs.get(name, default)

    def placed(self, operand: int) -> Placements:
        """The placements of an operand on all axes."""
        return self.strategy.needs[operand] or ()

    def axes(self, operand: int, dim: int) -> tuple[int, ...]:
        """The mesh axes that cut `dim` of an operand, outermost first."""
        return tuple(axis for axis, p in enumerate(self.placed(operand)) if isinstance(p, Shard) and p.dim == dim)

    def indices(self, operand: int, dim: int) -> Sequence[int]:
        """Which global indices of `dim` this rank's part of an operand holds, in order: a range where they are contiguous."""
        return self._held(self.call.operands[operand].shape[dim], self.placed(operand), dim)

    def output_indices(self, output: int, dim: int) -> Sequence[int]:
        """Which global indices of `dim` this rank's part of an output holds, in order: a range where they are contiguous."""
        return self._held(self.call.outputs[output].shape[dim], self.strategy.makes[output], dim)

    def output_shape(self, output: int) -> tuple[int, ...]:
        """The local shape of an output."""
        return local_shape(self.call.outputs[output].shape, self.strategy.makes[output], self.mesh)

    def _held(self, size: int, placements: Placements, dim: int) -> Sequence[int]:
        held: Sequence[int] = range(size)
        for placement, n, index in zip(placements, self.mesh.shape, self.group.coordinate, strict=True):
            if isinstance(placement, Shard) and placement.dim == dim:
                held = _part(held, placement.groups, n, index)
        return held


def _part(held: Sequence[int], groups: int, n: int, index: int) -> Sequence[int]:
    """What the rank at `index` of `n` keeps of each of the groups."""
    size = len(held) // (groups * n)
    parts = [held[(group * n + index) * size :][:size] for group in range(groups)]
    return parts[0] if groups == 1 else tuple(i for part in parts for i in part)


LocalImplementation = Callable[[LocalCall], Tensor | tuple[Tensor, ...]]


@dataclass(frozen=True, slots=True)
class Rule:
    """An op's rule: its rows beside the all-R row (which is the core's), and how its sizes become local.

    `runs_as` names the op that runs in its place on local tensors, with the arguments that `localize` gives, where the
    op itself cannot: `expand_as` reads its size off a tensor whose local size is another.
    """

    op: str
    rows: RowsOf
    localize: Localize | None
    doc: str
    runs_as: str | None = None

    @property
    def is_own(self) -> bool:
        """Whether it is autoplan's and not a user's."""
        return self.rows.__module__.startswith("autoplan.")

    @property
    def source(self) -> str:
        """The file and line of its function."""
        code = getattr(self.rows, "__code__", None)
        return f"{code.co_filename}:{code.co_firstlineno}" if code else self.rows.__module__


_RULES: dict[str, Rule] = {}
_TAGGED: dict[torch.Tag, RowsOf] = {}
_LOCALS: dict[str, LocalImplementation] = {}
_BY_DEFAULT_GENERATOR: dict[str, Callable[[Call], bool]] = {}
Function = TypeVar("Function", bound=Callable[..., Any])


def rule(*ops: str, localize: Localize | None = None, runs_as: str | None = None) -> Callable[[RowsOf], RowsOf]:
    """Register the decorated function as the rule of `ops` ("aten.linear", or with an overload).

    A second function for an op raises ValueError; the same one again, where its file is loaded again, takes its place.
    """

    def register(rows: RowsOf) -> RowsOf:
        for op in ops:
            if op in _RULES and not _same_source(_RULES[op].rows, rows):
                raise ValueError(f"{op} has a rule already")
            _RULES[op] = Rule(op, rows, localize, rows.__doc__ or "", runs_as)
        rule_of.cache_clear()
        return rows

    return register


def rule_of_tag(tag: torch.Tag) -> Callable[[RowsOf], RowsOf]:
    """Register the decorated function as the rule of every op that carries `tag` and has no rule of its own."""

    def register(rows: RowsOf) -> RowsOf:
        if tag in _TAGGED:
            raise ValueError(f"{tag} has a rule already")
        _TAGGED[tag] = rows
        rule_of.cache_clear()
        return rows

    return register


def local(name: str, *, by_default_generator: Callable[[Call], bool] | None = None) -> Callable[[LocalImplementation], LocalImplementation]:
    """Register the decorated function as the local implementation `name`; a second one raises ValueError, as for `rule`.

    `by_default_generator` tells of which calls it draws random numbers from the default generator, which is then seeded for it.
    """

    def register(implementation: LocalImplementation) -> LocalImplementation:
        if name in _LOCALS and not _same_source(_LOCALS[name], implementation):
            raise ValueError(f"local implementation {name} exists already")
        _LOCALS[name] = implementation
        if by_default_generator is not None:
            _BY_DEFAULT_GENERATOR[name] = by_default_generator
        return implementation

    return register


def _same_source(old: Callable[..., Any], new: Callable[..., Any]) -> bool:
    """Whether two functions are one, loaded twice: a user's file is loaded anew for every command."""
    codes = [getattr(function, "__code__", None) for function in (old, new)]
    places = [(code.co_filename, code.co_firstlineno, code.co_qualname) if code else None for code in codes]
    return None not in places and places[0] == places[1]


@cache
def rule_of(op: str) -> Rule | None:
    """The rule of "aten.linear.default" or "aten.linear", or that of a tag it carries; None where there is none."""
    return _RULES.get(op) or _RULES.get(op.rsplit(".", 1)[0]) or _rule_by_tag(op)


def _rule_by_tag(op: str) -> Rule | None:
    tags = _tags_of(op)
    if torch.Tag.nondeterministic_seeded in tags:
        return None
    return next((Rule(op, rows, None, rows.__doc__ or "") for tag, rows in _TAGGED.items() if tag in tags), None)


def is_random(op: str) -> bool:
    """Whether torch says that an op draws random numbers."""
    return torch.Tag.nondeterministic_seeded in _tags_of(op)


def _tags_of(op: str) -> Collection[torch.Tag]:
    target: Any = torch.ops
    for part in op.split("."):
        target = getattr(target, part, None)
    return getattr(target, "tags", ())


def local_implementation(name: str) -> LocalImplementation:
    """The local implementation registered as `name`."""
    return _LOCALS[name]


def draws_by_default_generator(name: str, call: Call) -> bool:
    """Whether the local implementation `name` of a call draws random numbers from the default generator."""
    return name in _BY_DEFAULT_GENERATOR and _BY_DEFAULT_GENERATOR[name](call)


def all_rules() -> tuple[Rule, ...]:
    """Every rule registered by name, by op name; pointwise ops known by their tag are not listed."""
    return tuple(_RULES[op] for op in sorted(_RULES))


__all__ = [
    "LocalCall", "Rule", "TensorSpec", "all_rules", "draws_by_default_generator", "local", "local_implementation", "rule", "rule_of",
    "rule_of_tag",
]  # fmt: skip
