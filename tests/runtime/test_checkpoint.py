"""Checkpoints: resumed training is uninterrupted training, on any mesh, and a checkpoint is whole or absent."""

from __future__ import annotations

from pathlib import Path

import checkpoint_jobs
import pytest
import torch
from checkpoint_jobs import one_rank_plan, plan_with_stored
from runtime_cases import GPT2, TINY, Seeded, mesh_of, odds, placements, random_plan

from autoplan.errors import PlanError, UsageError
from autoplan.models import gpt2
from autoplan.runtime.storage import checkpoint
from autoplan.runtime.verify.pool import WorkerPool

UNDROPPED = Seeded(gpt2.build, {**GPT2.settings, "dropout": 0.0})
QKV = {"layers.0.attn.qkv.weight": placements("S(1,3) S(0)"), "layers.1.attn.qkv.weight": placements("S(1) S(1,3)")}


def test_resumed_training_is_uninterrupted_training_bit_by_bit(pool: WorkerPool, tmp_path: Path) -> None:
    """Dropout, clipping, a scheduler and two parameter groups. The same ranks do the same sums in the same order: nothing may differ."""
    plan = plan_with_stored(GPT2, mesh_of(2, 2), 5, QKV)
    whole = pool.run(checkpoint_jobs.train, GPT2, plan, str(tmp_path / "whole"), 4, False)
    pool.run(checkpoint_jobs.train, GPT2, plan, str(tmp_path / "parts"), 2)
    resumed = pool.run(checkpoint_jobs.train, GPT2, plan, str(tmp_path / "parts"), 4, False)
    for one, other in zip(whole, resumed, strict=True):
        assert other.done == 2
        assert other.losses == one.losses[2:] and other.rates == one.rates[2:]
        assert other.after.keys() == one.after.keys()
        assert all(torch.equal(tensor, one.after[name]) for name, tensor in other.after.items())
    assert len(set(whole[0].losses)) == 4 and len(set(whole[0].rates)) == 4


def test_a_checkpoint_of_2x2_goes_on_on_4x1_and_on_one_process(pool: WorkerPool, one_rank: None, tmp_path: Path) -> None:
    """Tied weights, and grouped shards on either side. What is read is what was written, exactly; the sums that follow are
    those of other meshes, so losses agree to fp32 rounding over some steps, as in the tests of `parallelize`."""
    folder = str(tmp_path)
    saved = pool.run(checkpoint_jobs.train, UNDROPPED, plan_with_stored(UNDROPPED, mesh_of(2, 2), 3, QKV), folder, 2)[0]
    assert any(name.startswith("optimizer.state.") for name in saved.after)
    other = plan_with_stored(UNDROPPED, mesh_of(4, 1), 8, {"layers.0.attn.qkv.weight": placements("S(1,2) R")})
    on_four = pool.run(checkpoint_jobs.train, UNDROPPED, other, folder, 4, False)
    alone = checkpoint_jobs.train(UNDROPPED, one_rank_plan(UNDROPPED), folder, 4, False)
    for found in (*on_four, alone):
        assert found.done == 2 and found.before.keys() == saved.after.keys()
        assert all(torch.equal(tensor, saved.after[name]) for name, tensor in found.before.items())
        assert found.losses == pytest.approx(alone.losses, rel=1e-4)


@pytest.mark.parametrize("optimizer", ["adamw", "momentum", "sgd"])
def test_unused_and_frozen_parameters_and_batch_statistics_resume(one_rank: None, tmp_path: Path, optimizer: str) -> None:
    """No gradient reaches the unused one, so that it has no optimizer state."""
    build = Seeded(odds)
    plan = one_rank_plan(build)
    whole = checkpoint_jobs.train(build, plan, str(tmp_path / "whole"), 3, False, optimizer)
    checkpoint_jobs.train(build, plan, str(tmp_path / "parts"), 1, True, optimizer)
    resumed = checkpoint_jobs.train(build, plan, str(tmp_path / "parts"), 3, False, optimizer)
    assert resumed.losses == whole.losses[1:]
    assert all(torch.equal(tensor, resumed.after[name]) for name, tensor in whole.after.items())
    assert "model.norm.running_mean" in whole.after and "model.unused" in whole.after
    assert not any(name.startswith("optimizer.state.unused") for name in whole.after)


def test_the_last_checkpoints_are_kept_and_what_a_dead_run_left_is_removed(one_rank: None, tmp_path: Path) -> None:
    build = Seeded(odds)
    plan = one_rank_plan(build)
    (tmp_path / ".writing-step-00000004").mkdir()
    (tmp_path / ".writing-step-00000004" / "__0_0.distcp").write_text("half")
    (tmp_path / "step-notes").mkdir()
    assert checkpoint.last(tmp_path) is None
    found = checkpoint_jobs.save_steps(build, plan, str(tmp_path), [1, 2, 10, 10])
    assert found == ["step-00000002", "step-00000010", "step-notes"]
    assert checkpoint.last(tmp_path) == tmp_path / "step-00000010"
    assert checkpoint_jobs.resume_other(build, plan, str(tmp_path), None) == 10
    with pytest.raises(PlanError, match="it has no optimizer"):
        checkpoint_jobs.resume_other(build, plan, str(tmp_path), "sgd")
    assert checkpoint_jobs.save_steps(build, plan, str(tmp_path), [11], keep=1) == ["step-00000011", "step-notes"]


