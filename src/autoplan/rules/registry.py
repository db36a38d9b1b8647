"""The registry: which rule an op has, which local implementations exist, and how sizes among its arguments become local."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, TypeVar

from torch import Tensor

from autoplan.collectives import Collectives
from autoplan.placement import Mesh
from autoplan.rules.row import Call, Row, Strategy, TensorSpec

RowsOf = Callable[[Call], Iterable[Row]]
# (args, kwargs, local shapes of the outputs) -> args and kwargs with local sizes; operands may already be tensors in them.
Localize = Callable[[tuple[Any, ...], dict[str, Any], tuple[tuple[int, ...], ...]], tuple[tuple[Any, ...], dict[str, Any]]]


@dataclass(frozen=True, slots=True)
class LocalCall:
    """What a local implementation is handed: local tensors in the call's own arguments, and all it must know of the rest.

    `call` has the GLOBAL specs of operands and outputs; `strategy.needs` and `strategy.makes` place them on all axes.
    `node_id` and `step` are for random ops: the same on every rank.
    """

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    call: Call
    strategy: Strategy
    mesh: Mesh
    group: Collectives
    seed: int  # differs from op to op and from step to step, equal on all ranks

    def axes(self, operand: int, dim: int) -> tuple[int, ...]:
        """The mesh axes that cut `dim` of an operand, outermost first."""
        from autoplan.placement import Shard

        state = self.strategy.needs[operand] or ()
        return tuple(axis for axis, p in enumerate(state) if isinstance(p, Shard) and p.dim == dim)


LocalImplementation = Callable[[LocalCall], Tensor | tuple[Tensor, ...]]


@dataclass(frozen=True, slots=True)
class Rule:
    """An op's rule: its rows beside the all-R row (which is the core's), and how its sizes become local."""

    op: str
    rows: RowsOf
    localize: Localize | None
    doc: str
    deterministic: bool = True


_RULES: dict[str, Rule] = {}
_LOCALS: dict[str, LocalImplementation] = {}
Function = TypeVar("Function", bound=Callable[..., Any])


def rule(*ops: str, localize: Localize | None = None, deterministic: bool = True) -> Callable[[RowsOf], RowsOf]:
    """Register the decorated function as the rule of `ops` ("aten.linear", without overload); twice raises ValueError."""

    def register(rows: RowsOf) -> RowsOf:
        for op in ops:
            if op in _RULES:
                raise ValueError(f"{op} has a rule already")
            _RULES[op] = Rule(op, rows, localize, rows.__doc__ or "", deterministic)
        return rows

    return register


def local(name: str) -> Callable[[LocalImplementation], LocalImplementation]:
    """Register the decorated function as the local implementation `name`; twice raises ValueError."""

    def register(implementation: LocalImplementation) -> LocalImplementation:
        if name in _LOCALS:
            raise ValueError(f"local implementation {name} exists already")
        _LOCALS[name] = implementation
        return implementation

    return register


def rule_of(op: str) -> Rule | None:
    """The rule of "aten.linear.default" or "aten.linear"; None where there is none."""
    return _RULES.get(op) or _RULES.get(op.rsplit(".", 1)[0])


def local_implementation(name: str) -> LocalImplementation:
    """The local implementation registered as `name`."""
    return _LOCALS[name]


def all_rules() -> tuple[Rule, ...]:
    """Every rule, by op name."""
    return tuple(_RULES[op] for op in sorted(_RULES))


__all__ = ["LocalCall", "Rule", "TensorSpec", "all_rules", "local", "local_implementation", "rule", "rule_of"]
