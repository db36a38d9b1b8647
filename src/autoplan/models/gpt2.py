"""GPT-2: learned positions, LayerNorm, a fused qkv projection, tanh GELU, dropout, tied embeddings. Defaults: 124M.

Shapes: B batch, T sequence, D dim, H heads, E = D / H head dim, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from autoplan.models.layers import INIT_STD, Embedding, Head, example_tokens


class Conv1D(nn.Module):
    """x[.., I] @ w[I, O] + b[O] by one addmm over flattened tokens, the layout of the published GPT-2 weights."""

    def __init__(self, in_dim: int, out_dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(in_dim, out_dim))
        self.bias = nn.Parameter(torch.zeros(out_dim))
        nn.init.normal_(self.weight, std=INIT_STD)

    def forward(self, x: Tensor) -> Tensor:
        flat = torch.addmm(self.bias, x.view(-1, x.shape[-1]), self.weight)
        return flat.view(*x.shape[:-1], -1)


class Attention(nn.Module):
    """Causal attention; q, k and v come from one projection."""

    def __init__(self, dim: int, n_heads: int, dropout: float) -> None:
        super().__init__()
        self.dim, self.head_dim, self.dropout = dim, dim // n_heads, dropout
        self.qkv = Conv1D(dim, 3 * dim)
        self.proj = Conv1D(dim, dim)
        self.drop = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (self._heads(part) for part in self.qkv(x).split(self.dim, dim=-1))
        dropout = self.dropout if self.training else 0.0
        out = F.scaled_dot_product_attention(q, k, v, dropout_p=dropout, is_causal=True)
        return self.drop(self.proj(out.transpose(1, 2).reshape(x.shape)))

    def _heads(self, x: Tensor) -> Tensor:
        return x.view(*x.shape[:2], -1, self.head_dim).transpose(1, 2)


class MLP(nn.Module):
    """down(gelu(up x))."""

    def __init__(self, dim: int, dropout: float) -> None:
        super().__init__()
        self.up = Conv1D(dim, 4 * dim)
        self.down = Conv1D(4 * dim, dim)
        self.drop = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        return self.drop(self.down(F.gelu(self.up(x), approximate="tanh")))


class Block(nn.Module):
    """Attention and MLP, each on a normed copy of the residual stream."""

    def __init__(self, dim: int, n_heads: int, dropout: float, norm_eps: float) -> None:
        super().__init__()
        self.attn_norm = nn.LayerNorm(dim, norm_eps)
        self.attn = Attention(dim, n_heads, dropout)
        self.mlp_norm = nn.LayerNorm(dim, norm_eps)
        self.mlp = MLP(dim, dropout)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.attn_norm(x))
        return x + self.mlp(self.mlp_norm(x))


class GPT2(nn.Module):
    """tokens, labels[B, T] -> the mean loss; labels are the tokens shifted by one already."""

    def __init__(
        self, *, n_layers: int, dim: int, n_heads: int, vocab_size: int, max_seq: int, dropout: float, norm_eps: float, tie: bool
    ) -> None:
        super().__init__()
        self.embed = Embedding(vocab_size, dim)
        self.positions = Embedding(max_seq, dim)
        self.drop = nn.Dropout(dropout)
        self.layers = nn.ModuleList(Block(dim, n_heads, dropout, norm_eps) for _ in range(n_layers))
        self.norm = nn.LayerNorm(dim, norm_eps)
        self.head = Head(dim, vocab_size)
        if tie:
            self.head.weight = self.embed.weight

    def forward(self, tokens: Tensor, labels: Tensor) -> Tensor:
        positions = torch.arange(tokens.shape[1], device=tokens.device)
        x = self.drop(self.embed(tokens) + self.positions(positions))
        for layer in self.layers:
            x = layer(x)
        return self.head(self.norm(x), labels)


def build(
    *,
    n_layers: int = 12,
    dim: int = 768,
    n_heads: int = 12,
    vocab_size: int = 50257,
    max_seq: int = 1024,
    batch: int = 8,
    seq: int = 512,
    dropout: float = 0.1,
    norm_eps: float = 1e-5,
    tie: bool = True,
) -> tuple[nn.Module, tuple[Tensor, ...], dict[str, Any]]:
    """GPT-2 small with inputs of 8 x 512 tokens: 124,439,808 parameters."""
    module = GPT2(
        n_layers=n_layers,
        dim=dim,
        n_heads=n_heads,
        vocab_size=vocab_size,
        max_seq=max_seq,
        dropout=dropout,
        norm_eps=norm_eps,
        tie=tie,
    )
    return module, example_tokens(batch, seq, vocab_size), {}
