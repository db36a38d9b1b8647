"""`autoplan diff`: what differs between two plans."""

from __future__ import annotations

from pathlib import Path

import click

from autoplan.cli.exits import DIFFERS, reported
from autoplan.cli.options import PLAN, json_option
from autoplan.cli.output import put, put_json
from autoplan.plan import diff_plans, format_diff, load_plan


@click.command()
@click.argument("old", metavar="A", type=PLAN)
@click.argument("new", metavar="B", type=PLAN)
@click.option("--exit-code", is_flag=True, help=f"Exit with {DIFFERS} if they differ.")
@json_option
@reported
def diff(old: Path, new: Path, exit_code: bool, as_json: bool) -> None:
    """Compare two plans. What they decide and predict counts, not how they are written."""
    difference = diff_plans(load_plan(old), load_plan(new))
    if as_json:
        put_json(difference.to_json())
    else:
        put(format_diff(difference))
    if exit_code and not difference.same:
        raise click.exceptions.Exit(DIFFERS)
