"""`autoplan plan`: a target in, a plan out."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

import click

from autoplan.cli.exits import reported
from autoplan.cli.options import PLAN, TARGET_HELP, SettingsCommand, json_option
from autoplan.cli.order import Order, order_options, ordered
from autoplan.cli.output import put, put_json, tell
from autoplan.cli.pins import read_pins
from autoplan.plan import dump_plan, format_summary, load_plan, plan_to_json, write_plan

if TYPE_CHECKING:
    from autoplan.planner.pipeline import Planned


@click.command(cls=SettingsCommand, epilog=TARGET_HELP)
@click.argument("target")
@click.option("--mesh", metavar="MESH", help="4, 2x4 or data=2,tensor=4")
@click.option("-o", "--out", type=PLAN, metavar="FILE", help="Where the plan goes; stdout unless said.")
@click.option("--pins", metavar="FILE", help="Decisions already made: a YAML list.")
@click.option("--base", type=PLAN, metavar="PLAN", help="An older plan to start from.")
@click.option("--unfold", is_flag=True, help="Let repeated blocks differ.")
@order_options
@json_option
@reported
def plan(target: str, settings: tuple[str, ...], out: Path | None, base: Path | None, as_json: bool, **flags: Any) -> None:
    """Plan how a model is split. Flags override what a request file says."""
    planned, seconds = make(ordered(target, settings, out, base=load_plan(base) if base else None, **flags))
    if out:
        write_plan(planned.plan, out)
    if as_json:
        put_json(report(planned, seconds, whole=out is None))
    elif not out:
        put(dump_plan(planned.plan))
    tell("\n" + format_summary(planned.plan).rstrip("\n"))
    if out:
        tell(f"\nwrote {out}")


def make(order: Order) -> tuple[Planned, dict[str, float]]:
    """The plan, and the seconds of every stage: what is cheap to refuse is refused before anything is loaded."""
    start = perf_counter()
    mesh, options, pins = order.mesh(), order.options(), read_pins(order.request.pins)
    from autoplan.cli.progress import Stages

    with Stages() as stages:
        loaded = order.loaded(stages)
        from autoplan.planner.pipeline import plan_module

        built = loaded.built
        planned = plan_module(built.module, built.args, built.kwargs, loaded.request(mesh, options, pins), stages)
    return planned, {**stages.seconds, **planned.seconds, "total": perf_counter() - start}


def report(planned: Planned, seconds: Mapping[str, float], *, whole: bool) -> dict[str, Any]:
    """What `--json` prints; the `whole` plan too where it goes nowhere else."""
    plan = planned.plan
    said = plan_to_json(plan)
    return {
        "status": plan.solver.status,
        "gap": plan.solver.gap,
        "folded": plan.solver.folded,
        "unfolded_gap": plan.solver.unfolded_gap,
        "step_ms": plan.predicted.step_ms,
        "peak_gib": plan.predicted.memory_gib.peak,
        "seconds": dict(seconds),
        "nodes": planned.nodes,
        "variables": planned.variables,
        "fallbacks": said["fallbacks"],
        "by_hand": said.get("by_hand", {}),
        "parameters": plan.model.parameters,
        "mesh": said["mesh"],
        "hardware": plan.hardware.profile,
        **({"plan": said} if whole else {}),
    }
