"""Models that people write themselves: mixtures of experts in their usual forms, and a small convolutional net."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Built = tuple[nn.Module, tuple[Any, ...]]
DIM, HIDDEN, EXPERTS, TOP_K, CLASSES = 32, 64, 4, 2, 16


class Router(nn.Module):
    """Scores and ids of the experts of each token: [tokens, TOP_K] both."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Linear(DIM, EXPERTS, bias=False)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        scores, ids = self.gate(x).softmax(-1).topk(TOP_K, -1)
        return scores / scores.sum(-1, keepdim=True), ids


class SortedExperts(nn.Module):
    """Rows sorted by expert, one grouped product for all experts, rows added up where they came from."""

    def __init__(self) -> None:
        super().__init__()
        self.router = Router()
        self.w1 = nn.Parameter(torch.randn(EXPERTS, DIM, HIDDEN) / DIM**0.5)
        self.w2 = nn.Parameter(torch.randn(EXPERTS, HIDDEN, DIM) / HIDDEN**0.5)
        self.w3 = nn.Parameter(torch.randn(EXPERTS, DIM, HIDDEN) / DIM**0.5)
        self.shared = nn.Linear(DIM, DIM)

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.flatten(0, 1)
        scores, ids = self.router(tokens)
        counts = torch.histc(ids.reshape(-1).float(), bins=EXPERTS, min=0, max=EXPERTS)
        order = torch.argsort(ids.reshape(-1), stable=True)
        weights = scores.reshape(-1)[order]
        index = (order // TOP_K).reshape(-1, 1).expand(-1, DIM)
        routed = torch.gather(tokens, 0, index)
        ends = counts.cumsum(0).to(torch.int32)
        hidden = F.silu(F.grouped_mm(routed, self.w1, offs=ends)) * F.grouped_mm(routed, self.w3, offs=ends)
        made = F.grouped_mm(hidden, self.w2, offs=ends) * weights.unsqueeze(-1)
        return self.shared(tokens).scatter_add(0, index, made).view_as(x)


class DispatchedExperts(nn.Module):
    """Each sequence sends at most `capacity` tokens to each expert, by a dispatch tensor and einsum."""

    def __init__(self, capacity: int = 8) -> None:
        super().__init__()
        self.router = Router()
        self.capacity = capacity
        self.up = nn.Parameter(torch.randn(EXPERTS, DIM, HIDDEN) / DIM**0.5)
        self.down = nn.Parameter(torch.randn(EXPERTS, HIDDEN, DIM) / HIDDEN**0.5)

    def forward(self, x: Tensor) -> Tensor:
        scores, ids = self.router(x)
        chosen = F.one_hot(ids, EXPERTS).to(x.dtype)  # [B, T, K, E]
        flat = chosen.flatten(1, 2)
        place = ((flat.cumsum(1) - flat) * flat).sum(-1).long().clamp(max=self.capacity)
        slots = F.one_hot(place, self.capacity + 1)[..., :-1].to(x.dtype).view(*ids.shape, self.capacity)
        dispatch = torch.einsum("btke,btkc->btec", chosen, slots)
        combine = torch.einsum("btke,btkc,btk->btec", chosen, slots, scores)
        inputs = torch.einsum("btec,btd->ebcd", dispatch, x)
        hidden = torch.einsum("ebcd,edh->ebch", inputs, self.up).relu()
        return torch.einsum("btec,ebcd->btd", combine, torch.einsum("ebch,ehd->ebcd", hidden, self.down))


class DenseExperts(nn.Module):
    """Every expert sees every token, by bmm; the router's scores choose."""

    def __init__(self) -> None:
        super().__init__()
        self.router = Router()
        self.up = nn.Parameter(torch.randn(EXPERTS, DIM, HIDDEN) / DIM**0.5)
        self.down = nn.Parameter(torch.randn(EXPERTS, HIDDEN, DIM) / HIDDEN**0.5)

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.flatten(0, 1)
        scores, ids = self.router(tokens)
        weights = torch.zeros(tokens.shape[0], EXPERTS, dtype=x.dtype, device=x.device).scatter(1, ids, scores)
        made = torch.bmm(torch.bmm(tokens.expand(EXPERTS, -1, -1), self.up).relu(), self.down)
        return (made * weights.t().unsqueeze(-1)).sum(0).view_as(x)


class Mixture(nn.Module):
    """Two layers of experts, and a loss over classes."""

    def __init__(self, experts: type[nn.Module]) -> None:
        super().__init__()
        self.embed = nn.Embedding(CLASSES, DIM)
        self.layers = nn.ModuleList(experts() for _ in range(2))
        self.norms = nn.ModuleList(nn.LayerNorm(DIM) for _ in range(2))
        self.head = nn.Linear(DIM, CLASSES, bias=False)

    def forward(self, ids: Tensor, labels: Tensor) -> Tensor:
        x = self.embed(ids)
        for layer, norm in zip(self.layers, self.norms, strict=True):
            x = x + layer(norm(x))
        return F.cross_entropy(self.head(x).flatten(0, 1), labels.flatten())


def _mixture(experts: type[nn.Module], batch: int, seq: int) -> Built:
    return Mixture(experts), (torch.randint(0, CLASSES, (batch, seq)), torch.randint(0, CLASSES, (batch, seq)))


def sorted_experts(batch: int = 4, seq: int = 16) -> Built:
    return _mixture(SortedExperts, batch, seq)


def dispatched_experts(batch: int = 4, seq: int = 16) -> Built:
    return _mixture(DispatchedExperts, batch, seq)


def dense_experts(batch: int = 4, seq: int = 16) -> Built:
    return _mixture(DenseExperts, batch, seq)
