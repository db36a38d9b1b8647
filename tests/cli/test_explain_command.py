"""`autoplan explain`: what one decision of a plan could be instead, as a table and as JSON."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Run = Callable[..., Any]


def said(run: Run, *arguments: object) -> dict[str, Any]:
    ended = run("explain", *arguments, "--json")
    assert ended.code == 0, ended.err
    found: dict[str, Any] = json.loads(ended.out)
    return found


def test_the_table_has_the_plans_own_choice_first_and_then_what_others_cost(run: Run, plan: Path) -> None:
    ended = run("explain", plan, "up.weight", "--alternatives", 4)
    assert ended.code == 0, ended.err
    lines = ended.out.splitlines()
    assert lines[0].startswith("up.weight: this plan takes ") and "GiB" in lines[0]
    assert lines[2].split() == ["store", "use", "step", "ms", "difference", "peak", "GiB"]
    assert lines[3].endswith("<- this plan") and len([line for line in lines if line.startswith("[")]) == 5
    assert re.match(r"\d+ more left out", lines[-1])
    for stage in ("load", "capture", "solve"):
        assert stage in ended.err


def test_json_is_one_object_with_pins_that_the_planner_takes(run: Run, plan: Path) -> None:
    found = said(run, plan, "mid.1.weight", "--alternatives", 4)
    assert (found["section"], found["address"], found["count"]) == ("params", ["mid.*.weight"], 2)
    assert {"step_ms", "peak_gib", "limit_gib", "left_out", "unbound_pins", "interrupted", "seconds"} <= set(found)
    own, *others = found["alternatives"]
    assert own["own"] and own["fits"] and own["difference_ms"] == pytest.approx(0, abs=1e-3 * found["step_ms"])
    assert len(others) == 4 and not any(one["own"] for one in others)
    last = others[-1]
    assert last["difference_ms"] == pytest.approx(last["step_ms"] - found["step_ms"]) and last["problem"] is None
    Path("pins.yaml").write_text(json.dumps(last["pins"]))
    again = run("plan", "model.py", "--mesh", "2x2", "--hardware", "test-free-links", "--pins", "pins.yaml", "--json")
    assert json.loads(again.out)["step_ms"] == pytest.approx(last["step_ms"], rel=1e-2), again.err


def test_a_copy_and_the_pattern_are_the_same_question(run: Run, plan: Path) -> None:
    one, all_ = (said(run, plan, address, "--alternatives", 3) for address in ("mid.0.weight", "mid.*.weight"))
    assert {**one, "seconds": None} == {**all_, "seconds": None}


def test_ops_and_inputs_have_alternatives_too(run: Run, plan: Path) -> None:
    op = said(run, plan, "up/linear", "--alternatives", 2)
    assert op["section"] == "ops" and all(" on x; " in one["row"] for one in op["alternatives"])
    place = said(run, plan, "inputs/x", "--alternatives", 2)
    assert place["section"] == "inputs" and [len(one["place"]) for one in place["alternatives"]] == [2, 2, 2]


def test_an_unknown_address_names_what_is_like_it(run: Run, plan: Path) -> None:
    ended = run("explain", plan, "up.wieght")
    assert (ended.code, ended.out) == (1, "")
    assert "did you mean up.weight" in ended.err and "plan.yaml:2" in ended.err and "Traceback" not in ended.err


def test_wrong_usage_is_told_before_anything_is_loaded(run: Run, plan: Path) -> None:
    assert run("explain", plan).code == 2
    ended = run("explain", plan, "up.weight", "--time-limit", "0")
    assert ended.code == 2 and "--time-limit 0 is not a positive number" in ended.err and "load" not in ended.err


def test_a_hand_edit_is_compared_by_what_it_costs_today(run: Run, plan: Path) -> None:
    """Whatever the file predicts, differences are to what the plan is predicted to take now."""
    text = plan.read_text()
    for wrong in ("step_ms: 99", "step_ms: 7777"):
        plan.write_text(re.sub(r"step_ms: [0-9.]+", wrong, text))
        found = said(run, plan, "up.weight", "--alternatives", 0)
        assert found["step_ms"] < 50 and found["alternatives"][0]["difference_ms"] == pytest.approx(0, abs=1e-3 * found["step_ms"])


def test_a_tight_limit_shows_what_does_not_fit(run: Run, model: Path, tmp_path: Path) -> None:
    on = ("--mesh", "2x2", "--hardware", "test-free-links", "--set", "dim=64")
    free = json.loads(run("plan", model, *on, "-o", "free.yaml", "--json").out)
    limit = f"{free['peak_gib'] * 0.6:.6f}"
    planned = run("plan", model, *on, "--memory-gib", limit, "-o", "plan.yaml")
    assert planned.code == 0, planned.err
    ended = run("explain", "plan.yaml", "mid.*.weight", "--alternatives", 4)
    assert ended.code == 0, ended.err
    assert "does not fit" in ended.out
    unfit = [one for one in said(run, "plan.yaml", "mid.*.weight", "--alternatives", 4)["alternatives"] if not one["fits"]]
    assert unfit and all(one["step_ms"] is None and one["peak_gib"] > float(limit) for one in unfit)


def test_a_smaller_model_and_inference_have_alternatives(run: Run, plan: Path) -> None:
    smaller = said(run, plan, "up.weight", "--set", "batch=4", "--alternatives", 1)
    assert smaller["step_ms"] > 0 and len(smaller["alternatives"]) == 2
    on = ("--mesh", "4", "--hardware", "test-free-links")
    assert run("plan", "model.py:no_loss", *on, "--mode", "infer", "-o", "infer.yaml").code == 0
    inferred = said(run, "infer.yaml", "down.weight", "--alternatives", 2)
    assert len(inferred["alternatives"]) == 3 and all(one["fits"] for one in inferred["alternatives"])


def test_a_plan_on_one_device_has_no_alternatives(run: Run, model: Path) -> None:
    assert run("plan", model, "--mesh", "1", "--hardware", "test-free-links", "-o", "one.yaml").code == 0
    for address in ("up.weight", "up/linear", "inputs/x"):
        assert len(said(run, "one.yaml", address)["alternatives"]) == 1
