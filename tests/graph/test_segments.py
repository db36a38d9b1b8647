"""Copies of blocks as stretches of the graph, and what passes their borders."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from autoplan.graph import Graph, capture, find_blocks, foldable_prefixes
from autoplan.graph.segments import find_segments
from autoplan.models.llama import build as build_llama


def segments_of(graph: Graph) -> list[tuple[str, list[str], list[str], list[str]]]:
    found = find_segments(graph, foldable_prefixes(find_blocks(graph)))
    return [(s.name, *([graph.values[v].address for v in vs] for vs in (s.own_inputs, s.shared_inputs, s.outputs))) for s in found]  # type: ignore[misc]


def test_a_llama_layer_reads_the_layer_before_it_and_nothing_else_that_is_computed() -> None:
    with torch.device("meta"):
        module, args, kwargs = build_llama(dim=32, n_layers=3, n_heads=4, n_kv_heads=2, ffn_dim=48, vocab_size=64, batch=4, seq=16)
    graph = capture(module, args, kwargs, mode="train")
    found = segments_of(graph)
    assert [name for name, *_ in found] == ["layers.0", "layers.1", "layers.2"]
    for index, (_, own, _, outputs) in enumerate(found):
        assert own == (["embed/embedding"] if index == 0 else found[index - 1][3])
        assert len(outputs) == 1 and outputs[0].startswith(f"layers.{index}/add")
    covered = [graph.nodes[i] for s in find_segments(graph, ("layers",)) for i in s.nodes]
    assert {node.module.split(".")[0] for node in covered} == {"layers"}
    assert len(covered) == sum(node.module.startswith("layers.") for node in graph.nodes)


class Skips(nn.Module):
    """Every layer reads a position that all share; the sum of all outputs leaves."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(4, 4) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        position = x.cos()
        total = x
        for layer in self.layers:
            x = layer(x)
            total = total + x * position
        return total


def test_what_others_read_too_is_a_shared_input() -> None:
    graph = capture(Skips(), (torch.ones(2, 4),), mode="infer")
    found = segments_of(graph)
    assert [(own, shared) for _, own, shared, _ in found] == [
        ([], ["inputs/x"]),
        ([], ["layers.0/linear"]),
        ([], ["layers.1/linear"]),
    ]


class Twice(nn.Module):
    """The layers run twice: a copy's ops are not together."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(4, 4) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(2):
            for layer in self.layers:
                x = layer(x)
        return x


def test_a_copy_with_gaps_is_no_segment() -> None:
    assert segments_of(capture(Twice(), (torch.ones(2, 4),), mode="infer")) == []
