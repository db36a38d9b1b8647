"""The commands together, and the entry point."""

from __future__ import annotations

import io
import sys
from collections.abc import Sequence

import click

from autoplan.cli.calibrate import calibrate
from autoplan.cli.diff import diff
from autoplan.cli.explain import explain
from autoplan.cli.ops import ops
from autoplan.cli.plan import plan
from autoplan.cli.show import show
from autoplan.cli.sweep import sweep
from autoplan.cli.validate import validate
from autoplan.cli.verify import verify


@click.group(
    commands=[plan, sweep, show, diff, validate, explain, verify, ops, calibrate], context_settings={"help_option_names": ["-h", "--help"]}
)
def app() -> None:
    """Plan how a PyTorch model is split over a mesh of GPUs: optimal under a cost model, reviewable as YAML, run exactly as planned."""


def run(argv: Sequence[str] | None = None) -> int:
    """Runs one command, by default that of this process; the exit code comes back."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a terminal without bars or somebody's letters is no reason to fail
    try:
        app(None if argv is None else list(argv), prog_name="autoplan")
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    return 0
