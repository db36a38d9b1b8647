"""What goes wrong in a run is said once: lost ranks, ranks that fail alone, devices too small, losses that are no numbers."""

from __future__ import annotations

import json
import os
import re
import signal
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from runtime_cases import TINY, Seeded, mesh_of, random_plan
from torchrun import APPLY, Run

from autoplan.errors import DeviceMemoryError, NonFiniteLoss, UsageError
from autoplan.plan import write_plan
from autoplan.plan.schema import MemoryGib, Plan, Predicted
from autoplan.runtime.ranks import launch
from autoplan.runtime.ranks.agreement import check_hosts
from autoplan.runtime.ranks.faults import DeviceMemory, check_loss, check_memory, memory_explained
from autoplan.runtime.ranks.watch import Sign

SETTINGS = {**TINY.settings, "vocab_size": 256, "n_layers": 1}
BUILD = Seeded(TINY.factory, SETTINGS)
MINUTE_S = 60.0


def plan_for(*shape: int, seed: int = 0) -> Plan:
    return random_plan(BUILD, mesh_of(*shape), seed, target="autoplan.models.llama:build", settings=SETTINGS)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("faults")
    for shape in ((1,), (2,), (2, 2)):
        write_plan(plan_for(*shape), folder / f"{'x'.join(map(str, shape))}.yaml")
    return folder


def start(folder: Path, processes: int, *arguments: str, options: tuple[str, ...] = (), name: str = "run") -> Run:
    return Run(["--standalone", "--nproc-per-node", str(processes), *options, *arguments], folder, name=name)


def test_a_rank_killed_in_a_step_is_named_once_and_all_end(folder: Path) -> None:
    run = start(folder, 4, APPLY, "--plan", "2x2.yaml", "--steps", "1000000")
    run.wait_for("step 3: loss")
    others = [run.pid_of(rank) for rank in (0, 1, 3)]
    os.kill(run.pid_of(2), signal.SIGKILL)
    killed = time.monotonic()
    assert run.end() != 0
    assert time.monotonic() - killed < MINUTE_S
    assert run.said.count("error:") == 1, run.said
    assert "error: rank 2 of 4 on" in run.said
    assert "runtime/train.py" not in run.said  # what the loss does to the others needs no traceback
    assert not [pid for pid in others if Path(f"/proc/{pid}").exists()]


def saved(checkpoint: Path) -> dict[str, bytes]:
    """The files of the steps that were saved, and of any that was begun."""
    return {str(path.relative_to(checkpoint)): path.read_bytes() for path in checkpoint.glob("*step-*/**/*") if path.is_file()}


def test_torchrun_restarts_and_the_run_goes_on_from_the_checkpoint(folder: Path) -> None:
    """Twice: rank 0, which speaks otherwise, is lost the second time."""
    first = start(folder, 2, APPLY, "--plan", "2.yaml", "--steps", "2", "--checkpoint", "ck")
    assert first.end() == 0, first.said
    before = saved(folder / "ck")
    go_on = (APPLY, "--plan", "2.yaml", "--steps", "1000000", "--checkpoint", "ck")
    run = start(folder, 2, *go_on, options=("--max-restarts", "1"))
    run.wait_for("step 4: loss")
    os.kill(run.pid_of(1), signal.SIGKILL)
    run.wait_for(r"(?s)resumed after step 2.*resumed after step 2.*step 4: loss")
    os.kill(run.pid_of(0), signal.SIGKILL)
    assert run.end() != 0
    assert run.said.count("error:") == 2, run.said
    assert "error: rank 1 of 2 on" in run.said and "error: rank 0 of 2 on" in run.said
    assert before and before == saved(folder / "ck")


def test_a_loss_that_is_no_number_ends_the_run_with_its_step(folder: Path) -> None:
    run = start(folder, 2, APPLY, "--plan", "2.yaml", "--steps", "6", "--lr", "1e30", "--checkpoint", "poisoned")
    assert run.end() != 0
    found = re.search(r"step (\d): loss nan", run.said)
    assert found and run.said.count("error:") == 1, run.said
    assert f"error: step {found[1]}: the loss is nan" in run.said and "--allow-nonfinite" in run.said
    assert f"step {int(found[1]) + 1}" not in run.said and not saved(folder / "poisoned")


def test_steps_without_a_number_go_on_if_told_to(folder: Path) -> None:
    run = start(folder, 1, APPLY, "--plan", "1.yaml", "--steps", "6", "--lr", "1e30", "--allow-nonfinite", "--json")
    assert run.end() == 0, run.said
    assert "step 6: loss nan" in run.said
    said = next(line for line in run.said.splitlines() if line.startswith("{"))
    assert json.loads(said, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))["losses"][-1] is None


ONE_FAILS = """
import os
import torch.distributed as dist
import autoplan
from autoplan.errors import TargetError

with autoplan.join_mesh("2.yaml"):
    if os.environ["RANK"] == "1":
        raise {error}
    dist.barrier()
"""


@pytest.mark.parametrize(
    ("error", "said"),
    [
        ('TargetError("the data cannot be read", where="shard 7")', "error: rank 1: the data cannot be read\n  shard 7\n"),
        ('ZeroDivisionError("of a user")', "ZeroDivisionError: of a user\n"),
    ],
    ids=["user's", "unexpected"],
)
def test_an_error_of_one_rank_ends_those_that_wait_for_it(folder: Path, error: str, said: str) -> None:
    (folder / "one_fails.py").write_text(ONE_FAILS.format(error=error))
    run = start(folder, 2, "one_fails.py")
    assert run.end() != 0
    assert run.said.count(said) == 1, run.said
    assert "rank 1: " in run.said and "Connection closed" not in run.said


