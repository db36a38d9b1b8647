"""A module made parallel, in real processes: what it computes, what a user sees of it, and what it refuses."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import process_jobs
import pytest
import torch
from runtime_cases import GPT2, TIED, TINY, Seeded, graph_of, mesh_of, odds, plan_of, random_assignment, random_plan, two_uses

from autoplan.errors import AutoplanError
from autoplan.plan.schema import Plan
from autoplan.runtime.verify.pool import WorkerPool
from autoplan.runtime.verify.verify import verify


@pytest.fixture(scope="module")
def plan() -> Plan:
    return random_plan(TINY, mesh_of(2, 2), 3)


@pytest.mark.parametrize("shape", [(4,), (2, 2), (1, 4)], ids=str)
def test_a_plan_gives_loss_gradients_and_collectives_in_processes(pool: WorkerPool, shape: tuple[int, ...]) -> None:
    found = verify(TINY, random_plan(TINY, mesh_of(*shape), 1), pool=pool)
    assert found.ok, found.to_json()
    assert sum(found.observed.values()) > 20


def test_a_gpt2_with_dropout_is_verified_without_it(pool: WorkerPool) -> None:
    found = verify(GPT2, random_plan(GPT2, mesh_of(2, 2), 0), pool=pool)
    assert found.ok, found.to_json()


def test_a_parallel_module_keeps_its_names_values_and_class(pool: WorkerPool, plan: Plan) -> None:
    for seen in pool.run(process_jobs.structure, TINY, plan):
        assert seen["same_names"] and seen["same_values"] and seen["is_same_kind"] and not seen["plain"]
        assert seen["class"] == "ParallelLlama"


def test_parameters_lie_as_the_plan_stores_them(pool: WorkerPool) -> None:
    assignment = random_assignment(graph_of(two := Seeded(two_uses)), mesh_of(2, 2), 4)
    state = assignment.sources[assignment.graph.parameters[0].value]
    seen = pool.run(process_jobs.structure, two, plan_of(assignment, two().module))[0]
    assert [text.replace("S(", "S(") for text in seen["placements"]["w"]] == list(map(str, state))


def test_tied_parameters_stay_tied(pool: WorkerPool) -> None:
    assert all(seen["tied"] and seen["same_values"] for seen in pool.run(process_jobs.structure, TIED, random_plan(TIED, mesh_of(2, 2), 0)))


@pytest.mark.parametrize("as_dtensors", [False, True], ids=["local", "dtensor"])
def test_training_gives_the_losses_of_one_device(pool: WorkerPool, plan: Plan, as_dtensors: bool) -> None:
    model = TINY()
    optimizer = torch.optim.AdamW(model.module.parameters(), lr=1e-2)
    expected = []
    for _ in range(5):
        loss = model.module(*model.args)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.module.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        expected.append(loss.item())
    for losses in pool.run(process_jobs.train, TINY, plan, 5, as_dtensors):
        assert losses == pytest.approx(expected, rel=1e-4)
    assert expected[-1] < expected[0]


def test_a_checkpoint_of_one_mesh_goes_on_on_another(pool: WorkerPool, plan: Plan, tmp_path: Path) -> None:
    whole = pool.run(process_jobs.train_and_save, TINY, plan, str(tmp_path / "whole"), 4)[0]
    first = pool.run(process_jobs.train_and_save, TINY, plan, str(tmp_path / "parts"), 2)[0]
    second = pool.run(process_jobs.train_and_save, TINY, random_plan(TINY, mesh_of(4), 8), str(tmp_path / "parts"), 2)[0]
    assert first + second == pytest.approx(whole, rel=1e-4)


def test_eval_mode_runs_without_dropout_and_without_gradients(pool: WorkerPool) -> None:
    model = GPT2()
    model.module.eval()
    expected = model.module(*model.args).item()
    for quiet, again, records, trained in pool.run(process_jobs.evaluate, GPT2, random_plan(GPT2, mesh_of(2, 2), 1)):
        assert quiet == again == pytest.approx(expected, rel=1e-4)
        assert not records
        assert trained != quiet


class Viewed(torch.nn.Module):
    """Attention that makes its output contiguous, which with dropout it is not and without it is."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = torch.nn.Linear(16, 48), torch.nn.Linear(16, 16)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = self.qkv(x).view(*x.shape[:2], 3, 4, 4).permute(2, 0, 3, 1, 4).unbind()
        mixed = torch.nn.functional.scaled_dot_product_attention(q, k, v, dropout_p=0.1 if self.training else 0.0)
        return self.out(mixed.transpose(1, 2).contiguous().reshape(x.shape)).square().mean()


def viewed() -> tuple[torch.nn.Module, tuple[torch.Tensor, ...]]:
    return Viewed(), (torch.randn(4, 8, 16),)


@pytest.mark.parametrize("seed", range(3))
def test_eval_mode_runs_where_ops_of_the_planned_graph_are_not_there(pool: WorkerPool, seed: int) -> None:
    build = Seeded(viewed)
    graphs = [{node.address for node in graph_of(build, mode=mode).nodes} for mode in ("train", "infer")]
    assert graphs[0] - graphs[1] == {"/contiguous"}
    model = build()
    expected = model.module.eval()(*model.args).item()
    for quiet, again, _, _ in pool.run(process_jobs.evaluate, build, random_plan(build, mesh_of(2, 2), seed)):
        assert quiet == again == pytest.approx(expected, rel=1e-4)


def test_inference_returns_the_output_where_the_plan_puts_it(pool: WorkerPool) -> None:
    build = Seeded(linear_stack)
    model = build()
    expected = model.module(*model.args)
    for is_dtensor, whole in pool.run(process_jobs.infer, build, random_plan(build, mesh_of(2, 2), 5, mode="infer")):
        assert is_dtensor
        torch.testing.assert_close(whole, expected, rtol=1e-4, atol=1e-5)


