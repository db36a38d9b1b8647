"""The pieces the models share: projections with their init, and the language-model head with its loss."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

INIT_STD = 0.02  # of every weight matrix, as GPT-2 and Llama start


class Linear(nn.Linear):
    """`nn.Linear` with normal weights and a zero bias."""

    def reset_parameters(self) -> None:
        nn.init.normal_(self.weight, std=INIT_STD)
        if self.bias is not None:
            nn.init.zeros_(self.bias)


class Embedding(nn.Embedding):
    """`nn.Embedding` with the same normal weights, so that a head can share them."""

    weight: nn.Parameter

    def reset_parameters(self) -> None:
        nn.init.normal_(self.weight, std=INIT_STD)


class Head(nn.Module):
    """Logits of every token and their mean cross-entropy, in fp32: x[B, T, D], labels[B, T] -> scalar."""

    def __init__(self, dim: int, vocab_size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(vocab_size, dim))
        nn.init.normal_(self.weight, std=INIT_STD)

    def forward(self, x: Tensor, labels: Tensor) -> Tensor:
        logits = F.linear(x, self.weight)
        return F.cross_entropy(logits.flatten(0, 1).float(), labels.flatten())


def example_tokens(batch: int, seq: int, vocab_size: int) -> tuple[Tensor, Tensor]:
    """Random tokens and the labels that follow them, int64 [batch, seq] each (meta tensors on the meta device)."""
    text = torch.randint(0, vocab_size, (batch, seq + 1))
    return text[:, :-1].contiguous(), text[:, 1:].contiguous()
