"""Buffers that forward overwrites: planned, brought to every rank, compared with one device."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import process_jobs
import pytest
import torch
from buffer_models import convnet
from runtime_cases import Seeded, assign, graph_of, mesh_of, plan_of, random_assignment, random_plan

from autoplan.assignment.gathers import gather_groups
from autoplan.assignment.redistributions import redistributions
from autoplan.errors import PlanError
from autoplan.placement import R, Shard
from autoplan.plan import parse_plan
from autoplan.plan.dump import dump_plan
from autoplan.runtime.prepare import prepare
from autoplan.runtime.verify.compare import compare
from autoplan.runtime.verify.pool import WorkerPool
from autoplan.runtime.verify.results import RankResult, Verification
from autoplan.runtime.verify.runs import reference_run, verification_template
from autoplan.runtime.verify.verify import verify, verify_assignment

CONVNET = Seeded(convnet)
STEPS = 3


@pytest.mark.parametrize("shape", [(4,), (2, 2), (2, 3)])
def test_random_decisions_leave_the_buffers_that_one_device_leaves(shape: tuple[int, ...]) -> None:
    graph = graph_of(CONVNET, torch.float64)
    for seed in range(4):
        assignment = random_assignment(graph, mesh_of(*shape), seed)
        found = verify_assignment(CONVNET, assignment, gather_groups(assignment, {"blocks"}), torch.float64)
        assert found.ok, found.to_json()
        # statistics and gradients in fp64; the count in `seen` is an fp32 buffer, rounded to 2^-24 = 6e-8
        assert found.grad_rel_err < 1e-12 and found.buffer_rel_err < 1e-7


def test_what_brings_a_buffer_to_every_rank_is_a_line_of_the_plan() -> None:
    graph = graph_of(CONVNET)
    assignment = assign(graph, mesh_of(2), {"/square": "S(0) -> S(0) on x", "/sum": "S(0) -> P on x"}, {"inputs/x": "S(0)"})
    strategies = list(assignment.strategies)
    add = graph.by_address["/add"]
    chosen = assign(graph, mesh_of(2), {"/add": "P P -> P on x"}, {}).strategies[add.id]
    strategies[add.id] = chosen
    assignment = replace(assignment, strategies=tuple(strategies))
    moves = {graph.values[r.value].address: [step.kind for step in r.forward] for r in redistributions(assignment)}
    assert moves["/add"] == ["all-reduce"]
    plan = plan_of(assignment, CONVNET().module)
    (entry,) = plan.reshard["/add"]
    assert [str(collective) for collective in entry.forward] == ["all-reduce x"]
    assert parse_plan(dump_plan(plan), "plan.yaml").reshard == plan.reshard


def test_a_buffer_that_is_overwritten_and_cut_is_refused() -> None:
    plan = random_plan(CONVNET, mesh_of(2), 0)
    key = "blocks.*.norm.running_mean"
    plan = replace(plan, buffers={**plan.buffers, key: replace(plan.buffers[key], use=(Shard(0),))})
    model = CONVNET()
    with pytest.raises(PlanError, match=r"blocks.0.norm.running_mean: forward overwrites it(.|\n)*write use: \[R\]"):
        prepare(verification_template(model, plan, torch.float32), training=True)


def of_one_rank(**buffers: torch.Tensor) -> Verification:
    """One rank that agrees in all but these buffers."""
    graph = graph_of(CONVNET)
    reference = reference_run(CONVNET(), graph)
    result = RankResult(reference.outputs, reference.gradients, reference.flops, Counter(), (0,), {**reference.buffers, **buffers})
    return compare(reference, [result], assign(graph, mesh_of(1), {}, {}), {})


def test_a_wrong_buffer_is_named() -> None:
    right = reference_run(CONVNET(), graph_of(CONVNET)).buffers
    assert of_one_rank().ok and of_one_rank().buffer_rel_err == 0.0
    mean, count = right["last.running_mean"], right["blocks.0.norm.num_batches_tracked"]
    off = of_one_rank(**{"last.running_mean": mean + 0.01 * mean.abs().max()})
    assert (
        not off.ok and off.problems == ("buffer last.running_mean is 0.01 off",) and off.buffer_rel_err == pytest.approx(0.01, rel=1e-5)
    )  # fp32
    assert not of_one_rank(**{"blocks.0.norm.num_batches_tracked": count + 1}).ok
    assert not of_one_rank(**{"last.running_mean": mean * float("nan")}).ok
    assert not of_one_rank(**{"last.running_mean": mean[:2]}).ok


def test_buffers_in_processes(pool: WorkerPool) -> None:
    found = verify(CONVNET, random_plan(CONVNET, mesh_of(2, 2), 1), pool=pool)
    assert found.ok, found.to_json()


@pytest.mark.parametrize("seed", [0, 3])
def test_buffers_follow_over_several_steps_and_eval_mode_reads_them(pool: WorkerPool, seed: int) -> None:
    plan = random_plan(CONVNET, mesh_of(2, 2), seed)
    model = CONVNET()
    optimizer = torch.optim.SGD(model.module.parameters(), lr=0.1)
    for _ in range(STEPS):
        optimizer.zero_grad()
        model.module(*model.args).backward()
        optimizer.step()
    model.module.eval()
    quiet = model.module(*model.args).item()
    wanted = dict(model.module.named_buffers())
    for buffers, loss in pool.run(process_jobs.buffers_after, CONVNET, plan, STEPS):
        assert loss == pytest.approx(quiet, rel=1e-4)
        for name, buffer in wanted.items():  # fp32 over three steps
            torch.testing.assert_close(buffers[name], buffer, rtol=1e-4, atol=1e-5)


def test_half_precision_parameters_with_statistics_in_full(pool: WorkerPool) -> None:
    """No kernel takes a weight in bf16 with running statistics in fp32."""
    plan = random_plan(CONVNET, mesh_of(2, 2), 1, precision="bf16")
    exact = CONVNET()
    exact.module(*exact.args)
    wanted = dict(exact.module.named_buffers())
    for buffers, _ in pool.run(process_jobs.buffers_after, CONVNET, plan, 1):
        name = "blocks.1.norm.running_var"
        assert buffers[name].dtype == torch.float32
        torch.testing.assert_close(buffers[name], wanted[name], rtol=0.02, atol=0.02)  # bf16 has 8 bits


def test_a_plan_states_whole_placements_for_what_forward_overwrites() -> None:
    plan = random_plan(CONVNET, mesh_of(2, 2), 0)
    assert plan.buffers["seen"].use == (R, R)


@pytest.mark.zoo
def test_compiled_batch_norms_compute_the_same(pool: WorkerPool) -> None:
    for eager, fast, difference in pool.run(process_jobs.compiled, CONVNET, random_plan(CONVNET, mesh_of(2, 2), 3)):
        assert fast == pytest.approx(eager, rel=1e-5)
        assert difference < 1e-5