def linear_stack() -> tuple[torch.nn.Module, tuple[torch.Tensor, ...]]:
    return torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.GELU(), torch.nn.Linear(16, 8)), (torch.randn(12, 8),)


def test_masters_are_fp32_and_compute_is_bf16(pool: WorkerPool) -> None:
    master = pool.run(process_jobs.dtypes, TINY, random_plan(TINY, mesh_of(2, 2), 3, precision="bf16-master"))[0]
    assert master["parameters"] == master["gradients"] == {torch.float32}
    half = pool.run(process_jobs.dtypes, TINY, random_plan(TINY, mesh_of(2, 2), 3, precision="bf16"))[0]
    assert half["parameters"] == half["gradients"] == {torch.bfloat16}
    exact = pool.run(process_jobs.dtypes, TINY, random_plan(TINY, mesh_of(2, 2), 3))[0]
    assert master["loss"] == pytest.approx(exact["loss"], rel=1e-2)
    for name, gradient in exact["whole"].items():
        assert (master["whole"][name] - gradient).abs().max() < 0.1 * gradient.abs().max()


def test_shards_drawn_on_meta_agree_on_replicas_and_repeat(pool: WorkerPool, plan: Plan) -> None:
    first, second = pool.run(process_jobs.from_meta, TINY, plan), pool.run(process_jobs.from_meta, TINY, plan)
    assert all(torch.equal(first[0][name], other[name]) for other in (*first, *second) for name in other)
    assert first[0]["layers.0.attn_norm.weight"].eq(1).all()
    assert first[0]["layers.0.attn.wq.weight"].std().item() == pytest.approx(0.02, rel=0.2)
    assert not torch.equal(first[0]["layers.0.attn.wq.weight"], first[0]["layers.1.attn.wq.weight"])


def test_batch_statistics_and_frozen_weights_in_processes(pool: WorkerPool) -> None:
    build = Seeded(odds)
    found = verify(build, random_plan(build, mesh_of(2, 2), 2), pool=pool)
    assert found.ok, found.to_json()


@pytest.mark.parametrize("seed", [0, 1])
def test_the_compiled_program_computes_the_same(pool: WorkerPool, seed: int) -> None:
    """Torch 2.11 once lost all gradients here: an autograd function's output that is also an intermediate."""
    build = Seeded(two_uses)
    for eager, fast, difference in pool.run(process_jobs.compiled, build, random_plan(build, mesh_of(2, 2), seed)):
        assert fast == pytest.approx(eager, rel=1e-5)
        assert difference < 1e-5


@pytest.mark.zoo
def test_a_compiled_llama_computes_the_same(pool: WorkerPool, plan: Plan) -> None:
    for eager, fast, difference in pool.run(process_jobs.compiled, TINY, plan):
        assert fast == pytest.approx(eager, rel=1e-5)
        assert difference < 1e-5


def test_later_steps_are_not_compiled_again(pool: WorkerPool) -> None:
    """The step's seed is a number that changes: only random ops may ask for it."""
    build = Seeded(two_uses)
    for losses in pool.run(process_jobs.compiled_once, build, random_plan(build, mesh_of(2, 2), 0)):
        assert len(set(losses)) == 4


def refused(pool: WorkerPool, *job: object) -> str:
    with pytest.raises(AutoplanError) as error:
        pool.run(*job)  # type: ignore[arg-type]
    return str(error.value)


def test_a_global_batch_is_refused_with_both_shapes_and_the_way_to_cut_it(pool: WorkerPool, plan: Plan) -> None:
    whole = TINY().args
    message = refused(pool, process_jobs.call_with, TINY, plan, whole)
    assert "local shape [4, 16]; wanted is" in message and "shard_inputs" in message


def test_another_batch_is_refused_when_it_is_cut(pool: WorkerPool, plan: Plan) -> None:
    tokens = torch.zeros(6, 16, dtype=torch.int64)
    assert "input tokens has shape [6, 16]; planned is [4, 16]" in refused(
        pool, process_jobs.shard, plan, {"tokens": tokens, "labels": tokens}
    )
    assert "no input called text" in refused(pool, process_jobs.shard, plan, {"text": tokens})


def test_ranks_with_different_plans_do_not_start(pool: WorkerPool, plan: Plan) -> None:
    message = refused(pool, process_jobs.disagree, TINY, plan, replace(plan, options=replace(plan.options, seed=1)))
    assert "the ranks do not agree" in message and "plan: rank 0 has" in message and "rank 2 has" in message


def test_a_mesh_of_another_size_prints_the_torchrun_line(pool: WorkerPool) -> None:
    message = refused(pool, process_jobs.on_four, TINY, random_plan(TINY, mesh_of(1, 2), 0))
    assert "1x2 = 2 ranks, but 4 processes run" in message and "torchrun --nproc-per-node 2 apply.py" in message


def test_a_plan_for_another_model_names_the_parameters(pool: WorkerPool, plan: Plan) -> None:
    wider = Seeded(TINY.factory, {**TINY.settings, "ffn_dim": 96})
    message = refused(pool, process_jobs.structure, wider, plan)
    assert "mlp.w1.weight: shape [48, 32]" in message and "[96, 32]" in message
    assert "ties" in refused(pool, process_jobs.structure, Seeded(frozen_llama), plan)


def frozen_llama() -> tuple[torch.nn.Module, tuple[torch.Tensor, ...]]:
    model = TINY()
    model.module.requires_grad_(False)
    next(model.module.parameters()).requires_grad_(True)
    return model.module, model.args
