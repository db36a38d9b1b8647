"""What a command costs before it does anything: comparing plans must not load torch."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Run = Callable[..., Any]
ROOT = Path(__file__).parent.parent.parent
GOLDEN = ROOT / "tests/plan/golden.yaml"
PATHS = {"PYTHONPATH": str(ROOT / "src")}
LIMIT_S = 0.5
HEAVY = ("torch", "ortools", "rich", "numpy", "pydantic")


def autoplan(*arguments: object, options: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    environment = os.environ | PATHS
    command = [sys.executable, *options, "-m", "autoplan", *map(str, arguments)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=60)


def imported(stderr: str) -> set[str]:
    lines = (line for line in stderr.splitlines() if line.startswith("import time:"))
    return {line.rsplit("|", 1)[1].strip().split(".")[0] for line in lines}


@pytest.mark.parametrize("arguments", [("diff", GOLDEN, GOLDEN), ("show", GOLDEN), ("--help",)], ids=lambda arguments: arguments[0])
def test_reading_plans_loads_nothing_heavy(arguments: tuple[object, ...]) -> None:
    ended = autoplan(*arguments, options=("-X", "importtime"))
    assert ended.returncode == 0, ended.stderr
    assert "yaml" in imported(ended.stderr)
    assert not imported(ended.stderr) & set(HEAVY)


def test_importing_plans_loads_no_torch() -> None:
    command = [sys.executable, "-X", "importtime", "-c", "import autoplan.plan"]
    ended = subprocess.run(command, env=os.environ | PATHS, capture_output=True, text=True, check=True, timeout=60)
    assert not imported(ended.stderr) & set(HEAVY)


def test_a_plan_that_needs_no_search_loads_no_solver(tmp_path: Path) -> None:
    """ortools.sat loads pandas: three quarters of a second, a tenth of what planning takes."""
    arguments = ("plan", ROOT / "configs/demo-llama.yaml", "-o", tmp_path / "plan.yaml")
    ended = autoplan(*arguments, options=("-X", "importtime"))
    assert ended.returncode == 0, ended.stderr
    assert "torch" in imported(ended.stderr)
    assert not imported(ended.stderr) & {"ortools", "pandas"}


def test_diff_answers_within_half_a_second() -> None:
    """It takes 0.15 s alone. Counted are the seconds it computes, so that what else runs on the machine does not decide."""
    before = os.times()
    assert autoplan("diff", GOLDEN, GOLDEN).returncode == 0
    after = os.times()
    assert after.children_user + after.children_system - before.children_user - before.children_system < LIMIT_S


def test_a_reader_that_stops_reading_is_no_error() -> None:
    command = f"{sys.executable} -m autoplan show {GOLDEN} | true"
    ended = subprocess.run(["bash", "-c", command], env=os.environ | PATHS, capture_output=True, text=True, timeout=60)
    assert ended.stderr == ""


def test_a_command_leaves_the_garbage_collector_as_it_was(run: Run) -> None:
    before = gc.get_threshold()
    assert run("diff", GOLDEN, GOLDEN).code == 0
    assert gc.get_threshold() == before
    assert gc.isenabled()
