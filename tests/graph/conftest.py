"""The reference for captured graphs: eager torch."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from autoplan.graph import Graph, capture, input_leaves, run_graph, tensors_of

SameAsEager = Callable[..., Graph]


@pytest.fixture
def same_as_eager() -> SameAsEager:
    """Captures, runs graph and module on the same tensors, asserts equal loss, gradients and buffers; gives the graph."""
    return _same_as_eager


def _same_as_eager(module: nn.Module, *args: Any, **kwargs: Any) -> Graph:
    module.train()
    graph = capture(module, args, kwargs, mode="train")
    twin = copy.deepcopy(module)

    output = module(*args, **kwargs)
    loss = output if isinstance(output, Tensor) else output["loss"] if isinstance(output, dict) else output[0]
    loss.backward()

    inputs = input_leaves(twin.forward, args, kwargs)
    every_value = range(len(graph.values))
    values = run_graph(graph, tensors_of(graph, twin, inputs), also=every_value) if graph.nodes else {}
    assert graph.loss is not None
    values[graph.loss].backward()

    torch.testing.assert_close(values[graph.loss], loss)
    for (fqn, expected), (_, found) in zip(module.named_parameters(), twin.named_parameters(), strict=True):
        assert (expected.grad is None) == (found.grad is None), fqn
        if expected.grad is not None:
            torch.testing.assert_close(found.grad, expected.grad)
    overwritten = {fqn: values[value] for fqn, value in graph.mutations.items()}
    for fqn, buffer in module.named_buffers():
        if fqn in overwritten:
            torch.testing.assert_close(overwritten[fqn], buffer)
    for value in graph.values:
        tensor = values[value.id]
        assert tuple(tensor.shape) == value.shape and str(tensor.dtype) == f"torch.{value.dtype}", value
        assert not value.needs_grad or tensor.requires_grad, value
    return graph
