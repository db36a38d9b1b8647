"""The models that ship: their sizes, their loss at the start, their gradients, and a text they learn from."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from autoplan.models import data, gpt2, llama, mlp

SMALL_LLAMA: dict[str, Any] = dict(dim=64, n_layers=2, n_heads=4, n_kv_heads=2, ffn_dim=128, vocab_size=256, batch=2, seq=32)
SMALL_GPT2: dict[str, Any] = dict(n_layers=2, dim=64, n_heads=4, vocab_size=256, batch=2, seq=32)


def parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize(
    ("build", "settings", "expected"),
    [
        (llama.build, {}, 8_030_261_248),  # Llama-3-8B as published
        (llama.build, {"tie": True}, 8_030_261_248 - 128256 * 4096),
        (gpt2.build, {}, 124_439_808),  # GPT-2 small as published
    ],
)
def test_the_defaults_have_the_published_number_of_parameters(build: Callable, settings: dict[str, Any], expected: int) -> None:
    with torch.device("meta"):
        module, _, _ = build(**settings)
    assert parameters(module) == expected


def test_llama_names_its_parameters_as_plans_write_them() -> None:
    module, _, _ = llama.build(**SMALL_LLAMA)
    names = {name for name, _ in module.named_parameters()}
    layer = {
        f"layers.1.{name}.weight"
        for name in ("attn_norm", "attn.wq", "attn.wk", "attn.wv", "attn.wo", "ffn_norm", "mlp.w1", "mlp.w2", "mlp.w3")
    }
    assert {"embed.weight", "norm.weight", "head.weight"} | layer <= names
    assert {name for name, _ in module.named_buffers()} == {"rope.cos", "rope.sin"}
    assert not [name for name in module.state_dict() if name.startswith("rope")]


@pytest.mark.parametrize(
    ("build", "settings", "classes"), [(llama.build, SMALL_LLAMA, 256), (gpt2.build, SMALL_GPT2, 256), (mlp.build, {}, 16)]
)
def test_a_fresh_model_knows_nothing_and_every_parameter_learns(build: Callable, settings: dict[str, Any], classes: int) -> None:
    torch.manual_seed(0)
    module, args, kwargs = build(**settings)
    loss = module(*args, **kwargs)
    assert loss.shape == () and loss.dtype == torch.float32
    assert loss.item() == pytest.approx(math.log(classes), rel=0.05)
    loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in module.parameters())


@pytest.mark.parametrize("build", [llama.build, gpt2.build])
def test_a_token_sees_only_the_tokens_before_it(build: Callable) -> None:
    settings = SMALL_LLAMA if build is llama.build else SMALL_GPT2
    module, (tokens, labels), _ = build(**settings)
    module.eval()
    seen: list[torch.Tensor] = []
    module.norm.register_forward_hook(lambda _module, _args, out: seen.append(out.detach()))
    changed = tokens.clone()
    changed[:, 20:] = (changed[:, 20:] + 1) % 256
    module(tokens, labels), module(changed, labels)
    assert torch.equal(seen[0][:, :20], seen[1][:, :20])
    assert not torch.allclose(seen[0][:, 20:], seen[1][:, 20:])


def test_rotary_positions_make_scores_depend_on_distance_alone() -> None:
    rope = llama.Rope(seq=64, head_dim=16, theta=500000.0)
    cos, sin = rope(torch.float32)
    q, k = torch.randn(16), torch.randn(16)
    turned_q, turned_k = (llama.rotate(x.expand(64, 16), cos, sin) for x in (q, k))
    assert (turned_q[10] @ turned_k[3]).item() == pytest.approx((turned_q[50] @ turned_k[43]).item(), abs=1e-4)


def test_tied_embeddings_are_one_parameter() -> None:
    module, _, _ = gpt2.build(**SMALL_GPT2)
    assert module.head.weight is module.embed.weight


def test_a_byte_level_model_learns_from_the_shipped_text() -> None:
    text = (Path(list(data.__path__)[0]) / "proverbs.txt").read_bytes()
    assert len(text) > 100_000
    torch.manual_seed(0)
    module, _, _ = llama.build(**SMALL_LLAMA)
    tokens = torch.tensor(list(text[: 8 * 33 * 32])).view(32, 8, 33)
    optimizer = torch.optim.AdamW(module.parameters(), lr=3e-3)
    losses = []
    for batch in tokens:
        loss = module(batch[:, :-1], batch[:, 1:].contiguous())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 2
