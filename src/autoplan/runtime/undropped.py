"""Dropout set to zero, in a captured graph and in a module that runs eagerly: both then compute the same."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from autoplan.graph.ir import Graph, Node
from autoplan.graph.ops import resolve

# The argument that holds the probability, by op; the functions of eager torch are those of the same names.
_PROBABILITY = {
    "aten.dropout": "p",
    "aten.native_dropout": "p",
    "aten.alpha_dropout": "p",
    "aten.feature_dropout": "p",
    "aten.scaled_dot_product_attention": "dropout_p",
}


def undropped(graph: Graph) -> Graph:
    """The graph without dropout."""
    return replace(graph, nodes=tuple(map(_undropped, graph.nodes)))


def _undropped(node: Node) -> Node:
    name = _PROBABILITY.get(node.name)
    if name is None:
        return node
    position = [argument.name for argument in resolve(node.op)._schema.arguments].index(name)
    if position < len(node.args):
        return replace(node, args=(*node.args[:position], 0.0, *node.args[position + 1 :]))
    return replace(node, kwargs={**node.kwargs, name: 0.0}) if name in node.kwargs else node


_DROPOUTS = {torch.dropout, torch.alpha_dropout, torch.feature_dropout, torch.feature_alpha_dropout, torch.native_dropout}
_ATTENTION = torch.nn.functional.scaled_dot_product_attention


class NoDropout(TorchFunctionMode):
    """Within it, eager dropout keeps everything, whether a module or a function calls for it."""

    def __torch_function__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None) -> Any:
        kwargs = dict(kwargs or {})
        if func in _DROPOUTS:
            args, kwargs = (args[0], 0.0, *args[2:]), {key: value for key, value in kwargs.items() if key not in ("p", "input")}
        elif func is _ATTENTION:
            args = (*args[:4], 0.0, *args[5:]) if len(args) > 4 else args
            kwargs.pop("dropout_p", None)
        return func(*args, **kwargs)
