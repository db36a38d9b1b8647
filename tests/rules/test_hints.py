"""Group counts worth trying, and that the models that ship need no fallback."""

from __future__ import annotations

import time
from typing import Any

import pytest
import torch

from autoplan.graph.capture import capture
from autoplan.graph.ir import Graph
from autoplan.models import gpt2, llama
from autoplan.placement import Mesh
from autoplan.rules import call_of, rows_of, rule_of
from autoplan.rules.hints import group_hints

MESH = Mesh(("x", "y"), (2, 4))
SMALL: dict[str, Any] = {"dim": 64, "n_layers": 1, "n_heads": 8, "vocab_size": 96, "batch": 8, "seq": 16}


@pytest.fixture(scope="module")
def llama_graph() -> Graph:
    return capture(*llama.build(**SMALL, n_kv_heads=4, ffn_dim=96), mode="train")


@pytest.fixture(scope="module")
def gpt2_graph() -> Graph:
    return capture(*gpt2.build(**SMALL), mode="train")


def groups_at(graph: Graph, address: str, dim: int) -> set[int]:
    hints = group_hints(graph, MESH)
    value = next(value.id for value in graph.values if value.address == address)
    return set(hints[value][dim]) if value in hints else set()


def test_flattened_logits_are_cut_by_sequence_within_each_sample(llama_graph: Graph) -> None:
    assert {8, 4} <= groups_at(llama_graph, "head/flatten", 0)
    assert {8, 4} <= groups_at(llama_graph, "head/flatten#1", 0)


def test_a_fused_projection_and_its_weight_are_cut_within_each_third(gpt2_graph: Graph) -> None:
    assert 3 in groups_at(gpt2_graph, "layers.0.attn.qkv.weight", 1)
    assert 3 in groups_at(gpt2_graph, "layers.0.attn.qkv.bias", 0)


def test_values_without_groups_have_no_hints(llama_graph: Graph) -> None:
    assert groups_at(llama_graph, "layers.0.mlp.w1.weight", 0) == set()


def test_hints_are_fast_on_two_and_three_axes(llama_graph: Graph) -> None:
    for mesh in (MESH, Mesh(("x", "y", "z"), (2, 2, 2))):
        begin = time.process_time()
        group_hints(llama_graph, mesh)
        assert time.process_time() - begin < 2  # 0.1 and 0.35 s


def without_rule(graph: Graph) -> set[str]:
    return {node.op for node in graph.nodes if rule_of(node.op) is None}


def replicated_only(graph: Graph) -> set[str]:
    """Ops that every rank must do whole although they make a tensor that could be cut."""
    hints = group_hints(graph, MESH)
    nodes = [node for node in graph.nodes if any(max(graph.values[value].shape, default=1) > 1 for value in node.outputs)]
    return {node.address for node in nodes if len(rows_of(call_of(graph, node, hints, axis_size=2))) == 1}


def test_our_models_have_a_rule_for_every_op(llama_graph: Graph, gpt2_graph: Graph) -> None:
    assert without_rule(llama_graph) == without_rule(gpt2_graph) == set()
    assert replicated_only(llama_graph) == replicated_only(gpt2_graph) == set()


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_hugging_face_models_have_a_rule_for_every_op(name: str) -> None:
    transformers = pytest.importorskip("transformers")
    options: dict[str, Any] = {"vocab_size": 96, "use_cache": False, "attn_implementation": "sdpa", "bos_token_id": 0, "eos_token_id": 0}
    if name == "llama":
        sizes = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 1, "num_attention_heads": 8, "num_key_value_heads": 4}
        module = transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes, **options))
    else:
        module = transformers.GPT2LMHeadModel(transformers.GPT2Config(n_embd=64, n_layer=1, n_head=8, n_positions=32, **options))
    tokens = torch.randint(0, 96, (8, 16))
    graph = capture(module, (), {"input_ids": tokens, "labels": tokens.clone(), "use_cache": False}, mode="train")
    assert without_rule(graph) == set()
    assert replicated_only(graph) == set()
