"""What a verification measures: differences, work that is split, collectives; and that it notices what is wrong."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
import torch
from runtime_cases import TINY, Seeded, assign, graph_of, mesh_of, odds, plan_of, random_assignment, random_plan

from autoplan.assignment.gathers import gather_groups
from autoplan.errors import PlanError
from autoplan.plan.schema import Plan
from autoplan.runtime.verify.compare import compare
from autoplan.runtime.verify.observe import Observer
from autoplan.runtime.verify.pool import WorkerPool
from autoplan.runtime.verify.results import RankResult, Reference, Verification
from autoplan.runtime.verify.runs import reference_run
from autoplan.runtime.verify.undropped import NoDropout
from autoplan.runtime.verify.verify import verify, verify_assignment

FIELDS = {"ok", "loss_rel_err", "grad_rel_err", "worst_param", "split_flops_fraction", "collectives", "random_plans"}
FIELDS |= {"dtype", "buffer_rel_err", "problems"}
WIDE = Seeded(TINY.factory, {**TINY.settings, "batch": 12, "seq": 12, "n_layers": 1})


def test_above_eight_ranks_all_are_simulated_and_random_plans_are_run_too() -> None:
    plan = random_plan(WIDE, mesh_of(3, 4), 0)
    graph = graph_of(WIDE)
    found = verify(WIDE, plan, random_assignments=[random_assignment(graph, plan.mesh, seed) for seed in (1, 2)]).to_json()
    assert set(found) == FIELDS
    assert found["ok"] and found["random_plans"] == {"run": 2, "ok": 2}
    assert found["collectives"]["planned"] == found["collectives"]["observed"]


def test_fp64_is_exact_but_for_the_loss_that_the_model_computes_in_fp32() -> None:
    build = Seeded(odds, {"p": 0.0})
    assignment = random_assignment(graph_of(build, torch.float64), mesh_of(2, 2), 0)
    found = verify_assignment(build, assignment, gather_groups(assignment, ()), torch.float64)
    assert found.loss_rel_err < 1e-14 and found.grad_rel_err < 1e-12


def test_one_rank_has_nothing_to_split_and_nothing_to_say() -> None:
    assignment = random_assignment(graph_of(TINY), mesh_of(1), 0)
    found = verify_assignment(TINY, assignment, ())
    assert found.ok and found.split_flops_fraction == 1.0 and not found.observed


def test_replicated_work_is_not_split() -> None:
    assert verify_assignment(TINY, assign(graph_of(TINY), mesh_of(4), {}, {}), ()).split_flops_fraction == 0.0


def compared(gradient: torch.Tensor | None, expected: torch.Tensor | None, loss: float = 1.0) -> Verification:
    graph = graph_of(TINY)
    assignment = assign(graph, mesh_of(1), {}, {})
    fqn = graph.parameters[0].fqn
    reference = Reference((torch.tensor(1.0),), {fqn: expected}, 10)
    result = RankResult((torch.tensor(loss),), {fqn: gradient}, 10, Counter(), (0,))
    return compare(reference, [result], assignment, {})


def test_differences_are_relative_to_the_largest_gradient_and_none_equals_none() -> None:
    wanted = torch.tensor([1.0, -4.0])
    assert compared(torch.tensor([1.0, -4.0]), wanted).ok
    assert compared(torch.tensor([2.0, -4.0]), wanted).grad_rel_err == 0.25
    assert compared(None, None).ok
    assert not compared(None, wanted).ok and not compared(wanted, None).ok
    assert not compared(torch.tensor([float("nan"), -4.0]), wanted).ok
    assert compared(wanted, wanted, loss=1.5).loss_rel_err == 0.5


def test_gather_lines_that_list_other_collectives_are_refused_with_the_right_ones() -> None:
    plan = random_plan(WIDE, mesh_of(3, 4), 0)
    gather = {key: replace(line, forward=()) for key, line in plan.gather.items()}
    with pytest.raises(PlanError, match="(?s)take other collectives.*write forward: "):
        verify(WIDE, replace(plan, gather=gather))


def test_eager_dropout_is_off_within_its_mode() -> None:
    x = torch.ones(64, 8)
    module = torch.nn.Sequential(torch.nn.Dropout(0.5), torch.nn.AlphaDropout(0.5), torch.nn.Dropout1d(0.5))
    attention = torch.nn.MultiheadAttention(8, 2, dropout=0.9)
    with NoDropout():
        assert torch.equal(module(x), x)
        assert torch.equal(torch.nn.functional.dropout(x, 0.5), x)
        q = torch.randn(1, 2, 4, 8)
        exact = torch.nn.functional.scaled_dot_product_attention(q, q, q)
        assert torch.equal(torch.nn.functional.scaled_dot_product_attention(q, q, q, None, 0.9), exact)
        assert torch.equal(attention(x, x, x)[0], attention(x, x, x)[0])


class DropsPaths(torch.nn.Module):
    """Stochastic depth: of every sample the branch is kept or not."""

    def __init__(self) -> None:
        super().__init__()
        self.branch = torch.nn.Linear(8, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        keep = (0.7 + torch.rand((x.shape[0], 1), dtype=x.dtype)).floor_()
        noise = torch.rand_like(x) < 0.1
        return (x + self.branch(x) * keep / 0.7 + noise).square().mean()


def drops_paths() -> tuple[torch.nn.Module, tuple[torch.Tensor, ...]]:
    return DropsPaths(), (torch.randn(12, 8),)


def test_branches_dropped_at_random_are_kept_on_both_sides() -> None:
    build = Seeded(drops_paths)
    for seed in range(3):
        found = verify(build, random_plan(build, mesh_of(3, 4), seed))
        assert found.ok, found.to_json()


def test_flops_of_attention_on_the_cpu_are_counted() -> None:
    q = torch.randn(2, 3, 16, 8, requires_grad=True)
    with Observer() as observed:
        out = torch.nn.functional.scaled_dot_product_attention(q, q, q)
        forward = observed.flops
        out.sum().backward()
    assert forward == 2 * 2 * (2 * 3 * 16 * 8) * 16
    assert observed.flops == forward * 3.5


def test_the_reference_returns_the_loss_and_every_gradient() -> None:
    graph = graph_of(build := Seeded(odds, {"p": 0.9}))
    found = reference_run(build(), graph)
    assert found.outputs[0].dim() == 0
    assert found.gradients["unused"] is None and found.gradients["frozen.weight"] is None
    assert found.gradients["head.weight"] is not None


def test_a_plan_says_as_many_collectives_as_run() -> None:
    assignment = random_assignment(graph_of(WIDE), mesh_of(3, 4), 3)
    plan: Plan = plan_of(assignment, WIDE().module)
    assert verify(WIDE, plan).ok


@pytest.mark.parametrize("shape", [(2, 2), (3, 4)], ids=str)
def test_an_inference_plan_is_compared_by_its_outputs(pool: WorkerPool, shape: tuple[int, ...]) -> None:
    build = Seeded(two_outputs)
    found = verify(build, random_plan(build, mesh_of(*shape), 1, mode="infer"), pool=pool)
    assert found.ok and found.worst_param is None


class TwoOutputs(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(12, 24)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        hidden = self.linear(x)
        return {"logits": hidden.relu(), "best": hidden.argmax(-1)}


def two_outputs() -> tuple[torch.nn.Module, tuple[torch.Tensor, ...]]:
    return TwoOutputs(), (torch.randn(24, 12),)
