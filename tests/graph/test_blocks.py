"""Which parts of a model are copies of each other."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from autoplan.graph import Graph, capture, classes, find_blocks, foldable_prefixes
from autoplan.models.llama import build as build_llama


def runs(graph: Graph) -> list[tuple[str, tuple[int, ...]]]:
    return [(run.prefix, run.indices) for run in find_blocks(graph)]


def llama(**options: Any) -> Graph:
    small = dict(dim=32, n_layers=4, n_heads=4, n_kv_heads=2, ffn_dim=48, vocab_size=64, batch=4, seq=16)
    with torch.device("meta"):
        module, args, kwargs = build_llama(**{**small, **options})
    return capture(module, args, kwargs, mode="train")


def of(module: nn.Module, *args: Tensor) -> Graph:
    return capture(module, args, mode="infer")


def test_the_layers_of_a_llama_are_one_run_aligned_by_position() -> None:
    graph = llama()
    (run,) = find_blocks(graph)
    assert (run.prefix, run.indices, run.count, run.pattern) == ("layers", (0, 1, 2, 3), 4, "layers.{0-3}")
    for aligned in zip(*run.nodes, strict=True):
        relative = {graph.nodes[node].address.split(".", 2)[-1].partition("/")[2] for node in aligned}
        assert len(relative) == 1
    assert [copy[0] for copy in run.parameters] == [f"layers.{i}.attn_norm.weight" for i in range(4)]
    assert foldable_prefixes([run]) == {"layers"}


def test_classes_join_aligned_nodes_and_values_and_leave_others_alone() -> None:
    graph = llama()
    blocks = find_blocks(graph)
    folded = classes(graph, blocks)
    assert len(folded.node_members) == len(graph.nodes) - 3 * len(blocks[0].nodes[0])
    wq = folded.parameter_class["layers.0.attn.wq.weight"]
    assert wq == folded.parameter_class["layers.3.attn.wq.weight"] != folded.parameter_class["layers.0.attn.wk.weight"]
    assert [graph.values[v].address for v in folded.value_members[wq]] == [f"layers.{i}.attn.wq.weight" for i in range(4)]
    for number, cls in enumerate(folded.node_class):
        assert number in folded.node_members[cls]
        outputs = [graph.nodes[n].outputs for n in folded.node_members[cls]]
        assert all(len({folded.value_class[v] for v in aligned}) == 1 for aligned in zip(*outputs, strict=True))
    assert folded.node_representatives == tuple(members[0] for members in folded.node_members)


def test_without_blocks_everything_is_its_own_class() -> None:
    graph = llama()
    folded = classes(graph, ())
    assert folded.node_class == tuple(range(len(graph.nodes))) and folded.value_class == tuple(range(len(graph.values)))


def test_different_layers_in_a_sequential_are_no_run() -> None:
    assert runs(of(nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8)), torch.ones(2, 8))) == []


def test_equal_neighbours_in_a_sequential_are_a_run() -> None:
    body = nn.Sequential(nn.Linear(8, 16), nn.Linear(16, 16), nn.Linear(16, 16), nn.Linear(16, 8))
    assert runs(of(body, torch.ones(2, 8))) == [("", (1, 2))]


class Stack(nn.Module):
    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return x


def test_a_copy_of_another_size_ends_the_run() -> None:
    def block(width: int) -> nn.Module:
        return nn.Sequential(nn.Linear(8, width), nn.ReLU(), nn.Linear(width, 8))

    graph = of(Stack(*map(block, (16, 16, 32, 16, 16, 16))), torch.ones(2, 8))
    assert runs(graph) == [("layers", (0, 1)), ("layers", (3, 4, 5))]


def test_a_frozen_copy_ends_the_run() -> None:
    class Loss(Stack):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x).sum()

    stack = Loss(*(nn.Linear(8, 8) for _ in range(4)))
    stack.layers[2].weight.requires_grad_(False)
    # 0 reads an input, which needs no gradient; the others read what does
    assert runs(capture(stack, (torch.ones(2, 8),), mode="train")) == []


def test_copies_in_stages_are_found_one_level_down() -> None:
    def stage(width: int, depth: int) -> nn.Module:
        return Stack(*(nn.Linear(width, width) for _ in range(depth)))

    graph = of(Stack(stage(8, 3), nn.Linear(8, 16), stage(16, 2)), torch.ones(2, 8))
    assert runs(graph) == [("layers.0.layers", (0, 1, 2)), ("layers.2.layers", (0, 1))]


def test_blocks_that_read_their_inputs_in_another_pattern_differ() -> None:
    class Adds(nn.Module):
        def __init__(self, same: bool) -> None:
            super().__init__()
            self.same = same

        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return x + (x if self.same else y)

    class Pairs(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList(Adds(same) for same in (True, True, False, False))

        def forward(self, x: Tensor) -> Tensor:
            y = x * 2
            for layer in self.layers:
                x = layer(x, y)
            return x

    assert runs(of(Pairs(), torch.ones(2, 8))) == [("layers", (0, 1)), ("layers", (2, 3))]


def test_blocks_of_hugging_face_models() -> None:
    transformers = pytest.importorskip("transformers")
    tokens = torch.zeros(4, 16, dtype=torch.long)
    inputs = {"input_ids": tokens, "labels": tokens}
    with torch.device("meta"):
        gpt2 = transformers.GPT2LMHeadModel(
            transformers.GPT2Config(n_layer=3, n_embd=32, n_head=4, vocab_size=64, bos_token_id=0, eos_token_id=1)
        )
        t5 = transformers.T5ForConditionalGeneration(
            transformers.T5Config(num_layers=3, d_model=32, d_kv=8, d_ff=64, num_heads=4, vocab_size=64, decoder_start_token_id=0)
        )
    assert runs(capture(gpt2, (), {**inputs, "use_cache": False}, mode="train")) == [("transformer.h", (0, 1, 2))]
    # the first block of a T5 stack makes the position bias that the others read
    graph = capture(t5, (), {**inputs, "use_cache": False}, mode="train")
    assert runs(graph) == [("encoder.block", (1, 2)), ("decoder.block", (1, 2))]
    (tied,) = [parameter for parameter in graph.parameters if parameter.aliases]
    assert set(tied.aliases) >= {"encoder.embed_tokens.weight", "decoder.embed_tokens.weight"}
