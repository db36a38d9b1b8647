"""`autoplan plan`: where the plan goes, what is said on which stream, and how flags and requests meet."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from autoplan.cli import hardware
from autoplan.cli.hardware import profile_of
from autoplan.plan import load_plan, parse_plan

Run = Callable[..., Any]
ON_FOUR = ("--mesh", "2x2", "--hardware", "cpu-gloo")


@pytest.mark.usefixtures("model")
def test_without_o_the_plan_is_stdout_and_all_else_stderr(run: Run) -> None:
    ended = run("plan", "model.py", *ON_FOUR)
    assert ended.code == 0, ended.err
    plan = parse_plan(ended.out)
    assert plan.mesh.shape == (2, 2) and plan.model.target == "model.py:build" and plan.model.parameters == 10448
    for stage in ("load", "capture", "rules", "problem", "solve", "step "):
        assert stage in ended.err


@pytest.mark.usefixtures("model")
def test_the_target_is_written_relative_to_the_plan_and_the_same_bytes_come_twice(run: Run, tmp_path: Path) -> None:
    (tmp_path / "plans").mkdir()
    for name in ("a", "b"):
        ended = run("plan", "model.py", *ON_FOUR, "--set", "dim=32", "-o", f"plans/{name}.yaml")
        assert (ended.code, ended.out) == (0, ""), ended.err
    assert load_plan("plans/a.yaml").model.target == "../model.py:build"
    assert load_plan("plans/a.yaml").model.set == {"dim": 32}
    assert Path("plans/a.yaml").read_bytes() == Path("plans/b.yaml").read_bytes()
    assert str(tmp_path) not in Path("plans/a.yaml").read_text()


@pytest.mark.usefixtures("model")
def test_json_is_one_object_with_what_the_contract_names(run: Run) -> None:
    ended = run("plan", "model.py", *ON_FOUR, "-o", "plan.yaml", "--json")
    said = json.loads(ended.out)
    assert said["status"] == "optimal" and said["gap"] == 0
    assert said["step_ms"] > 0 and said["peak_gib"] > 0 and said["nodes"] > 0 and said["variables"] > 0 and said["fallbacks"] == []
    assert {"load", "capture", "rules", "problem", "solve", "compare", "total"} <= set(said["seconds"])
    assert list(said["by_hand"]) == ["ddp", "fsdp", "fsdp+tp"] and said["by_hand"]["ddp"]["step_ms"] >= said["step_ms"]
    assert said["seconds"]["total"] >= said["seconds"]["solve"]
    assert load_plan("plan.yaml").solver.status == "optimal" and "plan" not in said
    whole = json.loads(run("plan", "model.py", *ON_FOUR, "--json").out)
    assert whole["plan"]["autoplan"] == 1


@pytest.mark.usefixtures("model")
def test_a_plan_stands_beside_layouts_by_hand_and_keeps_them(run: Run) -> None:
    ended = run("plan", "model.py", *ON_FOUR, "-o", "plan.yaml")
    beside = [line.split()[0] for line in ended.err.partition("beside layouts by hand")[2].splitlines()[1:5]]
    assert beside == ["this", "ddp", "fsdp", "fsdp+tp"]
    assert run("show", "plan.yaml").out in ended.err + "\n"
    assert (
        json.loads(run("show", "plan.yaml", "--json").out)["by_hand"]
        == json.loads(run("plan", "model.py", *ON_FOUR, "--json").out)["by_hand"]
    )


@pytest.mark.usefixtures("model")
def test_flags_override_the_request(run: Run, tmp_path: Path) -> None:
    (tmp_path / "requests").mkdir()
    (tmp_path / "requests/r.yaml").write_text(
        "target: ../model.py\nset: {dim: 32, batch: 16}\nmesh: 4\nhardware: cpu-gloo\noptimizer: sgd\n"
    )
    ended = run("plan", "requests/r.yaml", "--mesh", "data=2", "--set", "dim=64", "--batch", "4", "-o", "plan.yaml")
    assert ended.code == 0, ended.err
    plan = load_plan("plan.yaml")
    assert plan.model.set == {"dim": 64, "batch": 4} and plan.mesh.names == ("data",) and plan.options.optimizer == "sgd"
    assert plan.model.target == "model.py:build"


@pytest.mark.usefixtures("model")
def test_compiled_steps_are_asked_for_by_flag_or_request_and_predicted_as_such(run: Run, tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text("target: model.py\nmesh: 2x2\nhardware: cpu-gloo\ncompile: true\n")
    eager, by_flag, by_request = (
        run("plan", *words) for words in (("model.py", *ON_FOUR), ("model.py", *ON_FOUR, "--compile"), ("r.yaml",))
    )
    assert by_flag.code == 0 and by_flag.out == by_request.out, by_flag.err
    compiled, plain = parse_plan(by_flag.out), parse_plan(eager.out)
    assert "compile" not in eager.out and "compile: true}" in by_flag.out and "compiled" in by_flag.err
    assert compiled.options.compile and compiled.predicted.compute_ms < plain.predicted.compute_ms


@pytest.mark.usefixtures("model")
def test_compiled_inference_is_planned_too(run: Run) -> None:
    ended = run("plan", "model.py:no_loss", *ON_FOUR, "--mode", "infer", "--compile")
    assert ended.code == 0 and parse_plan(ended.out).options.compile, ended.err


@pytest.mark.usefixtures("model")
def test_inference_needs_no_loss_and_no_optimizer(run: Run) -> None:
    ended = run("plan", "model.py:no_loss", *ON_FOUR, "--mode", "infer")
    assert ended.code == 0, ended.err
    options = parse_plan(ended.out).options
    assert (options.mode, options.optimizer) == ("infer", "none")


@pytest.mark.usefixtures("model")
def test_what_fits_nowhere_says_the_smallest_that_would(run: Run, tmp_path: Path) -> None:
    (tmp_path / "saved.yaml").write_text("saved\n")
    ended = run("plan", "model.py", *ON_FOUR, "--memory-gib", "0.000001", "-o", "saved.yaml")
    assert (ended.code, ended.out) == (3, "")
    assert "no plan fits" in ended.err and "the smallest needs" in ended.err and "--memory-gib" in ended.err
    assert (tmp_path / "saved.yaml").read_text() == "saved\n"


@pytest.mark.usefixtures("model")
def test_an_op_without_a_rule_is_listed_and_strict_refuses_it(run: Run) -> None:
    ended = run("plan", "model.py:unknown", *ON_FOUR)
    assert ended.code == 0, ended.err
    assert any("linalg" in line.op for line in parse_plan(ended.out).fallbacks)
    assert "fallback: " in ended.err
    strict = run("plan", "model.py:unknown", *ON_FOUR, "--strict")
    assert (strict.code, strict.out) == (1, "")
    assert "has no rule" in strict.err and "model.py:35" in strict.err


@pytest.mark.usefixtures("model")
def test_pins_are_read_and_kept_in_the_plan(run: Run, tmp_path: Path) -> None:
    (tmp_path / "pins.yaml").write_text("- {params: down.weight, store: [R, S(1)]}\n")
    ended = run("plan", "model.py", *ON_FOUR, "--pins", "pins.yaml")
    assert ended.code == 0, ended.err
    assert parse_plan(ended.out).pins == ({"params": "down.weight", "store": ["R", "S(1)"]},)


def test_an_older_plan_is_a_start(run: Run, plan: Path) -> None:
    before = plan.read_bytes()
    ended = run("plan", "model.py", "--mesh", "2x2", "--hardware", "test-free-links", "--base", plan, "-o", plan)
    assert ended.code == 0, ended.err
    assert plan.read_bytes() == before


@pytest.mark.parametrize(
    ("device", "profile"),
    [
        ("NVIDIA H200", "h200-sxm"),
        ("NVIDIA H200 NVL", None),
        ("NVIDIA H100 80GB HBM3", "h100-sxm"),
        ("NVIDIA H100 PCIe", None),
        ("NVIDIA A100-SXM4-80GB", "a100-80g-sxm"),
        ("NVIDIA A100-SXM4-40GB", None),
        ("NVIDIA GeForce RTX 4090", None),
    ],
)
def test_a_gpu_has_a_profile_only_where_it_is_that_machine(device: str, profile: str | None) -> None:
    assert profile_of(device) == profile


@pytest.mark.parametrize(
    ("device", "name", "said"),
    [
        (None, "h100-sxm", "no GPU here: planning for h100-sxm"),
        ("NVIDIA H200", "h200-sxm", "planning for h200-sxm, the GPU here"),
        ("NVIDIA L4", "h100-sxm", "no profile for NVIDIA L4: planning for h100-sxm"),
    ],
)
def test_without_hardware_the_gpu_here_decides(
    device: str | None, name: str, said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(hardware, "device_name", lambda: device)
    assert hardware.choose_hardware(None, None).name == name
    captured = capsys.readouterr()
    assert captured.out == "" and said in captured.err


@pytest.mark.usefixtures("model")
@pytest.mark.parametrize(
    "settings", [("--set", "dim=32", "batch=8"), ("--set", "dim=32", "--set", "batch=8"), ("--set=dim=32", "--set", "batch=8")]
)
def test_set_takes_all_the_settings_that_follow(run: Run, settings: tuple[str, ...]) -> None:
    ended = run("plan", "model.py", *settings, *ON_FOUR)
    assert ended.code == 0, ended.err
    assert parse_plan(ended.out).model.set == {"dim": 32, "batch": 8}
