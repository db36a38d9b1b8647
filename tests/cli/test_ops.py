"""`autoplan ops`: the rules as text, JSON and docs/OPS.md, and how those of a model are covered."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from autoplan.rules import all_rules
from autoplan.rules.describe import documented_rules

ROOT = Path(__file__).parent.parent.parent
Run = Callable[..., Any]


def test_the_ops_known_are_listed_with_their_rows(run: Run) -> None:
    ended = run("ops")
    assert (ended.code, ended.err) == (0, "")
    assert "aten.linear\n" in ended.out and "S(-1,g)    S(1,g)    P       -> P          row parallel" in ended.out


def test_json_has_every_rule_and_its_rows(run: Run) -> None:
    said = {entry["op"]: entry for entry in json.loads(run("ops", "--json").out)["ops"]}
    assert set(said) == {rule.op for rule in all_rules()}
    assert said["aten.linear"]["family"] == "linear"
    assert said["aten.linear"]["rows"] == [
        {"row": "S(d,g) R R -> S(d,g)", "when": "any leading dim: data or sequence parallel"},
        {"row": "R S(0,g) S(0,g) -> S(-1,g)", "when": "column parallel"},
        {"row": "S(-1,g) S(1,g) P -> P", "when": "row parallel: each rank holds a partial sum"},
        {"row": "P R P -> P", "when": "linear in x"},
    ]


def test_every_rule_documents_rows() -> None:
    without = [rule.ops for rule in documented_rules(users=False) if not rule.rows()]
    assert without in ([], [("aten.scalar_tensor",)])


def test_docs_ops_is_what_the_registry_says(run: Run) -> None:
    written = (ROOT / "docs/OPS.md").read_text(encoding="utf-8")
    assert run("ops", "--markdown").out == written, "run make docs"


@pytest.mark.usefixtures("model")
def test_a_model_s_ops_are_counted_and_those_without_a_rule_come_first_with_their_lines(run: Run) -> None:
    ended = run("ops", "model.py:unknown")
    assert ended.code == 0, ended.err
    _, first, place, *rest = ended.out.splitlines()
    assert first.split(maxsplit=3) == ["aten.linalg_inv.default", "1", "0", "none: runs replicated"]
    assert place.split()[0].startswith("/linalg_inv") and place.split()[-1] == "model.py:35"
    assert any(line.split() == ["aten.linear.default", "4", "4", "linear"] for line in rest)
    assert "have no rule" in ended.out.splitlines()[-1]


@pytest.mark.usefixtures("model")
def test_a_request_names_the_model_and_json_says_the_same(run: Run, tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text("target: model.py:unknown\nmesh: 2x2\n")
    used = {entry["op"]: entry for entry in json.loads(run("ops", "r.yaml", "--json").out)["ops"]}
    without = [entry for entry in used.values() if entry["rule"] is None]
    assert len(without) == 1 and without[0]["places"][0]["source"] == "model.py:35" and without[0]["splittable"] == 0
    assert used["aten.linear.default"]["count"] == 4 == used["aten.linear.default"]["splittable"]
    assert {"address": "mid.*/linear", "count": 2, "source": "model.py:18"} in used["aten.linear.default"]["places"]


def test_a_hugging_face_config_is_a_target(run: Run) -> None:
    pytest.importorskip("transformers")
    config = ROOT / "configs/hf/gpt2/config.json"
    ended = run("ops", config, "--batch", "2", "--seq", "16", "--json")
    assert ended.code == 0, ended.err
    used = json.loads(ended.out)["ops"]
    assert all(entry["rule"] for entry in used) and any(entry["op"].startswith("aten.scaled_dot_product") for entry in used)


def test_markdown_is_of_autoplan_s_own_rules_alone(run: Run) -> None:
    assert run("ops", "model.py", "--markdown").code == 2
    assert run("ops", "--json", "--markdown").code == 2
