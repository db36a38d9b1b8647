"""Fingerprints that say whether a plan was made for this model and this graph.

Both are equal on every torch version that captures the same computation: only what the computation means goes in.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn

from autoplan.graph.ir import Graph, Node, Ref, Value
from autoplan.graph.ops import arguments, resolve

_ABOUT_THE_MACHINE = frozenset({"device", "layout", "pin_memory", "non_blocking", "copy", "generator", "cudnn_enable", "cudnn_enabled"})
_SKIPPED = frozenset({"aten.detach", "aten.alias"})


def model_digest(module: nn.Module) -> str:
    """`sha256:...` of the module's parameters: `model_signature`, line by line."""
    return _sha256(model_signature(module))


def model_signature(module: nn.Module) -> tuple[str, ...]:
    """One line per parameter, sorted: FQN, shape, dtype, whether it trains, the names tied to it.

    Of the module as the factory made it: dtypes are those before any cast to the plan's precision, so that plans of one
    model in two precisions agree.
    """
    names: dict[int, list[str]] = defaultdict(list)
    for fqn, parameter in module.named_parameters(remove_duplicate=False):
        names[id(parameter)].append(fqn)
    lines = []
    for fqn, parameter in module.named_parameters():
        tied = sorted(name for name in names[id(parameter)] if name != fqn)
        dtype = str(parameter.dtype).removeprefix("torch.")
        lines.append(
            f"{fqn} {list(parameter.shape)} {dtype} {'trained' if parameter.requires_grad else 'frozen'} {' '.join(tied)}".rstrip()
        )
    return tuple(sorted(lines))


def graph_digest(graph: Graph) -> str:
    """`sha256:...` of the computation: every op's address, name, arguments and result, inputs named by address.

    Left out is what differs between torch versions or devices and does not change what a plan means: detaches and
    aliases (who reads them reads the original), overload names, arguments that have their default, devices, layouts.
    """
    return _sha256(_lines(graph))


def _lines(graph: Graph) -> Iterable[str]:
    names = _canonical_names(graph)
    for value in graph.values:
        if value.kind in ("input", "parameter", "buffer"):
            yield f"{value.kind} {value.address} {_type(value)}"
    for node in graph.nodes:
        if node.name not in _SKIPPED:
            results = ", ".join(_type(graph.values[output]) for output in node.outputs)
            yield f"{node.address} = {node.name}({_canonical_arguments(node, names)}) -> {results}"
    yield "outputs " + ", ".join(names[output] for output in graph.outputs)
    yield "loss " + ("none" if graph.loss is None else names[graph.loss])
    yield from sorted(f"{fqn} becomes {names[value]}" for fqn, value in graph.mutations.items())


def _canonical_names(graph: Graph) -> dict[int, str]:
    """What every value is called: its address, a constant's type, and for a detached value the original's name."""
    names = {value.id: value.address for value in graph.values}
    names.update({value.id: f"constant {_type(value)}" for value in graph.values if value.kind == "constant"})
    for node in graph.nodes:
        if node.name in _SKIPPED:
            names[node.outputs[0]] = names[node.inputs[0]]
    return names


def _canonical_arguments(node: Node, names: Mapping[int, str]) -> str:
    defaults = {argument.name: argument.default_value for argument in resolve(node.op)._schema.arguments if argument.has_default_value()}
    given = arguments(node).items()
    kept = [
        (name, value)
        for name, value in given
        if name not in _ABOUT_THE_MACHINE and value is not None and not _same(value, defaults.get(name))
    ]
    return ", ".join(f"{name}={_text(value, names)}" for name, value in kept)


def _same(value: Any, default: Any) -> bool:
    if isinstance(value, tuple | list) and isinstance(default, tuple | list):
        return list(value) == list(default)
    return type(value) is type(default) and bool(value == default)


def _text(value: Any, names: Mapping[int, str]) -> str:
    if isinstance(value, Ref):
        return names[value.value]
    if isinstance(value, tuple | list):
        return "[" + ", ".join(_text(item, names) for item in value) + "]"
    if isinstance(value, torch.dtype):
        return str(value).removeprefix("torch.")
    return repr(value)


def _type(value: Value) -> str:
    return f"{value.dtype}{list(value.shape)}"


def _sha256(lines: Iterable[str]) -> str:
    return "sha256:" + hashlib.sha256("\n".join(lines).encode()).hexdigest()
