"""`show` and `diff`, on plans alone."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

Run = Callable[..., Any]


def edited(plan: Path, folder: Path, old: str, new: str) -> Path:
    text = plan.read_text(encoding="utf-8")
    assert old in text
    path = folder / "edited.yaml"
    path.write_text(text.replace(old, new), encoding="utf-8")
    return path


def test_show_prints_the_summary(run: Run, golden: Path) -> None:
    ended = run("show", golden)
    assert (ended.code, ended.err) == (0, "")
    assert "8,030,261,248 parameters on x=2 y=4" in ended.out and "step 412 ms" in ended.out


def test_show_as_json_is_the_plan_and_its_collectives(run: Run, golden: Path) -> None:
    shown = json.loads(run("show", golden, "--json").out)
    assert shown["autoplan"] == 1 and shown["mesh"] == {"x": 2, "y": 4}
    assert shown["predicted"]["step_ms"] == 412 and shown["collectives"]["all-gather y"] == 64


def test_diff_of_a_plan_with_itself_says_so(run: Run, golden: Path) -> None:
    ended = run("diff", golden, golden, "--exit-code")
    assert (ended.code, ended.out, ended.err) == (0, "no differences\n", "")


def test_diff_shows_what_changed_and_exits_with_4_only_on_request(run: Run, golden: Path, tmp_path: Path) -> None:
    other = edited(golden, tmp_path, "optimizer: adamw", "optimizer: sgd")
    plain, asked = run("diff", golden, other), run("diff", golden, other, "--exit-code")
    assert (plain.code, asked.code) == (0, 4)
    assert plain.out == asked.out and "- adamw" in plain.out and "+ sgd" in plain.out


def test_diff_as_json(run: Run, golden: Path, tmp_path: Path) -> None:
    ended = run("diff", golden, edited(golden, tmp_path, "optimizer: adamw", "optimizer: sgd"), "--json")
    said = json.loads(ended.out)
    assert said["same"] is False
    assert said["changes"] == [{"section": "options", "name": "optimizer", "count": 1, "old": "adamw", "new": "sgd"}]


def test_show_and_diff_do_not_need_the_target(run: Run, golden: Path, tmp_path: Path) -> None:
    moved = edited(golden, tmp_path, "models/llama.py:build", "gone/away.py:build")
    assert run("show", moved).code == 0 and run("diff", golden, moved).code == 0
