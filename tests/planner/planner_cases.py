"""Small models with their requests, and the problems that planning them makes."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from autoplan.cost.hardware import load_hardware
from autoplan.graph import Graph
from autoplan.models import gpt2, llama, mlp
from autoplan.placement import parse_mesh
from autoplan.plan.schema import Options, Plan
from autoplan.planner.build import Built
from autoplan.planner.pipeline import PlanRequest, capture_for, plan_module
from autoplan.planner.remedies import problem_of

MLP: dict[str, Any] = {"dim": 64, "hidden_dim": 256, "n_layers": 3, "classes": 16, "batch": 32}
LLAMA: dict[str, Any] = {"dim": 64, "n_layers": 3, "n_heads": 4, "n_kv_heads": 2, "ffn_dim": 128, "vocab_size": 128, "batch": 8, "seq": 64}
GPT2: dict[str, Any] = {"dim": 64, "n_layers": 3, "n_heads": 4, "vocab_size": 128, "max_seq": 64, "batch": 8, "seq": 64}
Module = tuple[nn.Module, tuple[Any, ...], dict[str, Any]]


def mlp_module() -> Module:
    return mlp.build(**MLP)


def llama_module() -> Module:
    return llama.build(**LLAMA)


def gpt2_module() -> Module:
    return gpt2.build(**GPT2)


MODULES = {"mlp": mlp_module, "llama": llama_module, "gpt2": gpt2_module}


@cache
def module(name: str) -> Module:
    return MODULES[name]()


@cache
def graph_of(name: str) -> Graph:
    return capture_for(*module(name), request().options)


class NoRule(nn.Module):
    """A matrix inverse between two projections: an op without a rule."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Linear(8, 8)
        self.down = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(torch.linalg.inv(self.up(x))).square().mean() + torch.linalg.matrix_exp(x).mean()


def no_rule_module() -> Module:
    return NoRule(), (torch.randn(4, 8, 8),), {}


def request(mesh: str = "2x2", hardware: str = "cpu-gloo", memory_gib: float | None = None, **wanted: Any) -> PlanRequest:
    return PlanRequest(parse_mesh(mesh), load_hardware(hardware), Options(precision="fp32", memory_gib=memory_gib), **wanted)


def overlapping(mesh: str = "2x2", *, hides: float = 0.5, link: float = 1.0, **wanted: Any) -> PlanRequest:
    """A request for a machine that hides so much of what travels beside computing, on links so many times as fast."""
    plain = request(mesh, **wanted)
    links = plain.hardware.node_link
    faster = replace(
        links,
        latency_s=(links.latency_s[0] / link, links.latency_s[1] / link),
        bytes_per_s={kind: speed * link for kind, speed in links.bytes_per_s.items()},
    )
    return replace(plain, hardware=replace(plain.hardware, hides=hides, node_link=faster, digest=f"{hides} {link}"))


def planned(module: Module, wanted: PlanRequest) -> Plan:
    return plan_module(*module, wanted).plan


def built(module: Module, wanted: PlanRequest) -> Built:
    """The problem that `plan_module` would solve, without pins."""
    return problem_of(capture_for(*module, wanted.options), replace(wanted, pins=()))
