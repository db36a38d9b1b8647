"""Fingerprints: the same for the same computation, different for anything that a plan depends on."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from autoplan.graph import Graph, capture, cast_module, graph_digest, model_digest, model_signature


class Net(nn.Module):
    def __init__(self, width: int = 8, scale: float = 2.0, tie: bool = False, op: Callable[[Tensor], Tensor] = torch.relu) -> None:
        super().__init__()
        self.first = nn.Linear(width, width)
        self.second = nn.Linear(width, width)
        self.scale, self.op = scale, op
        if tie:
            self.second.weight = self.first.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.op(self.second(self.first(x) * self.scale)).sum()


def graph_of(module: nn.Module, batch: int = 4) -> Graph:
    return capture(module, (torch.ones(batch, module.first.in_features),), mode="train")  # type: ignore[union-attr, arg-type]


def test_two_captures_have_one_digest() -> None:
    assert graph_digest(graph_of(Net())) == graph_digest(graph_of(Net()))
    assert graph_digest(graph_of(Net())).startswith("sha256:")


@pytest.mark.parametrize(
    "changed",
    [Net(width=16), Net(scale=3.0), Net(tie=True), Net(op=torch.sigmoid), Net(op=lambda x: torch.relu(x) + x), Net(op=lambda x: x.mean(0))],
)
def test_the_graph_digest_sees_shapes_literals_ties_and_ops(changed: nn.Module) -> None:
    assert graph_digest(graph_of(changed)) != graph_digest(graph_of(Net()))


def test_the_graph_digest_sees_the_batch() -> None:
    assert graph_digest(graph_of(Net(), 4)) != graph_digest(graph_of(Net(), 8))


def test_the_graph_digest_ignores_detaches_devices_overloads_and_defaults() -> None:
    graph = graph_of(Net(op=lambda x: x * torch.arange(8) + torch.relu(x).detach()))
    assert any(node.name == "aten.detach" for node in graph.nodes)

    def written_otherwise(node: Any) -> Any:
        if node.name == "aten.arange":
            return dataclasses.replace(node, kwargs={**node.kwargs, "device": torch.device("meta"), "pin_memory": None})
        if node.name == "aten.add":
            return dataclasses.replace(node, kwargs={"alpha": 1})
        if node.name == "aten.linear":
            return dataclasses.replace(node, args=node.args[:2], kwargs={"bias": node.args[2]})
        return node

    other = dataclasses.replace(graph, nodes=tuple(map(written_otherwise, graph.nodes)))
    assert graph_digest(other) == graph_digest(graph)
    (detach,) = [node for node in graph.nodes if node.name == "aten.detach"]
    assert graph_digest(graph_of(Net(op=lambda x: x * torch.arange(8) + torch.relu(x)))) == graph_digest(graph), detach


def test_the_model_digest_sees_names_shapes_dtypes_ties_and_training() -> None:
    frozen = Net()
    frozen.first.bias.requires_grad_(False)
    nets = [Net(), Net(width=16), Net(tie=True), Net().double(), frozen]
    assert len({model_digest(net) for net in nets}) == len(nets)
    assert model_digest(Net()) == model_digest(Net().to("meta"))


def test_the_model_signature_is_a_sorted_line_a_parameter() -> None:
    assert model_signature(Net(tie=True)) == (
        "first.bias [8] float32 trained",
        "first.weight [8, 8] float32 trained second.weight",
        "second.bias [8] float32 trained",
    )


def test_casting_copies_no_weights_and_leaves_the_module_and_its_buffers() -> None:
    class Scaled(Net):
        table: Tensor

        def __init__(self) -> None:
            super().__init__(tie=True)
            self.register_buffer("table", torch.arange(8.0), persistent=False)

        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x * self.table.to(x.dtype))

    module = Scaled()
    twin, (x,), kwargs = cast_module(module, (torch.ones(4, 8),), {"ids": torch.ones(2, dtype=torch.long)}, torch.bfloat16)
    assert {p.dtype for p in module.parameters()} == {torch.float32}
    assert {(p.dtype, p.device.type) for p in twin.parameters()} == {(torch.bfloat16, "meta")}
    assert twin.table is module.table and x.dtype == torch.bfloat16 and kwargs["ids"].dtype == torch.int64
    assert twin.second.weight is twin.first.weight
    graph = capture(twin, (x,), mode="train")
    assert {graph.values[p.value].dtype for p in graph.parameters} == {"bfloat16"}
    assert {graph.values[v].dtype for v in graph.buffers.values()} == {"float32"}
