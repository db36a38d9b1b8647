"""`autoplan show`: what a plan decides and what it costs, beside layouts that one writes by hand."""

from __future__ import annotations

from pathlib import Path

import click

from autoplan.cli.exits import reported
from autoplan.cli.options import json_option, plan_argument
from autoplan.cli.output import put, put_json
from autoplan.plan import collective_counts, format_summary, load_plan, plan_to_json


@click.command()
@plan_argument
@json_option
@reported
def show(plan_file: Path, as_json: bool) -> None:
    """Show what a plan decides and what it costs, beside layouts that one writes by hand."""
    plan = load_plan(plan_file)
    if as_json:
        put_json({**plan_to_json(plan), "collectives": collective_counts(plan)})
    else:
        put(format_summary(plan))
