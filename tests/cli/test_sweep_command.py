"""`autoplan sweep`: every mesh planned as `plan` does, ranked."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from autoplan.cli import sweep
from autoplan.plan import load_plan

Run = Callable[..., Any]
ON_FOUR = ("--devices", "4", "--hardware", "cpu-gloo")


@pytest.mark.usefixtures("model")
def test_every_mesh_has_the_plan_that_plan_makes(run: Run) -> None:
    ended = run("sweep", "model.py", *ON_FOUR, "--json")
    assert ended.code == 0, ended.err
    said = json.loads(ended.out)
    assert said["devices"] == 4 and {entry["mesh"] for entry in said["meshes"]} == {"4", "2x2"}
    for entry in said["meshes"]:
        alone = json.loads(run("plan", "model.py", "--mesh", entry["mesh"], "--hardware", "cpu-gloo", "--json").out)
        assert (entry["step_ms"], entry["peak_gib"]) == (alone["step_ms"], alone["peak_gib"])
        assert entry["status"] == "optimal" and entry["seconds"] > 0
    times = [float(f"{entry['step_ms']:.3g}") for entry in said["meshes"]]
    assert times == sorted(times)


@pytest.mark.usefixtures("model")
def test_the_best_plan_is_written_and_is_the_one_that_plan_writes(run: Run) -> None:
    ended = run("sweep", "model.py", *ON_FOUR, "--axes", "3", "-o", "best.yaml")
    assert ended.code == 0, ended.err
    lines = ended.out.splitlines()
    assert lines[0].split()[:3] == ["mesh", "step", "ms"] and len(lines) == 3 and "█" in lines[1]
    best = lines[1].split()[0]
    assert f"wrote best.yaml, the plan for {best}" in ended.err
    assert run("plan", "model.py", "--mesh", best, "--hardware", "cpu-gloo", "-o", "alone.yaml").code == 0
    assert Path("best.yaml").read_bytes() == Path("alone.yaml").read_bytes()
    assert load_plan("best.yaml").mesh.size == 4


@pytest.mark.usefixtures("model")
def test_meshes_on_which_nothing_fits_come_last_and_say_what_they_need(run: Run) -> None:
    free = json.loads(run("sweep", "model.py", *ON_FOUR, "--json").out)
    nothing = run("sweep", "model.py", *ON_FOUR, "--memory-gib", "0.000001")
    assert nothing.code == 3 and "the smallest needs" in nothing.err and nothing.out == "" and "Traceback" not in nothing.err
    needs = {}
    for entry in free["meshes"]:
        found = run("plan", "model.py", "--mesh", entry["mesh"], "--hardware", "cpu-gloo", "--memory-gib", "0.000001")
        needs[entry["mesh"]] = float(found.err.split("the smallest needs ")[1].split()[0])
    assert f"the smallest needs {min(needs.values()):.4g}" in nothing.err


def test_of_equally_fast_meshes_the_simpler_one_is_first() -> None:
    plan = load_plan(Path(__file__).parent.parent / "plan" / "golden.yaml")

    def entry(mesh: str, step_ms: float | None) -> sweep.Try:
        if step_ms is None:
            return sweep.Try(mesh, None, None, 0.0)
        return sweep.Try(mesh, replace(plan, predicted=replace(plan.predicted, step_ms=step_ms)), None, 0.0)

    given = [entry("2x2x2", 98.0), entry("4x4", None), entry("2x4", 98.01), entry("8", 98.02), entry("1x9", 97.0)]
    assert [each.mesh for each in sweep.ranked(given)] == ["1x9", "8", "2x4", "2x2x2", "4x4"]


@pytest.mark.usefixtures("model")
def test_ctrl_c_ends_with_the_meshes_that_are_planned(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    planned = sweep._try

    def until_the_second(loaded: Any, request: Any, *rest: Any) -> Any:
        if request.mesh.ndim == 2:
            raise KeyboardInterrupt
        return planned(loaded, request, *rest)

    monkeypatch.setattr(sweep, "_try", until_the_second)
    ended = run("sweep", "model.py", *ON_FOUR)
    assert ended.code == 0 and [line.split()[0] for line in ended.out.splitlines()] == ["mesh", "4"]


@pytest.mark.usefixtures("model")
@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("model.py",), 2, "--devices"),
        (("model.py", "--devices", "0"), 2, "0"),
        (("nowhere.py", "--devices", "4"), 1, "nowhere.py"),
        (("pinned.yaml", "--devices", "4"), 1, "one mesh"),
        (("model.py", "--devices", "4", "-o", "model.py"), 2, "not where the plan goes"),
    ],
)
def test_mistakes_are_said(run: Run, words: tuple[str, ...], code: int, said: str) -> None:
    Path("pinned.yaml").write_text("target: model.py\npins: [{params: all, store: [R]}]\n")
    ended = run("sweep", *words)
    assert ended.code == code and said in ended.err and "Traceback" not in ended.err
