"""`autoplan validate`: a plan against its schema, its model and the rules; and what it costs by today's reckoning."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from autoplan.cli.exits import reported
from autoplan.cli.options import hardware_option, plan_argument, rules_option, target_of_plan
from autoplan.cli.output import put, tell
from autoplan.errors import PlanError, UsageError
from autoplan.plan import Plan, load_plan, plan_to_json

if TYPE_CHECKING:
    from autoplan.cost.hardware import Hardware
    from autoplan.graph import Graph
    from autoplan.load import Built


@click.command(epilog="TARGET is the model, where it is no longer what the plan names.")
@plan_argument
@click.argument("target", required=False)
@hardware_option
@rules_option
@reported
def validate(plan_file: Path, target: str | None, hardware: str | None, rules: str | None) -> None:
    """Check a plan against its model. Every rule must be respected; costs are predicted anew, nothing is solved."""
    plan = load_plan(plan_file)
    machine = hardware_of(plan, hardware)
    from autoplan.load import build_meta

    built = build_meta(target_of_plan(plan, plan_file, target, rules=rules))
    now = recosted(plan, built, captured(plan, built), machine)
    for note in notes(plan, now, machine, chosen=hardware is not None):
        tell(f"note: {note}")
    axes = ", ".join(f"{name}={size}" for name, size in zip(plan.mesh.names, plan.mesh.shape, strict=True))
    put(f"{plan_file} is valid: {plan.model.parameters:,} parameters on {axes}, every decision resolves\n\n")
    put("\n".join(table(plan_to_json(plan)["predicted"], plan_to_json(now)["predicted"])) + "\n")


def hardware_of(plan: Plan, flag: str | None) -> Hardware:
    """The profile of the flag, else the one the plan names."""
    from autoplan.cost.hardware import load_hardware

    if flag is not None:
        return load_hardware(flag)
    try:
        return load_hardware(plan.hardware.profile)
    except UsageError as error:
        raise PlanError(error.what, where=plan.provenance.where("hardware"), next_step="give its profile: --hardware FILE") from error


def captured(plan: Plan, built: Built) -> Graph:
    """The graph of the plan's model; raises PlanError where the model is another."""
    from autoplan.planner.pipeline import capture_for
    from autoplan.runtime.prepare import check_model

    check_model(built.module, plan)
    return capture_for(built.module, built.args, built.kwargs, plan.options)


def recosted(plan: Plan, built: Built, graph: Graph, hardware: Hardware) -> Plan:
    """The plan with predictions of today; raises PlanError where a decision does not resolve."""
    from autoplan.assignment import decode
    from autoplan.planner.emit import ModelFacts
    from autoplan.planner.pipeline import plan_of_assignment
    from autoplan.runtime.prepare import groups_of

    assignment = decode(plan, graph)
    groups_of(assignment, plan)
    return plan_of_assignment(assignment, plan, hardware, ModelFacts.of(built.module, plan.model.target, plan.model.set, plan.model.rules))


def notes(plan: Plan, now: Plan, hardware: Hardware, *, chosen: bool) -> Iterator[str]:
    """What is no error and yet worth knowing."""
    if now.model.graph != plan.model.graph:
        yield "the captured graph is not the planned one (another torch, or another forward); every decision still resolves"
    if not chosen and hardware.digest != plan.hardware.digest:
        yield f"the profile {hardware.name} has changed since this was planned"
    limit_gib = plan.options.memory_gib or hardware.memory_bytes / 2**30
    if now.predicted.memory_gib.peak > limit_gib:
        yield f"the peak of {now.predicted.memory_gib.peak:.3g} GiB is above the limit of {limit_gib:.3g}"
    if plan.by_hand and hardware.digest != plan.hardware.digest:
        yield "layouts by hand (by_hand) are not predicted anew: the plan has them as they were; plan again to compare"


def table(then: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[str]:
    """Each prediction as the plan has it and as it is today."""
    rows = [(name, old, new) for (name, old), (_, new) in zip(_flat(then), _flat(now), strict=True)]
    width = max(len(name) for name, _, _ in rows)
    yield f"{'predicted':<{width}}  {'in the plan':>11}  {'today':>9}  {'change':>8}"
    for name, old, new in rows:
        change = f"{(new - old) / old:+.1%}" if old and old != new else ""
        yield f"{name:<{width}}  {old:>11g}  {new:>9g}  {change:>8}".rstrip()


def _flat(predicted: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, float]]:
    for name, value in predicted.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{above}{name} ")
        else:
            yield f"{above}{name}", value
