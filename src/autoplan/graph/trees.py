"""Names for the tensors inside nested inputs and outputs: `batch.tokens`, `logits`, `hidden.0`."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch.utils._pytree as pytree

from autoplan.errors import TargetError


def input_leaves(forward: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Every leaf of a call's arguments under its name: the parameter's, then the path inside it.

    Capture names `inputs/NAME` with it and the runtime finds its inputs with it, so both agree for a call that passes
    the same arguments by position or by keyword. Raises TargetError for arguments that `forward` does not take.
    """
    leaves: dict[str, Any] = {}
    for name, value in bound_arguments(forward, args, kwargs):
        flat, spec = pytree.tree_flatten(value)
        for path, leaf in zip(leaf_paths(spec), flat, strict=True):
            leaves[".".join((name, *path))] = leaf
    return leaves


def bound_arguments(forward: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """(name, value) of a call's arguments in the order of `forward`'s signature; `*args` give `args.0`, `args.1`, ..."""
    signature = inspect.signature(forward)
    try:
        bound = signature.bind(*args, **kwargs)
    except TypeError as error:
        raise TargetError(
            f"the example inputs do not match forward{signature}: {error}",
            next_step="return them from the factory as (module, args, kwargs)",
        ) from None
    named: list[tuple[str, Any]] = []
    for name, value in bound.arguments.items():
        kind = signature.parameters[name].kind
        if kind is inspect.Parameter.VAR_POSITIONAL:
            named += [(f"{name}.{i}", item) for i, item in enumerate(value)]
        elif kind is inspect.Parameter.VAR_KEYWORD:
            named += value.items()
        else:
            named.append((name, value))
    return named


def leaf_paths(spec: pytree.TreeSpec) -> list[tuple[str, ...]]:
    """The path of every leaf of a tree: keys of mappings and fields where the container has names, else indexes."""
    if spec.is_leaf():
        return [()]
    children = _children(spec)
    return [(key, *path) for key, child in zip(_keys(spec, len(children)), children, strict=True) for path in leaf_paths(child)]


def _keys(spec: pytree.TreeSpec, count: int) -> list[str]:
    context = spec.context
    headed = list(context) if isinstance(context, list | tuple) else []  # defaultdict and dataclasses nest their keys
    for keys in (context, *headed):
        if isinstance(keys, list | tuple) and len(keys) == count and all(isinstance(key, str | int) for key in keys):
            return [str(key) for key in keys]
    fields = getattr(context, "_fields", None)  # a named tuple's context is its type
    return list(fields) if fields is not None and len(fields) == count else [str(i) for i in range(count)]


def _children(spec: pytree.TreeSpec) -> list[pytree.TreeSpec]:
    children = getattr(spec, "children", None)  # torch 2.11 has only the attribute
    return children() if callable(children) else list(spec.children_specs)
