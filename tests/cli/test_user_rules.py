"""Ops without a rule, and rules that users write for them: from the request to a verified plan."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from autoplan.assignment import decode
from autoplan.load import build_meta, load_rules, load_target
from autoplan.plan import Plan, load_plan
from autoplan.planner.pipeline import capture_for
from autoplan.rules import Strategy
from autoplan.rules.prove import prove_rule

ROOT = Path(__file__).parent.parent.parent
ON_FOUR = ("--mesh", "2x2", "--hardware", "test-free-links")
ON_TWO = ("--mesh", "2", "--hardware", "test-free-links")  # to be verified: every rank starts a process
Run = Callable[..., Any]

MODEL = """\
import torch
from torch import nn


@torch.library.custom_op("mine::scale_rows", mutates_args=())
def scale_rows(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    return x * w


@scale_rows.register_fake
def _(x, w):
    return torch.empty_like(x)


def backward(ctx, gradient):
    x, w = ctx.saved_tensors
    return gradient * w, (gradient * x).flatten(0, -2).sum(0)


scale_rows.register_autograd(backward, setup_context=lambda ctx, inputs, output: ctx.save_for_backward(*inputs))


@torch.library.custom_op("mine::ranks", mutates_args=())
def ranks(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return x.argsort(-1), (x > 0).sum(-1)


@ranks.register_fake
def _(x):
    return torch.empty(x.shape, dtype=torch.int64, device=x.device), torch.empty(x.shape[:-1], dtype=torch.int64, device=x.device)


class Block(nn.Module):
    def __init__(self, dim, odd):
        super().__init__()
        self.up = nn.Linear(dim, dim)
        self.scale = nn.Parameter(torch.randn(dim))
        self.odd = odd

    def forward(self, x):
        h = scale_rows(self.up(x), self.scale)
        if self.odd:
            order, positive = ranks(h)
            h = torch.linalg.pinv(h).T.gather(-1, order) / (1 + positive).unsqueeze(-1)
        return x + h


class Net(nn.Module):
    def __init__(self, dim, odd):
        super().__init__()
        self.blocks = nn.ModuleList(Block(dim, odd) for _ in range(3))
        self.head = nn.Linear(dim, dim)

    def forward(self, x):
        for block in self.blocks:
            x = block(x)
        loss = self.head(x).square().mean()
        return loss + torch.linalg.svd(self.head.weight)[1].sum() if self.blocks[0].odd else loss


def build(dim: int = 16, batch: int = 8):
    return Net(dim, odd=False), (torch.randn(batch, dim),)


def odd(dim: int = 16, batch: int = 8):
    return Net(dim, odd=True), (torch.randn(batch, dim),)
"""


@pytest.fixture(scope="module")
def rules() -> str:
    """The example in the README."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    found = re.search(r"```python\n(# my_rules\.py\n.*?)```", text, re.DOTALL)
    assert found
    return found[1]


@pytest.fixture
def folder(tmp_path: Path, rules: str) -> Path:
    """A model with ops of its own, and their rules."""
    (tmp_path / "model.py").write_text(MODEL)
    (tmp_path / "my_rules.py").write_text(rules)
    return tmp_path


def line_of(text: str) -> int:
    """The line of the model with this text."""
    return next(number for number, line in enumerate(MODEL.splitlines(), 1) if text in line)


def without_rules(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a process that has not loaded anybody's rules."""
    from autoplan.rules import registry

    monkeypatch.setattr(registry, "_RULES", {op: rule for op, rule in registry._RULES.items() if rule.is_own})
    registry.rule_of.cache_clear()


@pytest.fixture(autouse=True)
def _fresh(monkeypatch: pytest.MonkeyPatch) -> Any:
    without_rules(monkeypatch)
    yield
    monkeypatch.undo()
    from autoplan.rules import registry

    registry.rule_of.cache_clear()


@pytest.mark.usefixtures("folder")
def test_ops_without_a_rule_are_listed_with_their_blocks_folded_and_said_on_stderr(run: Run) -> None:
    """A custom op, one with two outputs of integers, one of torch that gives three tensors, and one that gives one."""
    ended = run("plan", "model.py:odd", *ON_TWO, "-o", "plan.yaml")
    assert ended.code == 0, ended.err
    lines = load_plan("plan.yaml").fallbacks
    assert {(line.address, line.op, line.count) for line in lines} == {
        ("blocks.*/scale_rows", "mine.scale_rows.default", 3),
        ("blocks.*/ranks", "mine.ranks.default", 3),
        ("blocks.*/linalg_pinv", "aten.linalg_pinv.atol_rtol_tensor", 3),
        ("/linalg_svd", "aten.linalg_svd.default", 1),
    }
    for line in lines:
        assert line.added_ms > 0
        assert re.search(
            rf"^fallback: {re.escape(line.address)} \({line.op}\) is replicated, x{line.count}, [0-9.]+ ms$", ended.err, re.MULTILINE
        )
    verified = run("verify", "plan.yaml", "--random-plans", "3")
    assert verified.code == 0, verified.out + verified.err


@pytest.mark.usefixtures("folder")
def test_what_a_fallback_adds_is_what_an_even_split_would_save(run: Run) -> None:
    """1 - 1/n of the whole op: half of it on two ranks, three quarters on four."""
    added = {}
    for mesh in ("1", "2", "4"):
        assert run("plan", "model.py:odd", "--mesh", mesh, "--hardware", "test-free-links", "-o", "plan.yaml").code == 0
        added[mesh] = {line.address: line.added_ms for line in load_plan("plan.yaml").fallbacks}
    assert set(added["1"].values()) == {0}
    for address, on_two in added["2"].items():
        assert added["4"][address] == pytest.approx(1.5 * on_two, rel=0.01)  # the plan has three digits


@pytest.mark.usefixtures("folder")
def test_strict_names_all_ops_without_a_rule_in_one_error_with_their_lines(run: Run) -> None:
    ended = run("plan", "model.py:odd", *ON_FOUR, "--strict")
    assert (ended.code, ended.out) == (1, "")
    assert ended.err.count("error: ") == 1
    for address, text in (
        ("blocks.*/scale_rows", "h = scale"),
        ("blocks.*/ranks", "order, "),
        ("blocks.*/linalg_pinv", "linalg.pinv"),
        ("/linalg_svd", "svd"),
    ):
        line = line_of(text)
        assert re.search(rf"{re.escape(address)}: \S+ has no rule(, x3)?\n  model\.py:{line}$", ended.err, re.MULTILINE), ended.err


def test_a_rule_of_one_s_own_splits_the_op_and_the_plan_knows_where_it_is(run: Run, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "plans").mkdir()
    (folder / "request.yaml").write_text("target: model.py\nrules: my_rules.py\nmesh: 2\nhardware: test-free-links\n")
    ended = run("plan", "request.yaml", "--strict", "-o", "plans/plan.yaml")
    assert ended.code == 0, ended.err
    plan = load_plan("plans/plan.yaml")
    assert plan.model.rules == "../my_rules.py" and plan.fallbacks == ()
    assert all(not row.is_replicated for strategy in strategies_of_own_op(plan) for row in strategy.rows)
    for command in (("validate", "plans/plan.yaml"), ("verify", "plans/plan.yaml", "--random-plans", "3")):
        without_rules(monkeypatch)
        ended = run(*command)
        assert ended.code == 0, ended.out + ended.err
    assert "100.0% of the work" in ended.out


def strategies_of_own_op(plan: Plan) -> list[Strategy]:
    """What the plan decides for each call of scale_rows."""
    built = build_meta(load_target("model.py"))
    assignment = decode(plan, capture_for(built.module, built.args, built.kwargs, plan.options))
    found = [assignment.strategies[node.id] for node in assignment.graph.nodes if node.op.startswith("mine.")]
    assert len(found) == 3
    return found


def test_the_flag_does_what_the_key_does_and_other_rules_can_take_their_place(
    run: Run, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run("plan", "model.py", "--rules", "my_rules.py", *ON_FOUR, "--strict", "-o", "plan.yaml").code == 0
    (folder / "my_rules.py").rename(folder / "moved.py")
    without_rules(monkeypatch)
    ended = run("validate", "plan.yaml")
    assert ended.code == 1 and "no such file: my_rules.py" in ended.err and "plan.yaml:2" in ended.err
    assert run("validate", "plan.yaml", "--rules", "moved.py").code == 0


def test_a_training_run_loads_the_rules_that_the_plan_names(run: Run, folder: Path) -> None:
    assert run("plan", "model.py", "--rules", "my_rules.py", "--mesh", "1", "--hardware", "test-free-links", "-o", "plan.yaml").code == 0

    def train(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, str(ROOT / "apply.py"), "--plan", str(folder / "plan.yaml"), "--steps", "1", *arguments]
        return subprocess.run(command, cwd=folder.parent, capture_output=True, text=True, timeout=300)

    (folder / "my_rules.py").rename(folder / "moved.py")
    assert "no such file: my_rules.py" in train().stderr
    assert train("--rules", str(folder / "moved.py")).returncode == 0


def test_a_model_s_own_file_may_register_rules(run: Run, folder: Path, rules: str) -> None:
    (folder / "model.py").write_text(f"{MODEL}\n\n{rules}")
    ended = run("plan", "model.py", *ON_TWO, "--strict", "-o", "plan.yaml")
    assert ended.code == 0, ended.err
    assert run("verify", "plan.yaml").code == 0
    assert load_plan("plan.yaml").model.rules is None


def test_the_readme_s_rule_holds(folder: Path) -> None:
    load_rules("model.py", folder)
    load_rules("my_rules.py", folder)
    assert prove_rule("mine.scale_rows.default", torch.randn(6, 12, 6), torch.randn(6)) > 10


def test_ops_lists_the_user_s_rules_too(run: Run, folder: Path) -> None:
    assert "mine.scale_rows\n" in run("ops", "--rules", "my_rules.py").out
    used = run("ops", "model.py", "--rules", "my_rules.py").out
    assert re.search(r"^mine\.scale_rows\.default +3 +3  my_rules$", used, re.MULTILINE), used
    assert "mine." not in run("ops", "--markdown").out


WRONG = {
    "raise KeyError('head')": "the rule of mine.scale_rows.default failed: KeyError: 'head'",
    "yield Row((R,), (R,))": "R -> R is no row for 2 -> 1 tensors",
    "yield Row((Shard(0, 2), R), (Shard(0, 2),)); yield 3": "the rule of mine.scale_rows.default failed",
}


@pytest.mark.parametrize("body", WRONG)
def test_a_rule_that_fails_is_an_error_of_the_input_with_its_line(run: Run, folder: Path, body: str) -> None:
    head = "from autoplan.placement import R, Shard\nfrom autoplan.rules import Row, rule\n\n\n"
    (folder / "my_rules.py").write_text(f"{head}@rule('mine.scale_rows')\ndef rows(call):\n    {body}\n")
    ended = run("plan", "model.py", "--rules", "my_rules.py", *ON_FOUR)
    assert ended.code == 1 and WRONG[body] in ended.err and "my_rules.py:5" in ended.err, ended.err


@pytest.mark.usefixtures("model")
def test_a_second_rule_for_an_op_is_refused(run: Run, tmp_path: Path) -> None:
    (tmp_path / "my_rules.py").write_text("from autoplan.rules import rule\n\n\n@rule('aten.linear')\ndef rows(call):\n    return ()\n")
    ended = run("plan", "model.py", "--rules", "my_rules.py", *ON_FOUR)
    assert ended.code == 1 and "aten.linear has a rule already" in ended.err and "my_rules.py:4" in ended.err
    missing = run("plan", "model.py", "--rules", "no.such.module", *ON_FOUR)
    assert missing.code == 1 and "no module named 'no'" in missing.err
