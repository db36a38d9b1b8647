"""Steps that are replayed as CUDA graphs are the steps that run eager: new batches, several backwards into one gradient, eval between."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from runtime_cases import TINY, graph_of, mesh_of, plan_of, random_assignment
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

import autoplan
from autoplan.runtime.parallelize import local_forward

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]
STEPS = 6  # the first runs, the second is recorded, the others are replayed
PLAN = plan_of(random_assignment(graph_of(TINY), mesh_of(1), 0), TINY().module)


@pytest.fixture(params=[False, True], ids=["by block", "whole"])
def both(request: pytest.FixtureRequest) -> Iterator[tuple[nn.Module, nn.Module]]:
    """The model eager, and as CUDA graphs."""
    torch._dynamo.reset()
    with autoplan.join_mesh(PLAN) as mesh:
        found = []
        for graphs in (False, True):
            model = TINY()
            module = autoplan.parallelize(model.module, model.args, model.kwargs, PLAN, mesh)
            if graphs:
                local_forward(module).compile(whole=request.param, cuda_graphs=True)
            found.append(module)
        yield found[0], found[1]


def batch(seed: int) -> list[Tensor]:
    """Other words than those before, somewhere else in memory."""
    torch.manual_seed(seed)
    return [torch.randint(0, 64, leaf.shape, device="cuda") for leaf in TINY().args]


def gradients(module: nn.Module) -> list[Tensor]:
    return [p.grad.to_local() for p in module.parameters() if isinstance(p.grad, DTensor)]


def assert_alike(eager: nn.Module, graphs: nn.Module) -> None:
    ours = gradients(graphs)
    assert len(ours) == len(list(eager.parameters()))
    for expected, gradient in zip(gradients(eager), ours, strict=True):
        torch.testing.assert_close(gradient, expected, rtol=1e-3, atol=1e-5)  # fp32, fused kernels sum in another order


def test_training_goes_as_it_does_eager(both: tuple[nn.Module, nn.Module]) -> None:
    losses: list[list[Tensor]] = []
    for module in both:
        optimizer = torch.optim.AdamW(module.parameters(), lr=1e-2, fused=True)
        losses.append([])
        for step in range(STEPS):
            for micro in range(2):
                loss = module(*batch(2 * step + micro))
                loss.backward()
                losses[-1].append(loss.detach())
            torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            module.eval()
            with torch.no_grad():
                losses[-1].append(module(*batch(99)))
            module.train()
    eager, graphs = (torch.stack(found).tolist() for found in losses)  # what earlier steps gave is still there
    assert len(set(eager)) == len(eager) == 3 * STEPS
    assert graphs == pytest.approx(eager, rel=1e-3)


def test_gradients_stay_when_later_steps_run(both: tuple[nn.Module, nn.Module]) -> None:
    eager, graphs = both
    for step in range(STEPS):
        for module in both:
            module(*batch(step)).backward()
    assert_alike(eager, graphs)
    kept = gradients(graphs)
    before = [gradient.clone() for gradient in kept]
    graphs.zero_grad()
    for step in range(3):
        graphs(*batch(step)).backward()
    assert all(map(torch.equal, kept, before))


def test_two_forwards_may_come_before_their_backward(both: tuple[nn.Module, nn.Module]) -> None:
    for step in range(STEPS):
        for module in both:
            module.zero_grad()
            (module(*batch(step)) + 2 * module(*batch(step + 50))).backward()
        assert_alike(*both)
