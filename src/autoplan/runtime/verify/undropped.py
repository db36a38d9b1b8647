"""Dropout set to zero, in a captured graph and in a module that runs eagerly: both then compute the same.

Models that drop whole branches (stochastic depth) compare uniform random numbers with a probability of their own: these are
all one half then.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
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
# What has the same arguments and rows and gives one number everywhere.
_UNIFORM = {"aten.rand.default": "aten.full.default", "aten.rand_like.default": "aten.full_like.default"}
HALF = 0.5


def undropped(graph: Graph) -> Graph:
    """The graph without dropout, its uniform random numbers one half."""
    return replace(graph, nodes=tuple(map(_undropped, graph.nodes)))


def _undropped(node: Node) -> Node:
    if node.op in _UNIFORM:
        return replace(node, op=_UNIFORM[node.op], args=(node.args[0], HALF))
    name = _PROBABILITY.get(node.name)
    if name is None:
        return node
    position = [argument.name for argument in resolve(node.op)._schema.arguments].index(name)
    if position < len(node.args):
        return replace(node, args=(*node.args[:position], 0.0, *node.args[position + 1 :]))
    return replace(node, kwargs={**node.kwargs, name: 0.0}) if name in node.kwargs else node


# Functions that take (input, p, ...): those of nn.functional are seen before the torch functions that they call.
_DROPOUTS = {
    *(torch.dropout, torch.alpha_dropout, torch.feature_dropout, torch.feature_alpha_dropout, torch.native_dropout),
    *(F.dropout, F.dropout1d, F.dropout2d, F.dropout3d, F.alpha_dropout, F.feature_alpha_dropout),
}


class NoDropout(TorchFunctionMode):
    """Within it, eager dropout keeps everything, whether a module or a function calls for it, and uniform numbers are one half."""

    def __torch_function__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None) -> Any:
        kwargs = dict(kwargs or {})
        if func in _DROPOUTS:
            args, kwargs = _with(args, kwargs, 1, "p", 0.0)
        elif func is F.scaled_dot_product_attention:
            args, kwargs = _with(args, kwargs, 4, "dropout_p", 0.0)
        elif func is F.multi_head_attention_forward:
            kwargs["training"] = False  # it asks for dropout and for nothing else
        result = func(*args, **kwargs)
        return result.fill_(HALF) if func in (torch.rand, torch.rand_like) else result


def _with(args: tuple[Any, ...], kwargs: dict[str, Any], position: int, name: str, value: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments with one of them replaced."""
    if position < len(args):
        return (*args[:position], value, *args[position + 1 :]), kwargs
    return args, {**kwargs, name: value}
