"""Dropout on a GPU, where eager steps have another kernel than compiled ones."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from autoplan.placement import Mesh, Placement, R, Shard
from autoplan.rules import localize, strategies_of
from autoplan.rules.prove import example_call

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]
MESH = Mesh(("x",), (2,))
P_DROPPED = 0.25


class Alone:
    """A rank that talks to nobody."""

    def __init__(self, rank: int) -> None:
        self.mesh, self.coordinate = MESH, (rank,)


def dropped(x: Tensor, placement: Placement, rank: int, seed: int, *, compiled: bool) -> Tensor:
    call, _ = example_call("aten.dropout.default", x.detach(), P_DROPPED, True)
    strategy = next(s for s in strategies_of(call, MESH) if s.needs[0] == (placement,))
    local = localize(call, strategy, MESH)

    def run(tensor: Tensor) -> Tensor:
        return local.run((tensor,), Alone(rank), seed)  # type: ignore[arg-type]  # no collectives inside

    before = torch.cuda.get_rng_state()
    y = (torch.compile(run, fullgraph=True) if compiled else run)(x)
    assert torch.equal(torch.cuda.get_rng_state(), before)
    return y


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_dropout_and_its_gradient(dtype: torch.dtype, compiled: bool) -> None:
    x = torch.rand(512, 512, device="cuda", dtype=dtype).add_(1).requires_grad_()
    y = dropped(x, R, 0, 7, compiled=compiled)
    y.backward(torch.ones_like(y))
    kept = y != 0
    assert kept.float().mean().item() == pytest.approx(1 - P_DROPPED, abs=0.005)  # 6 times the spread of 262,144 draws
    torch.testing.assert_close(y, torch.where(kept, x / (1 - P_DROPPED), 0.0), rtol=1e-2, atol=0.0)
    torch.testing.assert_close(x.grad, kept.to(dtype) / (1 - P_DROPPED), rtol=1e-2, atol=0.0)


@pytest.mark.parametrize("compiled", [False, True])
def test_replicas_draw_the_same_numbers_and_shards_others(compiled: bool) -> None:
    x = torch.ones(64, 64, device="cuda")
    whole = [dropped(x, R, rank, 7, compiled=compiled) for rank in range(2)]
    parts = [dropped(x, Shard(0), rank, 7, compiled=compiled) for rank in range(2)]
    assert torch.equal(*whole)
    assert not torch.equal(*parts)
    assert torch.equal(whole[0], dropped(x, R, 0, 7, compiled=compiled))
    assert not torch.equal(whole[0], dropped(x, R, 0, 8, compiled=compiled))


def test_the_mask_is_an_output_too() -> None:
    x = torch.ones(64, 64, device="cuda")
    call, _ = example_call("aten.native_dropout.default", x, P_DROPPED, True)
    strategy = next(s for s in strategies_of(call, MESH) if s.needs[0] == (R,))
    y, mask = localize(call, strategy, MESH).run((x,), Alone(0), 7)  # type: ignore[arg-type]
    assert mask.dtype == torch.bool
    assert torch.equal(mask, y != 0)
