"""`autoplan calibrate`: a profile of this machine that `autoplan plan` reads, under torchrun and without, and what cannot be said early."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from autoplan.cost.hardware import load_hardware

Run = Callable[..., Any]
ROOT = Path(__file__).parent.parent.parent
ENVIRONMENT = {key: value for key, value in os.environ.items() if key not in ("RANK", "WORLD_SIZE")} | {
    "PYTHONPATH": str(ROOT / "src"),
    "OMP_NUM_THREADS": "1",
    "CUDA_VISIBLE_DEVICES": "",
}
FOLDER_THAT_CANNOT_BE = "absent/profile.yaml"


def calibrate(processes: int, *arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Under torchrun; one process runs without."""
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)) if processes > 1 else ()
    command = [sys.executable, *launcher, "-m", "autoplan", "calibrate", *arguments]
    return subprocess.run(command, cwd=folder, env=ENVIRONMENT, capture_output=True, text=True, timeout=300, check=False)


@pytest.mark.slow
def test_two_processes_write_a_profile_that_plans_are_made_with(run: Run, model: Path, tmp_path: Path) -> None:
    ended = calibrate(2, "-o", "ours.yaml", "--quick", "--json", folder=tmp_path)
    assert ended.returncode == 0, ended.stderr
    said = json.loads(ended.stdout)
    assert (said["ranks"], said["base"], said["left_out"]) == (2, "cpu-gloo", {})
    assert {"vectors", "products", "attention forward", "optimizer", "links, in tables", "links, by formula"} <= set(said["families"])
    assert all(each["measured_s"] > 0 and each["predicted_s"] > 0 and each["runs"] > 0 for each in said["measured"])
    assert "no GPU" in ended.stderr and "typically off" in ended.stderr and "wrote ours.yaml" in ended.stderr
    assert ended.stderr.count("wrote ours.yaml") == 1, "rank 0 speaks"

    hardware = load_hardware(tmp_path / "ours.yaml")
    assert {group for group, _ in hardware.node_link.measured} == {2}
    planned = run("plan", model, "--mesh", "2", "--hardware", "./ours.yaml", "-o", "plan.yaml")
    assert planned.code == 0, planned.err
    assert "profile: ours" in Path("plan.yaml").read_text()
    assert sorted(path.name for path in tmp_path.iterdir() if path.name.startswith(".")) == []


@pytest.mark.slow
def test_one_process_takes_links_from_the_base_and_says_so(tmp_path: Path) -> None:
    ended = calibrate(1, "-o", "ours.yaml", "--quick", "--base", "test-free-links", folder=tmp_path)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout == "" and "links are not measured" in ended.stderr
    text = (tmp_path / "ours.yaml").read_text()
    assert "One process alone" in text and "all-gather: .inf" in text and "# as test-free-links" in text
    hardware = load_hardware(tmp_path / "ours.yaml")
    assert hardware.node_link == load_hardware("test-free-links").node_link
    assert hardware.compute.flops_per_s["float32"] > 1e9


@pytest.mark.gpu
@pytest.mark.slow
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_gpu_everything_is_measured_and_what_takes_the_time_is_predicted(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "autoplan", "calibrate", "-o", "ours.yaml", "--quick", "--json"]
    environment = {key: value for key, value in os.environ.items() if key not in ("RANK", "WORLD_SIZE")} | {"PYTHONPATH": str(ROOT / "src")}
    ended = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=600, check=False)
    assert ended.returncode == 0, ended.stderr
    said = json.loads(ended.stdout)
    assert not said["left_out"] and {"host ops", "host redistributions", "products misaligned"} <= set(said["families"])
    typical = {name: each["typical_error"] for name, each in said["families"].items()}
    assert all(typical[name] < 0.15 for name in ("products", "attention forward", "attention backward", "vectors")), typical


def test_under_torchrun_a_mistake_is_said_once(tmp_path: Path) -> None:
    ended = calibrate(2, "-o", FOLDER_THAT_CANNOT_BE, folder=tmp_path)
    assert ended.returncode != 0
    assert ended.stderr.count("error: -o absent/profile.yaml: there is no folder absent") == 1
    assert "exitcode  : 2" in ended.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "part"),
    [
        ((), 2, "'-o'"),
        (("-o", FOLDER_THAT_CANNOT_BE), 2, "there is no folder absent"),
        (("-o", "."), 2, "this is a folder"),
        (("-o", "p.yaml", "--base", "h300"), 2, "unknown hardware 'h300'"),
        (("-o", "p.yaml", "--base", "absent.yaml"), 1, "no such hardware profile"),
    ],
)
def test_mistakes_are_said_before_anything_is_measured(run: Run, arguments: tuple[str, ...], code: int, part: str) -> None:
    ended = run("calibrate", *arguments)
    assert (ended.code, ended.out) == (code, "") and part in ended.err and "Traceback" not in ended.err
    assert not list(Path().iterdir())


def test_more_processes_than_gpus_are_refused(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    ended = run("calibrate", "-o", "p.yaml")
    assert ended.code == 2 and "4 processes on a host with 2 GPUs" in ended.err and "--nproc-per-node 2" in ended.err
