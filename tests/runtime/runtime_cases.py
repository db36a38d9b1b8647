"""Small models, random and hand-made assignments, and plans of them. Jobs for worker processes live here: they must import."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from functools import cache
from random import Random
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from autoplan.assignment import Assignment, encode
from autoplan.assignment.gathers import gather_groups
from autoplan.graph import Graph, capture, cast_module, find_blocks, foldable_prefixes, graph_digest, model_digest
from autoplan.graph.segments import Segment
from autoplan.load import Built
from autoplan.models import gpt2, llama
from autoplan.placement import Mesh, Placement, Placements, R, Shard, fits, parse_placement
from autoplan.plan.schema import HardwareInfo, ModelInfo, Options, Plan, Predicted, SolverInfo
from autoplan.rules import Strategy, call_of, strategies_of
from autoplan.rules.hints import group_hints
from autoplan.runtime.prepare import COMPUTE_DTYPE

TINY_LLAMA = {"dim": 32, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2, "ffn_dim": 48, "vocab_size": 64, "batch": 4, "seq": 16}
TINY_GPT2 = {"dim": 32, "n_layers": 2, "n_heads": 4, "vocab_size": 64, "batch": 4, "seq": 16}


@dataclass(frozen=True, eq=False)
class Seeded:
    """A factory called with a fixed seed, here and in workers."""

    factory: Callable[..., Any]
    settings: Mapping[str, Any] = field(default_factory=dict)

    def __call__(self) -> Built:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            module, args, *rest = self.factory(**self.settings)
        return Built(module, args, rest[0] if rest else {})


TINY = Seeded(llama.build, TINY_LLAMA)
TIED = Seeded(llama.build, TINY_LLAMA | {"tie": True})


def mesh_of(*shape: int) -> Mesh:
    return Mesh(tuple("xyz"[: len(shape)]), shape)


def placements(text: str) -> Placements:
    """`"S(0) R"` as placements."""
    return tuple(parse_placement(part) for part in text.split())


@cache
def graph_of(build: Seeded, dtype: torch.dtype = torch.float32, mode: str = "train") -> Graph:
    model = build()
    module, args, kwargs = cast_module(model.module, model.args, model.kwargs, dtype)
    return capture(module, args, kwargs, mode=mode)  # type: ignore[arg-type]


def random_assignment(graph: Graph, mesh: Mesh, seed: int) -> Assignment:
    """A random strategy for every node, and random plain shards for what no node makes."""
    random = Random(seed)
    hints = group_hints(graph, mesh)
    strategies = tuple(random.choice(strategies_of(call_of(graph, node, hints), mesh)) for node in graph.nodes)
    whole = tuple(R for _ in mesh.shape)
    overwritten = {graph.buffers[fqn] for fqn in graph.mutations}
    sources = {
        value.id: whole if value.kind == "constant" or value.id in overwritten else random_state(value.shape, mesh, random)
        for value in graph.values
        if value.kind != "op"
    }
    outputs = tuple(whole if value == graph.loss else random_state(graph.values[value].shape, mesh, random) for value in graph.outputs)
    return Assignment(graph, mesh, strategies, sources, outputs)


def random_state(shape: tuple[int, ...], mesh: Mesh, random: Random) -> Placements:
    choices: list[Placement] = [R, *(Shard(dim) for dim in range(len(shape)))]
    while True:
        state = tuple(random.choice(choices) if n > 1 else R for n in mesh.shape)
        if fits(shape, state, mesh):
            return state


def assign(graph: Graph, mesh: Mesh, rows: Mapping[str, str], sources: Mapping[str, str]) -> Assignment:
    """Decisions by hand: for addresses the strategy as plans write it (else the first), for values their placements (else R)."""
    whole = tuple(R for _ in mesh.shape)
    strategies = tuple(_chosen(graph, node, mesh, rows.get(node.address)) for node in graph.nodes)
    states = {
        value.id: placements(sources[value.address]) if value.address in sources else whole for value in graph.values if value.kind != "op"
    }
    return Assignment(graph, mesh, strategies, states, tuple(whole for _ in graph.outputs))


def _chosen(graph: Graph, node: Any, mesh: Mesh, wanted: str | None) -> Strategy:
    found = strategies_of(call_of(graph, node, group_hints(graph, mesh)), mesh)
    return found[0] if wanted is None else next(strategy for strategy in found if strategy.describe(mesh) == wanted)


def plan_of(
    assignment: Assignment,
    module: nn.Module,
    *,
    target: str = "module:build",
    settings: Mapping[str, Any] | None = None,
    recomputed: Collection[Segment] = (),
    **options: Any,
) -> Plan:
    """The plan that says `assignment`, its gathers as `recomputed` needs them; predictions are nought."""
    graph = assignment.graph
    prefixes = foldable_prefixes(find_blocks(graph))
    decisions = encode(assignment, gather_groups(assignment, prefixes, recomputed=recomputed), prefixes)
    mode = "infer" if graph.loss is None else "train"
    return Plan(
        model=ModelInfo(target, sum(p.numel() for p in module.parameters()), model_digest(module), graph_digest(graph), settings or {}),
        mesh=assignment.mesh,
        hardware=HardwareInfo("none", "sha256:0"),
        options=Options(**({"mode": mode, "precision": "fp32"} | options)),
        inputs=decisions.inputs,
        outputs=decisions.outputs,
        params=decisions.params,
        buffers=decisions.buffers,
        ops=decisions.ops,
        reshard=decisions.reshard,
        gather=decisions.gather,
        predicted=Predicted(),
        solver=SolverInfo("random"),
    )


def random_plan(build: Seeded, mesh: Mesh, seed: int, *, mode: str = "train", **options: Any) -> Plan:
    dtype = COMPUTE_DTYPE[options.get("precision", "fp32")]
    return plan_of(random_assignment(graph_of(build, dtype, mode), mesh, seed), build().module, **options)


class TwoUses(nn.Module):
    """A weight used twice, in a product and its transpose's."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.randn(16, 8))

    def forward(self, x: Tensor) -> Tensor:
        return (F.linear(torch.relu(F.linear(x, self.w)), self.w.t()) * x).square().mean()


def two_uses() -> tuple[nn.Module, tuple[Tensor, ...]]:
    return TwoUses(), (torch.randn(12, 8),)


class Odds(nn.Module):
    """A frozen weight, an unused one, batch statistics, dropout and a constant."""

    def __init__(self, p: float = 0.5) -> None:
        super().__init__()
        self.frozen = nn.Linear(8, 16)
        self.frozen.requires_grad_(False)
        self.unused = nn.Parameter(torch.randn(4))
        self.norm = nn.BatchNorm1d(16)
        self.head = nn.Linear(16, 8)
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.frozen(x))
        x = F.dropout(F.gelu(x), self.p, self.training)
        return (self.head(x) * torch.tensor([1.0, 2.0] * 4)).square().mean()


def odds(p: float = 0.5) -> tuple[nn.Module, tuple[Tensor, ...]]:
    return Odds(p), (torch.randn(12, 8),)


GPT2 = Seeded(gpt2.build, TINY_GPT2)
