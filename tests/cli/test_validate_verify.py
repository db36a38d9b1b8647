"""`validate` and `verify`: a plan against its model, found right or with every fault named by its line."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

Run = Callable[..., Any]


def test_a_plan_is_valid_for_its_own_model(run: Run, plan: Path) -> None:
    ended = run("validate", plan)
    assert ended.code == 0, ended.err
    assert "is valid: 10,448 parameters on x=2, y=2" in ended.out
    step = next(line for line in ended.out.splitlines() if line.startswith("step_ms"))
    assert len(set(step.split()[1:])) == 1, f"predicted then and now: {step}"


def test_another_profile_gives_other_predictions(run: Run, plan: Path) -> None:
    ended = run("validate", plan, "--hardware", "h100-sxm")
    assert ended.code == 0 and re.search(r"^step_ms .*%$", ended.out, re.MULTILINE), ended.out
    assert "layouts by hand (by_hand) are not predicted anew" in ended.err and "not predicted anew" not in run("validate", plan).err


def edit(plan: Path, pattern: str, new: str) -> int:
    """Replaces the first match of `pattern`; its line comes back."""
    text = plan.read_text()
    found = re.search(pattern, text, re.MULTILINE)
    assert found, f"{pattern} in\n{text}"
    plan.write_text(text[: found.start()] + found.expand(new) + text[found.end() :])
    return text.count("\n", 0, found.start()) + 1


BAD_PLANS = [
    (r"^outputs:", r"otputs:", "unknown key 'otputs'"),
    (r"^  (down\.weight: .*)$", r"  \1\n  \1", "duplicate key 'down.weight'"),
    (r"^  down\.weight: .*\n", r"", "down.weight: this parameter of the model is matched by no line of params"),
    (
        r"^  mid\.\*\.weight: \{(shape: [^]]*\]), count: 2, (.*)$",
        r"  mid.0.weight: {\1, \2\n\g<0>",
        "mid.0.weight: matched by 2 lines, mid.0.weight and mid.*.weight",
    ),
    (r"^(  down\.weight: *\{shape: )\[16, 64\]", r"\1[16, 128]", "shape [16, 128]"),
    (r"^(  down\.weight: .*store: )\[[^]]*\](, use: \[)", r"\1[S(7), R]\2", "S(7)"),
    (r"^(  mid\.\*\.weight: \{.* count: )2", r"\g<1>3", "count 3, but the model has 2 such parameters"),
    (r"^autoplan: 1", r"autoplan: 3", "3 is not a plan format"),
]


@pytest.mark.parametrize(("pattern", "new", "part"), BAD_PLANS, ids=[part or "pattern" for _, _, part in BAD_PLANS])
def test_a_hand_edit_that_is_wrong_is_named_with_its_line(run: Run, plan: Path, pattern: str, new: str, part: str) -> None:
    edit(plan, pattern, new)
    before = plan.read_bytes()
    ended = run("validate", plan)
    assert (ended.code, ended.out) == (1, "")
    assert part in ended.err and re.search(r"plan\.yaml:\d+", ended.err) and "Traceback" not in ended.err
    assert plan.read_bytes() == before


def test_a_plan_for_another_model_names_the_parameters_that_differ(run: Run, plan: Path) -> None:
    for command in (("validate", plan, "model.py:renamed"), ("verify", plan, "--target", "model.py:renamed")):
        edit(plan, r"set: \{[^}]*\}", "set: {}")
        ended = run(*command)
        assert (ended.code, ended.out) == (1, "")
        assert "middle.weight" in ended.err and "up.weight" in ended.err and "plan.yaml:" in ended.err


def test_a_target_that_has_moved_is_named_with_the_line_that_names_it(run: Run, plan: Path) -> None:
    Path("model.py").rename("moved.py")
    ended = run("validate", plan)
    assert ended.code == 1 and "no such file: model.py" in ended.err and "plan.yaml:2" in ended.err
    assert run("validate", plan, "moved.py").code == 0


def test_an_unknown_profile_in_a_plan_asks_for_its_file(run: Run, plan: Path) -> None:
    line = edit(plan, r"profile: test-free-links", "profile: my-cluster")
    ended = run("validate", plan)
    assert ended.code == 1 and "unknown hardware 'my-cluster'" in ended.err
    assert f"plan.yaml:{line}" in ended.err and "--hardware FILE" in ended.err


def test_verify_finds_the_plan_equal_to_one_device(run: Run, plan: Path) -> None:
    ended = run("verify", plan, "--random-plans", "2", "--json")
    assert ended.code == 0, ended.err
    said = json.loads(ended.out)
    assert said["ok"] and said["random_plans"] == {"run": 2, "ok": 2}
    assert said["collectives"]["planned"] == said["collectives"]["observed"] != {}
    assert said["loss_rel_err"] <= 1e-5 and said["grad_rel_err"] <= 1e-4 and said["split_flops_fraction"] > 0.9


def test_verify_proves_the_decisions_on_a_smaller_model(run: Run, plan: Path) -> None:
    ended = run("verify", plan, "--set", "dim=8", "--set", "batch=4")
    assert ended.code == 0, ended.err
    assert ended.out.startswith("same as one device")


def test_verify_exits_with_5_where_the_runs_differ(run: Run, plan: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from autoplan.runtime.verify.results import Verification

    wrong = Verification(
        1e-7, float("inf"), "up.weight", 1.0, {"all-reduce x": 4}, {"all-reduce x": 3}, ("rank 1 ran other collectives than rank 0",)
    )
    monkeypatch.setattr("autoplan.runtime.verify.verify.verify", lambda *_, **__: wrong)
    ended = run("verify", plan)
    assert ended.code == 5 and "differs from one device" in ended.err
    assert ended.out.startswith("DIFFERS from one device") and ended.out.count("<- differs") == 3 and "up.weight" in ended.out
    assert "fp64" not in ended.out, "no precision makes a count of collectives right"
    as_json = run("verify", plan, "--json")
    assert as_json.code == 5 and json.loads(as_json.out)["grad_rel_err"] is None


def test_verify_goes_to_fp64_where_rounding_may_be_all_there_is(run: Run, plan: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from autoplan.runtime.verify.results import Verification

    errors = {"float32": 1e-2, "float64": 1e-9}

    def runs(model: Any, plan: Any, *, dtype: torch.dtype, **_: Any) -> Verification:
        name = str(dtype).removeprefix("torch.")
        return Verification(0.0, errors[name], "up.weight", 1.0, {}, {}, dtype=name)

    monkeypatch.setattr("autoplan.runtime.verify.verify.verify", runs)
    ended = run("verify", plan, "--json")
    assert ended.code == 0 and json.loads(ended.out)["dtype"] == "fp64"
    assert run("verify", plan).out.startswith("same as one device, both in fp64")
    assert run("verify", plan, "--dtype", "fp32").code == 5, "who asks for fp32 gets fp32"
    errors["float64"] = 1e-2
    assert run("verify", plan).code == 5
