"""Run a graph op by op on whole tensors: what one device computes, the reference for everything that is split."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from autoplan.graph.ir import Graph, Node, map_refs
from autoplan.graph.ops import call_functional, resolve, written_arguments


def run_graph(
    graph: Graph, tensors: Mapping[int, Tensor], *, device: torch.device | str = "cpu", also: Iterable[int] = ()
) -> dict[int, Tensor]:
    """The graph's outputs, its buffers' new values, and the values in `also`, by value number.

    `tensors` holds inputs, parameters, buffers and constants (see `tensors_of`). Gradients are recorded as in eager.
    """
    values = dict(tensors)
    for node in graph.nodes:
        args, kwargs = map_refs((node.args, node.kwargs), lambda ref: values[ref.value])
        values.update(zip(node.outputs, execute(node, args, kwargs, device=device), strict=True))
    return {value: values[value] for value in (*graph.outputs, *graph.mutations.values(), *also)}


def execute(node: Node, args: tuple[Any, ...], kwargs: Mapping[str, Any], *, device: torch.device | str = "cpu") -> tuple[Tensor, ...]:
    """One op on real tensors, as a function: arguments that it writes to are copied, and the copies are further outputs.

    The capture device in its arguments is replaced by `device`.
    """
    target = resolve(node.op)
    args, kwargs = on_device((tuple(args), dict(kwargs)), torch.device(device))
    result = call_functional(target, written_arguments(target, args, kwargs), args, kwargs)
    returned = [item for item in result if isinstance(item, Tensor)] if isinstance(result, list | tuple) else [result]
    return tuple(returned)[: len(node.outputs)]


def on_device(structure: Any, device: torch.device) -> Any:
    """An argument structure with every device in it replaced."""
    if isinstance(structure, torch.device):
        return device
    if isinstance(structure, tuple | list):
        return type(structure)(on_device(item, device) for item in structure)
    if isinstance(structure, dict):
        return {key: on_device(item, device) for key, item in structure.items()}
    return structure


def tensors_of(graph: Graph, module: nn.Module, inputs: Mapping[str, Any]) -> dict[int, Tensor]:
    """The tensors a graph of `module` starts from, by value number; `inputs` as `input_leaves` names them."""
    parameters = dict(module.named_parameters())
    buffers = dict(module.named_buffers(remove_duplicate=False))
    tensors: dict[int, Tensor] = {parameter.value: parameters[parameter.fqn] for parameter in graph.parameters}
    tensors.update({value: buffers[fqn] for fqn, value in graph.buffers.items()})
    tensors.update({value: inputs[graph.values[value].address.removeprefix("inputs/")] for value in graph.inputs})
    return {**tensors, **graph.constants}
