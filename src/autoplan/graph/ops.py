"""What torch's own schema says about an op: its arguments by name, and which of them it writes to."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

import torch
from torch._ops import OpOverload

from autoplan.graph.ir import Node


@cache
def resolve(op: str) -> OpOverload:
    """`aten.linear.default` as the callable op; raises AttributeError for an op that torch does not have."""
    namespace, name, overload = op.split(".")
    return getattr(getattr(getattr(torch.ops, namespace), name), overload)


def op_name(target: OpOverload) -> str:
    """The callable op as a graph writes it: `aten.linear.default`."""
    return f"{target.namespace}.{short_name(target)}.{target._overloadname}"


def short_name(target: OpOverload) -> str:
    """The op without namespace and overload: `linear`."""
    return target._schema.name.split("::")[-1]


def arguments(node: Node) -> dict[str, Any]:
    """Every argument of the call by its name in the op's schema, defaults filled in: one form for all ways to call it."""
    return bind(resolve(node.op), node.args, node.kwargs)


def bind(target: OpOverload, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of a call by schema name, in schema order, defaults filled in."""
    bound: dict[str, Any] = {}
    for position, argument in enumerate(target._schema.arguments):
        if position < len(args):
            bound[argument.name] = args[position]
        elif argument.name in kwargs:
            bound[argument.name] = kwargs[argument.name]
        else:
            bound[argument.name] = argument.default_value if argument.has_default_value() else None
    return bound


@cache
def written_arguments(target: OpOverload) -> tuple[int, ...]:
    """Positions of the arguments the op writes to, empty for a functional op.

    `batch_norm` does not declare that it updates its running statistics, so it is listed here.
    """
    if short_name(target) == "batch_norm" and target.namespace == "aten":
        return (3, 4)
    return tuple(i for i, a in enumerate(target._schema.arguments) if a.alias_info is not None and a.alias_info.is_write)
