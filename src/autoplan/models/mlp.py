"""The smallest target: a classifier of vectors, for the documentation and the tests."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from autoplan.models.layers import Linear


class MLP(nn.Module):
    """x[B, D], labels[B] -> the mean cross-entropy over the classes."""

    def __init__(self, dim: int, hidden_dim: int, n_layers: int, classes: int) -> None:
        super().__init__()
        sizes = [dim, *[hidden_dim] * n_layers]
        self.layers = nn.ModuleList(Linear(before, after) for before, after in zip(sizes, sizes[1:], strict=False))
        self.out = Linear(hidden_dim, classes)

    def forward(self, x: Tensor, labels: Tensor) -> Tensor:
        for layer in self.layers:
            x = F.relu(layer(x))
        return F.cross_entropy(self.out(x), labels)


def build(
    *, dim: int = 64, hidden_dim: int = 256, n_layers: int = 2, classes: int = 16, batch: int = 32
) -> tuple[nn.Module, tuple[Tensor, ...], dict[str, Any]]:
    """A two-layer perceptron with a batch of 32 random vectors."""
    args = (torch.randn(batch, dim), torch.randint(0, classes, (batch,)))
    return MLP(dim, hidden_dim, n_layers, classes), args, {}
