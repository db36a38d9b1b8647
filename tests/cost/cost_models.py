"""Captured models and assignments of them made without a solver."""

from __future__ import annotations

from typing import Any

import torch

from autoplan.assignment import Assignment
from autoplan.graph import Graph, capture
from autoplan.models import gpt2, llama
from autoplan.placement import Mesh, Placement, Placements, R, Replicate, S
from autoplan.rules import call_of, strategies_of
from autoplan.rules.row import Strategy

TINY_LLAMA = {"dim": 32, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2, "ffn_dim": 64, "vocab_size": 96, "batch": 4, "seq": 16}
TINY_GPT2 = {"dim": 32, "n_layers": 2, "n_heads": 4, "vocab_size": 96, "max_seq": 16, "batch": 4, "seq": 16, "dropout": 0.0}
TRUTH_MODELS = {
    "1b": {"dim": 2048, "n_layers": 16, "n_heads": 16, "n_kv_heads": 8, "ffn_dim": 8192, "batch": 8, "seq": 4096},
    "8b_l8": {"dim": 4096, "n_layers": 8, "n_heads": 32, "n_kv_heads": 8, "ffn_dim": 14336, "batch": 4, "seq": 8192},
    "tiny": {"dim": 1024, "n_layers": 8, "n_heads": 8, "n_kv_heads": 8, "ffn_dim": 4096, "vocab_size": 32000, "batch": 4, "seq": 1024},
}


def captured(family: Any, settings: dict[str, Any], dtype: torch.dtype = torch.bfloat16, mode: Any = "train") -> Graph:
    with torch.device("meta"):
        module, args, kwargs = family.build(**settings)
    return capture(module.to(dtype), args, kwargs, mode=mode)


def llama_graph(**changes: Any) -> Graph:
    return captured(llama, TINY_LLAMA | changes)


def gpt2_graph(**changes: Any) -> Graph:
    return captured(gpt2, TINY_GPT2 | changes)


def replicated(graph: Graph, mesh: Mesh) -> Assignment:
    """Everything on every device."""
    whole: Placements = tuple(R for _ in mesh.shape)
    strategies = tuple(strategies_of(call_of(graph, node), mesh)[0] for node in graph.nodes)
    sources = {value.id: whole for value in graph.values if value.kind != "op"}
    return Assignment(graph, mesh, strategies, sources, tuple(whole for _ in graph.outputs))


def data_parallel(graph: Graph, mesh: Mesh, *, sharded: bool) -> Assignment:
    """The batch split over one axis; parameters stored whole, or cut along their first dim that divides."""
    assert mesh.ndim == 1
    n = mesh.size
    cut: dict[int, Placement] = dict.fromkeys(graph.inputs, S(0))
    strategies: list[Strategy] = []
    for node in graph.nodes:
        wanted = [cut.get(value, R) for value in node.inputs]
        candidates = strategies_of(call_of(graph, node), mesh)
        chosen = next(
            s for s in candidates if not any(s.partial) and all(p is None or p == w for p, w in zip(s.rows[0].ins, wanted, strict=True))
        )
        strategies.append(chosen)
        cut.update(
            (value, state[0]) for value, state in zip(node.outputs, chosen.makes, strict=True) if not isinstance(state[0], Replicate)
        )

    def stored(shape: tuple[int, ...]) -> Placements:
        dim = next((d for d, size in enumerate(shape) if size % n == 0), None)
        return (S(dim),) if sharded and dim is not None else (R,)

    sources: dict[int, Placements] = {}
    for value in graph.values:
        if value.kind == "input":
            sources[value.id] = (S(0),)
        elif value.kind != "op":
            sources[value.id] = stored(value.shape) if value.kind == "parameter" else (R,)
    return Assignment(graph, mesh, tuple(strategies), sources, tuple((R,) for _ in graph.outputs))