LEAVE_IN_TURN = """
import os, sys, time
import autoplan

with autoplan.join_mesh("2.yaml"):
    time.sleep(2.0 * (os.environ["RANK"] == "0"))
    sys.exit()
"""


def test_ranks_that_are_done_may_leave_by_exit_one_after_the_other(folder: Path) -> None:
    """Rank 0 hears of a lost rank for half a second before it says so."""
    (folder / "leave.py").write_text(LEAVE_IN_TURN)
    run = start(folder, 2, "leave.py", name="leave")
    assert run.end() == 0, run.said
    assert "gone" not in run.said


PLAN_OF_RANK = """
import os
from autoplan.runtime.train import main

main(["--plan", f"rank{os.environ['RANK']}.yaml"])
"""


def test_plans_that_differ_between_ranks_are_said_once(folder: Path) -> None:
    write_plan(plan_for(2), folder / "rank0.yaml")
    write_plan(replace(plan_for(2), options=replace(plan_for(2).options, seed=1)), folder / "rank1.yaml")
    (folder / "plan_of_rank.py").write_text(PLAN_OF_RANK)
    run = start(folder, 2, "plan_of_rank.py")
    assert run.end() != 0
    assert run.said.count("error:") == 1 and "plan: rank 0 has" in run.said and "rank 1 has" in run.said, run.said


def test_as_many_processes_as_the_plan_has_ranks_or_one_message(folder: Path) -> None:
    run = start(folder, 2, APPLY, "--plan", "1.yaml")
    assert run.end() != 0
    assert run.said.count("error:") == 1 and "mesh of 1 = 1 ranks, but 2 processes run" in run.said, run.said


def predicting(peak_gib: float) -> Plan:
    return replace(plan_for(2), predicted=Predicted(memory_gib=MemoryGib(peak=peak_gib, activations=peak_gib)))


def test_devices_smaller_than_predicted_are_refused_before_the_start() -> None:
    ranks = [DeviceMemory("H200", 139.8, 139.0), DeviceMemory("H100", 79.1, 78.0)]
    assert check_memory(predicting(77.9), ranks) is None
    with pytest.raises(DeviceMemoryError) as error:
        check_memory(predicting(81.0), ranks)
    assert "rank 1 on H100 with 79.1 GiB" in str(error.value)
    assert "a peak of 81 GiB" in str(error.value) and "--memory-gib 74" in str(error.value)


def test_devices_that_others_fill_are_noted() -> None:
    note = check_memory(predicting(70.0), [DeviceMemory("H100", 79.1, 12.0)] * 6)
    assert note is not None and "ranks 0, 1, 2, 3, ... may run out" in note and "12.0 of 79.1 GiB are free" in note


def test_memory_that_ends_is_one_message_with_the_prediction() -> None:
    with pytest.raises(DeviceMemoryError) as error, memory_explained(predicting(3.0), "in step 7"):
        torch.empty(1 << 60, dtype=torch.uint8)
    assert "out of memory in step 7" in str(error.value) and "a peak of 3 GiB" in str(error.value)
    said = "CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has a total capacity of 79.10 GiB of which 3.00 GiB is free."
    with pytest.raises(DeviceMemoryError, match="Tried to allocate 20.00 GiB") as error, memory_explained(predicting(3.0), "in step 1"):
        raise torch.OutOfMemoryError(said)
    assert "\n" not in str(error.value).removeprefix(error.value.what + "\n")


def test_other_errors_stay_what_they_are() -> None:
    with pytest.raises(RuntimeError, match="shapes"), memory_explained(predicting(3.0), "in step 1"):
        raise RuntimeError("shapes do not match")


def test_more_processes_than_gpus_are_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert launch._own_gpu() == 1
    monkeypatch.setenv("LOCAL_RANK", "2")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    with pytest.raises(UsageError, match="4 processes run on a host where 2 GPUs are visible"):
        launch._own_gpu()


@pytest.mark.parametrize("loss", [float("nan"), float("inf"), -float("inf")])
def test_only_numbers_are_losses(loss: float) -> None:
    check_loss(1e30, 1, plan_for(2))
    with pytest.raises(NonFiniteLoss) as error:
        check_loss(loss, 12, plan_for(2))
    assert error.value.step == 12 and "step 12" in str(error.value)


def on_hosts_of(planned: int | None, mesh: Plan) -> Plan:
    return replace(mesh, hardware=replace(mesh.hardware, per_host=planned))


def test_hosts_are_those_that_the_plan_counts_on() -> None:
    """A mesh 2x4 in row-major order: y are neighbours, x ranks r and r + 4."""
    plan = plan_for(2, 4)
    assert check_hosts(plan, 8) is None
    assert check_hosts(on_hosts_of(4, plan), 4) is None
    assert check_hosts(on_hosts_of(2, plan), 2) is None  # y spans hosts, as planned
    note = check_hosts(plan, 4)
    assert note is not None and "axis x spans 2 hosts instead of 1" in note
    with pytest.raises(UsageError) as error:
        check_hosts(on_hosts_of(4, plan), 2)
    assert "2 of 8 ranks run on each host, the plan puts 4 there: axis y spans 2 hosts instead of 1" in str(error.value)
    assert "gpus_per_node: 2" in str(error.value)


def test_of_the_signs_of_one_fault_a_lost_rank_names_its_host() -> None:
    sign = Sign.of_loss(3, 8, "node-17")
    assert sign.kind == "lost" and sign.code == 7 and "rank 3 of 8 on node-17" in sign.text
