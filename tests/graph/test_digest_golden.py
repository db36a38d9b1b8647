"""Digests recorded once: they hold on every torch version and in every process.

A plan made with torch 2.13 is checked with torch 2.11 where it runs. The models are written out here, so that only a
change of capture or of the digest's definition moves these values; such a change makes old plans report another graph.
"""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from autoplan.graph import capture, graph_digest, model_digest

GOLDEN = {
    "llama": (
        "sha256:3c37445f6cdf3bdf1b768b8fd04bf54f633e942f2ad943d81776e0abb80e32b5",
        "sha256:f934c1dee29df0cec5395a2e6ed72a0105589673fa2b1c1ba5c3f991bfe72491",
    ),
    "gpt": (
        "sha256:7deb30a5f0c2c3d9073c07afac8041446e4fa0d3f2239a9dd8c6106663e51a99",
        "sha256:e95369010feb5ee1ea5239d4aa1e453f4ed33c3901a459f2b499ad135dcda88a",
    ),
    "odds": (
        "sha256:0904a4e6cf6f50a484ffe362e9a75119d9ddf267dc0a4e00e05c8d60e9482600",
        "sha256:f8cc1d698da7422aac7f4a796e9e435e37811aa635419fa6a4e3147bd814d897",
    ),
}


class LlamaBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.Parameter(torch.ones(16))
        self.q, self.k, self.v, self.o = (
            nn.Linear(16, 16, False),
            nn.Linear(16, 8, False),
            nn.Linear(16, 8, False),
            nn.Linear(16, 16, False),
        )
        self.up, self.gate, self.down = nn.Linear(16, 24, False), nn.Linear(16, 24, False), nn.Linear(24, 16, False)

    def forward(self, x: Tensor, cos: Tensor) -> Tensor:
        y = F.rms_norm(x, (16,), self.norm, 1e-5)
        q, k, v = (f(y).unflatten(-1, (-1, 4)).transpose(1, 2) for f in (self.q, self.k, self.v))
        q, k = (torch.cat((-t.chunk(2, -1)[1], t.chunk(2, -1)[0]), -1) * cos.to(t.dtype) for t in (q, k))
        x = x + self.o(F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True).transpose(1, 2).flatten(2))
        return x + self.down(F.silu(self.gate(x)) * self.up(x))


class Llama(nn.Module):
    cos: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(32, 16)
        self.layers = nn.ModuleList(LlamaBlock() for _ in range(2))
        self.head = nn.Linear(16, 32, bias=False)
        self.register_buffer("cos", torch.ones(8, 4), persistent=False)

    def forward(self, tokens: Tensor, labels: Tensor) -> Tensor:
        x = self.embed(tokens)
        for layer in self.layers:
            x = layer(x, self.cos)
        return F.cross_entropy(self.head(x).float().flatten(0, 1), labels.flatten())


class GPT(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.positions = nn.Embedding(32, 16), nn.Embedding(8, 16)
        self.norm, self.drop = nn.LayerNorm(16), nn.Dropout(0.1)
        self.qkv, self.out = nn.Parameter(torch.ones(16, 48)), nn.Linear(16, 16)
        self.qkv_bias = nn.Parameter(torch.ones(48))
        self.head = nn.Linear(16, 32, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, tokens: Tensor, labels: Tensor) -> dict[str, Tensor]:
        x = self.drop(self.embed(tokens) + self.positions(torch.arange(tokens.shape[1], device=tokens.device)))
        y = self.norm(x)
        qkv = torch.addmm(self.qkv_bias, y.view(-1, 16), self.qkv).view(*y.shape[:2], 48)
        q, k, v = (t.view(*t.shape[:2], 4, 4).transpose(1, 2) for t in qkv.split(16, dim=2))
        mask = torch.full((8, 8), float("-inf"), device=x.device).triu(1)
        attention = torch.softmax(q @ k.transpose(-1, -2) / 2.0 + mask, -1)
        x = x + F.gelu(self.out((attention @ v).transpose(1, 2).reshape(y.shape)), approximate="tanh")
        logits = self.head(x)
        return {"logits": logits, "loss": F.cross_entropy(logits[:, :-1].reshape(-1, 32), labels[:, 1:].reshape(-1), ignore_index=-100)}


class Odds(nn.Module):
    """No-grad regions, in-place ops, constants, batch norm."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.norm(self.conv(x)), inplace=True)
        with torch.no_grad():
            scale = y.abs().amax()
        z = torch.zeros_like(y)
        z[:, 1:] = y[:, :-1]
        return ((y + z) / scale * torch.tensor([1.0, 2.0])[1] + y.detach()).mean()


@pytest.mark.parametrize("name", GOLDEN)
def test_digests_are_those_recorded(name: str) -> None:
    tokens = torch.zeros(4, 8, dtype=torch.long)
    with torch.device("meta"):
        module: nn.Module = {"llama": Llama, "gpt": GPT, "odds": Odds}[name]()
    args = (torch.ones(2, 3, 8, 8),) if name == "odds" else (tokens, tokens)
    assert (model_digest(module), graph_digest(capture(module, args, mode="train"))) == GOLDEN[name]
