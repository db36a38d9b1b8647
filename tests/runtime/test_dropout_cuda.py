"""Dropout in attention on a GPU: kept or drawn again, the same numbers; eager and compiled steps have other ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from runtime_cases import Seeded, graph_of, mesh_of, plan_of, random_assignment
from torch.distributed.tensor import DTensor

import autoplan
from autoplan.graph.segments import block_segments
from autoplan.models import gpt2
from autoplan.plan.schema import Plan, RecomputeLine
from autoplan.runtime.parallelize import local_forward

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]
LAYERS = 2
BUILD = Seeded(gpt2.build, {"dim": 128, "n_layers": LAYERS, "n_heads": 2, "vocab_size": 256, "batch": 4, "seq": 64})


@pytest.mark.parametrize("compiled", [False, True])
def test_recomputed_attention_drops_what_it_dropped(compiled: bool) -> None:
    """Torch's own way to draw again under torch.compile has generators that nobody seeds; fp32, one device, three steps."""
    assignment = random_assignment(graph_of(BUILD), mesh_of(1), 0)
    plan = plan_of(assignment, BUILD().module)
    again = plan_of(assignment, BUILD().module, recomputed=block_segments(assignment.graph))
    losses, gradients = steps(plan, compiled)
    others, repeated = steps(replace(again, recompute={"layers.*": RecomputeLine(LAYERS, LAYERS, "full")}), compiled)
    assert len(set(losses)) == 3  # each step drops others
    assert others == pytest.approx(losses, rel=1e-5)
    for expected, gradient in zip(gradients, repeated, strict=True):
        torch.testing.assert_close(gradient, expected, rtol=1e-3, atol=1e-5)  # other kernels sum in another order


def steps(plan: Plan, compiled: bool) -> tuple[list[float], Sequence[torch.Tensor]]:
    """The losses of three steps, and the gradients of the last."""
    torch._dynamo.reset()
    losses = []
    with autoplan.join_mesh(plan) as mesh:
        model = BUILD()
        module = autoplan.parallelize(model.module, model.args, model.kwargs, plan, mesh)
        if compiled:
            local_forward(module).compile(fullgraph=True)
        inputs = autoplan.shard_inputs(plan, mesh, model.args)
        before = torch.cuda.get_rng_state()
        for _ in range(3):
            module.zero_grad()
            loss = module(*inputs)
            loss.backward()
            losses.append(loss.item())
        assert torch.equal(torch.cuda.get_rng_state(), before)
        return losses, [p.grad.full_tensor() for p in module.parameters() if isinstance(p.grad, DTensor)]
