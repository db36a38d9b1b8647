"""Attention on a GPU, where other kernels run: split queries in every precision, eager and compiled."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from autoplan.placement import Mesh, R, Shard, forward_of
from autoplan.rules import localize, strategies_of
from autoplan.rules.prove import cut_global, example_call, join_local

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]
MESH = Mesh(("x",), (4,))


class Alone:
    """A rank that talks to nobody."""

    def __init__(self, coordinate: tuple[int, ...]) -> None:
        self.mesh, self.coordinate = MESH, coordinate


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kv_heads", [2, 8])
def test_split_queries(kv_heads: int, dtype: torch.dtype, compiled: bool) -> None:
    torch.manual_seed(0)
    shapes = [(2, 8, 256, 64), (2, kv_heads, 256, 64), (2, kv_heads, 256, 64)]
    operands = [torch.randn(shape, device="cuda", dtype=dtype) for shape in shapes]
    call, _ = example_call("aten.scaled_dot_product_attention.default", *operands, None, 0.0, True, enable_gqa=kv_heads != 8)
    strategy = next(s for s in strategies_of(call, MESH) if s.needs[0] == (Shard(2),))
    op = localize(call, strategy, MESH)
    wide = [x.float().requires_grad_() for x in operands]
    q, k, v = wide
    expected = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=kv_heads != 8)
    weights = torch.randn_like(expected)
    wanted = torch.autograd.grad((expected * weights).sum(), wide)

    outputs: dict[tuple[int, ...], Any] = {}
    gradients = [torch.zeros_like(wanted[1]), torch.zeros_like(wanted[2])]
    for here, part in cut_global(weights, (Shard(2),), MESH).items():
        local = [
            cut_global(x, forward_of(s or (R,)), MESH)[here].detach().requires_grad_()
            for x, s in zip(operands, strategy.needs, strict=True)
        ]

        def run(*inputs: Any, here: tuple[int, ...] = here) -> Any:
            return op.run(inputs, Alone(here))  # type: ignore[arg-type]  # no collectives inside

        out = torch.compile(run)(*local) if compiled else run(*local)
        outputs[here] = out.detach().float()
        _, dk, dv = torch.autograd.grad((out.float() * part).sum(), local)
        gradients[0] += dk
        gradients[1] += dv
    tolerance = 2e-2 if dtype is torch.bfloat16 else 1e-3
    torch.testing.assert_close(join_local(outputs, (Shard(2),), MESH), expected.detach(), rtol=tolerance, atol=tolerance)
    for found, target in zip(gradients, wanted[1:], strict=True):
        torch.testing.assert_close(found, target, rtol=tolerance, atol=5 * tolerance)
