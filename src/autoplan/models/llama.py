"""Llama 3: RMSNorm, rotary positions, grouped-query attention, SwiGLU. The defaults are the 8B model.

Shapes: B batch, T sequence, D dim, H heads, K key/value heads, E = D / H head dim, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from autoplan.models.layers import Embedding, Head, Linear, example_tokens


class RMSNorm(nn.Module):
    """x / rms(x) * weight over the last dim."""

    def __init__(self, dim: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, self.weight.shape, self.weight, self.eps)


class Rope(nn.Module):
    """Rotary tables cos, sin[T, E], computed in fp32 and handed out in the dtype of the activations."""

    cos: Tensor
    sin: Tensor

    def __init__(self, seq: int, head_dim: int, theta: float) -> None:
        super().__init__()
        frequencies = theta ** (-torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim)
        angles = torch.outer(torch.arange(seq, dtype=torch.float32), frequencies).repeat(1, 2)
        self.register_buffer("cos", angles.cos(), persistent=False)
        self.register_buffer("sin", angles.sin(), persistent=False)

    def forward(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        return self.cos.to(dtype), self.sin.to(dtype)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x[B, H, T, E] turned by the angle of its position, the first half of E paired with the second."""
    first, second = x.chunk(2, -1)
    return x * cos + torch.cat((-second, first), -1) * sin


class Attention(nn.Module):
    """Causal attention with H query heads sharing K key/value heads."""

    def __init__(self, dim: int, n_heads: int, n_kv_heads: int) -> None:
        super().__init__()
        self.head_dim = dim // n_heads
        self.wq = Linear(dim, n_heads * self.head_dim, bias=False)
        self.wk = Linear(dim, n_kv_heads * self.head_dim, bias=False)
        self.wv = Linear(dim, n_kv_heads * self.head_dim, bias=False)
        self.wo = Linear(n_heads * self.head_dim, dim, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        q, k, v = (self._heads(projection(x)) for projection in (self.wq, self.wk, self.wv))
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        out = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        return self.wo(out.transpose(1, 2).reshape(*x.shape[:2], -1))

    def _heads(self, x: Tensor) -> Tensor:
        return x.view(*x.shape[:2], -1, self.head_dim).transpose(1, 2)


class MLP(nn.Module):
    """SwiGLU: w2(silu(w1 x) * w3 x)."""

    def __init__(self, dim: int, ffn_dim: int) -> None:
        super().__init__()
        self.w1 = Linear(dim, ffn_dim, bias=False)
        self.w2 = Linear(ffn_dim, dim, bias=False)
        self.w3 = Linear(dim, ffn_dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.w2(F.silu(self.w1(x)) * self.w3(x))


class Block(nn.Module):
    """Attention and MLP, each on a normed copy of the residual stream."""

    def __init__(self, dim: int, n_heads: int, n_kv_heads: int, ffn_dim: int, norm_eps: float) -> None:
        super().__init__()
        self.attn_norm = RMSNorm(dim, norm_eps)
        self.attn = Attention(dim, n_heads, n_kv_heads)
        self.ffn_norm = RMSNorm(dim, norm_eps)
        self.mlp = MLP(dim, ffn_dim)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        x = x + self.attn(self.attn_norm(x), cos, sin)
        return x + self.mlp(self.ffn_norm(x))


class Llama(nn.Module):
    """tokens, labels[B, T] -> the mean loss; labels are the tokens shifted by one already."""

    def __init__(
        self,
        *,
        dim: int,
        n_layers: int,
        n_heads: int,
        n_kv_heads: int,
        ffn_dim: int,
        vocab_size: int,
        seq: int,
        rope_theta: float,
        norm_eps: float,
        tie: bool,
    ) -> None:
        super().__init__()
        self.embed = Embedding(vocab_size, dim)
        self.rope = Rope(seq, dim // n_heads, rope_theta)
        self.layers = nn.ModuleList(Block(dim, n_heads, n_kv_heads, ffn_dim, norm_eps) for _ in range(n_layers))
        self.norm = RMSNorm(dim, norm_eps)
        self.head = Head(dim, vocab_size)
        if tie:
            self.head.weight = self.embed.weight

    def forward(self, tokens: Tensor, labels: Tensor) -> Tensor:
        x = self.embed(tokens)
        cos, sin = self.rope(x.dtype)
        for layer in self.layers:
            x = layer(x, cos, sin)
        return self.head(self.norm(x), labels)


def build(
    *,
    dim: int = 4096,
    n_layers: int = 32,
    n_heads: int = 32,
    n_kv_heads: int = 8,
    ffn_dim: int = 14336,
    vocab_size: int = 128256,
    batch: int = 8,
    seq: int = 8192,
    rope_theta: float = 500000.0,
    norm_eps: float = 1e-5,
    tie: bool = False,
) -> tuple[nn.Module, tuple[Tensor, ...], dict[str, Any]]:
    """Llama-3-8B with inputs of 8 x 8192 tokens: 8,030,261,248 parameters."""
    module = Llama(
        dim=dim,
        n_layers=n_layers,
        n_heads=n_heads,
        n_kv_heads=n_kv_heads,
        ffn_dim=ffn_dim,
        vocab_size=vocab_size,
        seq=seq,
        rope_theta=rope_theta,
        norm_eps=norm_eps,
        tie=tie,
    )
    return module, example_tokens(batch, seq, vocab_size), {}