def test_a_checkpoint_that_is_not_this_runs_is_one_message_with_all_differences(one_rank: None, tmp_path: Path) -> None:
    plan = one_rank_plan(TINY)
    checkpoint_jobs.train(TINY, plan, str(tmp_path), 1)
    other = Seeded(TINY.factory, {**TINY.settings, "n_layers": 1, "ffn_dim": 64})
    with pytest.raises(PlanError) as error:
        checkpoint_jobs.train(other, one_rank_plan(other), str(tmp_path), 1)
    message = str(error.value)
    assert "not in this model: model.layers.1.attn.wk.weight, model.layers.1.attn.wo.weight" in message
    assert "model.layers.0.mlp.w1.weight is [48, 32] there, [64, 32] here" in message
    assert "its optimizer has 2 groups of 3 and 18 parameters, this one 2 groups of 3 and 9" in message
    with pytest.raises(PlanError, match="2 groups of 3 and 18 parameters, this one 1 group of 21 parameters"):
        checkpoint_jobs.resume_other(TINY, plan, str(tmp_path), "momentum")


def test_another_optimizer_and_a_scheduler_that_was_not_saved_are_said(one_rank: None, tmp_path: Path) -> None:
    build = Seeded(odds)
    plan = one_rank_plan(build)
    checkpoint_jobs.train(build, plan, str(tmp_path), 1, True, "momentum")
    with pytest.raises(PlanError, match="not in this model: optimizer.state.head.bias.momentum_buffer, optimizer.state.head.w"):
        checkpoint_jobs.resume_other(build, plan, str(tmp_path), "sgd")
    checkpoint_jobs.save_steps(build, plan, str(tmp_path / "bare"), [1])
    with pytest.raises(PlanError, match="it has no state of scheduler"):
        checkpoint_jobs.train(build, plan, str(tmp_path / "bare"), 2)


def test_the_folder_of_one_checkpoint_is_refused(one_rank: None, tmp_path: Path) -> None:
    build = Seeded(odds)
    checkpoint_jobs.save_steps(build, one_rank_plan(build), str(tmp_path), [3])
    with pytest.raises(UsageError, match="is one checkpoint, not a folder of them"):
        checkpoint.last(tmp_path / "step-00000003")


def test_files_that_other_hosts_wrote_elsewhere_are_said(one_rank: None, tmp_path: Path) -> None:
    build = Seeded(odds)
    checkpoint_jobs.save_steps(build, one_rank_plan(build), str(tmp_path), [3])
    writing = (tmp_path / "step-00000003").rename(tmp_path / ".writing-step-00000003")
    (writing / "__0_0.distcp").unlink()
    with pytest.raises(PlanError, match="lacks __0_0.distcp"):
        checkpoint._publish(writing, tmp_path / "step-00000003", 2)
    assert checkpoint.last(tmp_path) is None


def test_a_checkpoint_that_is_damaged_is_said(one_rank: None, tmp_path: Path) -> None:
    build = Seeded(odds)
    plan = one_rank_plan(build)
    checkpoint_jobs.save_steps(build, plan, str(tmp_path), [3])
    (tmp_path / "step-00000003" / "__0_0.distcp").write_bytes(b"")
    with pytest.raises(PlanError, match="the checkpoint cannot be read: rank 0"):
        checkpoint_jobs.resume_other(build, plan, str(tmp_path), None)
    (tmp_path / "step-00000003" / ".metadata").write_bytes(b"")
    with pytest.raises(PlanError, match="the checkpoint cannot be read: EOFError"):
        checkpoint_jobs.resume_other(build, plan, str(tmp_path), None)


def test_bf16_reads_what_fp32_wrote(one_rank: None, tmp_path: Path) -> None:
    checkpoint_jobs.save_steps(TINY, random_plan(TINY, mesh_of(1), 0), str(tmp_path), [1])
    plan = random_plan(TINY, mesh_of(1), 0, precision="bf16")
    found = checkpoint_jobs.read_model(TINY, plan, str(tmp_path))
    expected = {f"model.{name}": parameter.bfloat16() for name, parameter in TINY().module.named_parameters()}
    assert found.keys() == expected.keys() and all(torch.equal(found[name], tensor) for name, tensor in expected.items())


def test_steps_below_nought_are_not_saved(one_rank: None, tmp_path: Path) -> None:
    """Their folder would have a name that no reading looks for."""
    with pytest.raises(UsageError, match="a checkpoint after -1 steps"):
        checkpoint_jobs.save_steps(TINY, one_rank_plan(TINY), str(tmp_path / "ck"), [-1])
    assert not list(tmp_path.iterdir())
