"""What torch's own schema says about an op: its arguments by name, and which of them it writes to."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from functools import cache
from typing import Any

import torch
from torch._ops import OpOverload

from autoplan.graph.ir import Node


def resolve(op: str) -> OpOverload:
    """`aten.linear.default` as the callable op; raises AttributeError for an op that torch does not have.

    Looked up each time: a user's op that is registered again leaves the old one pointing to freed memory.
    """
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


_WRITES_STATISTICS = {"batch_norm": "training", "native_batch_norm": "training", "instance_norm": "use_input_stats"}


def written_arguments(target: OpOverload, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[int, ...]:
    """Positions of the arguments that a call writes to, empty for a functional op.

    Normalisations do not declare that they update their running statistics, which they do where the named argument is true.
    """
    if target.namespace == "aten" and short_name(target) in _WRITES_STATISTICS:
        bound = bind(target, args, kwargs)
        return (3, 4) if bound[_WRITES_STATISTICS[short_name(target)]] and bound["running_mean"] is not None else ()
    return _declared_writes(target)


def call_functional(target: Callable[..., Any], written: Collection[int], args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """What a call returns; arguments at the `written` positions are copied, and the copies are its further outputs."""
    own = [argument.clone() if position in written else argument for position, argument in enumerate(args)]
    result = target(*own, **kwargs)
    if not written:
        return result
    returned = result if isinstance(result, tuple | list) else (result,)
    return (*returned, *(own[position] for position in written))


@cache
def _declared_writes(target: OpOverload) -> tuple[int, ...]:
    return tuple(i for i, a in enumerate(target._schema.arguments) if a.alias_info is not None and a.alias_info.is_write)
