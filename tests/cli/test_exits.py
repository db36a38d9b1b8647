"""Every exception ends in one message on stderr and its exit code."""

from __future__ import annotations

import click
import pytest

from autoplan import errors
from autoplan.cli.exits import reported


def ended(error: BaseException | None) -> int:
    @reported
    def command() -> None:
        if error is not None:
            raise error

    try:
        command()
    except click.exceptions.Exit as stop:
        return stop.exit_code
    return 0


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (None, 0),
        (errors.AutoplanError("x"), 1),
        (errors.TargetError("x"), 1),
        (errors.PlanError("x"), 1),
        (errors.HardwareError("x"), 1),
        (errors.FallbackError("x"), 1),
        (errors.UsageError("x"), 2),
        (errors.NoPlanFits("x", limit_bytes=1, smallest_bytes=2), 3),
        (errors.VerificationError("x"), 5),
        (errors.OutOfTime("x"), 6),
        (KeyError("x"), 70),
        (KeyboardInterrupt(), 130),
    ],
    ids=lambda value: type(value).__name__,
)
def test_an_exception_has_its_exit_code(error: BaseException | None, code: int, capsys: pytest.CaptureFixture[str]) -> None:
    assert ended(error) == code
    captured = capsys.readouterr()
    assert captured.out == "" and "Traceback" not in captured.err
    assert bool(captured.err) == (code != 0)


def test_a_users_mistake_says_what_where_and_what_next(capsys: pytest.CaptureFixture[str]) -> None:
    ended(errors.PlanError("a is wrong", where="plan.yaml:3", next_step="write b"))
    assert capsys.readouterr().err == "error: a is wrong\n  plan.yaml:3; write b\n"


def test_our_own_mistake_names_its_type_and_line_and_shows_a_traceback_on_demand(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("AUTOPLAN_DEBUG", raising=False)
    ended(ValueError("seven"))
    message = capsys.readouterr().err
    assert "internal error: ValueError: seven at autoplan/cli/exits.py:" in message
    assert "please report" in message and "AUTOPLAN_DEBUG=1" in message
    monkeypatch.setenv("AUTOPLAN_DEBUG", "1")
    ended(ValueError("seven"))
    assert "Traceback" in capsys.readouterr().err
