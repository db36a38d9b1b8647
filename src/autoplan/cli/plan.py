"""`autoplan plan`: a target in, a plan out."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

import click

from autoplan.cli.exits import reported
from autoplan.cli.hardware import choose_hardware
from autoplan.cli.options import (
    PLAN,
    TARGET_HELP,
    SettingsCommand,
    batch_option,
    hardware_option,
    json_option,
    mode_option,
    positive,
    requested,
    rules_option,
    said_by,
    seq_option,
    set_option,
    target_of_request,
)
from autoplan.cli.output import put, put_json, tell
from autoplan.cli.pins import read_pins
from autoplan.errors import UsageError
from autoplan.placement import Mesh, parse_mesh
from autoplan.plan import Options, Plan, dump_plan, format_summary, load_plan, plan_to_json, write_plan
from autoplan.request import OPTIMIZERS, PRECISIONS, Request, is_request

if TYPE_CHECKING:
    from autoplan.planner.pipeline import Planned


@click.command(cls=SettingsCommand, epilog=TARGET_HELP)
@click.argument("target")
@click.option("--mesh", metavar="MESH", help="4, 2x4 or data=2,tensor=4")
@click.option("-o", "--out", type=PLAN, metavar="FILE", help="Where the plan goes; stdout unless said.")
@hardware_option
@click.option("--memory-gib", type=float, metavar="G", help="Memory limit per device; all it has unless said.")
@mode_option
@click.option("--precision", type=click.Choice(PRECISIONS), help="fp32 unless said.")
@click.option("--optimizer", type=click.Choice(OPTIMIZERS), help="adamw unless said.")
@set_option
@batch_option
@seq_option
@click.option("--pins", metavar="FILE", help="Decisions already made: a YAML list.")
@click.option("--base", type=PLAN, metavar="PLAN", help="An older plan to start from.")
@click.option("--unfold", is_flag=True, help="Let repeated blocks differ.")
@click.option("--time-limit", type=float, metavar="S", help="Seconds the solver may take.")
@rules_option
@click.option("--strict", is_flag=True, help="Refuse ops without a rule.")
@click.option("--seed", type=click.IntRange(min=0), metavar="S", help="Recorded in the plan: of weights and dropout.")
@click.option("--keep-outputs", is_flag=True, help="Return all outputs beside the loss.")
@click.option("--compile", is_flag=True, default=None, help="Steps will run through torch.compile; predict such steps.")
@json_option
@reported
def plan(
    target: str,
    settings: tuple[str, ...],
    out: Path | None,
    base: Path | None,
    unfold: bool,
    strict: bool,
    time_limit: float | None,
    keep_outputs: bool,
    as_json: bool,
    **flags: Any,
) -> None:
    """Plan how a model is split. Flags override what a request file says."""
    order = Order(
        request=requested(target, settings, **flags),
        file=target if is_request(target) else None,
        flags=frozenset(name for name, value in flags.items() if value is not None),
        folder=out.parent if out else Path(),
        base=load_plan(base) if base else None,
        unfold=unfold,
        strict=strict,
        time_limit_s=positive("--time-limit", time_limit),
        keep_outputs=keep_outputs,
    )
    _check_output(out, order)
    planned, seconds = make(order)
    if out:
        write_plan(planned.plan, out)
    if as_json:
        put_json(report(planned, seconds, whole=out is None))
    elif not out:
        put(dump_plan(planned.plan))
    tell("\n" + format_summary(planned.plan).rstrip("\n"))
    if out:
        tell(f"\nwrote {out}")


@dataclass(frozen=True, slots=True)
class Order:
    """All that one run of the planner is asked for; `file` is the request file that said so, if any."""

    request: Request
    file: str | None
    flags: frozenset[str]  # of the request's fields, those the command line says
    folder: Path  # of the plan: the target is written relative to it
    base: Plan | None
    unfold: bool
    strict: bool
    time_limit_s: float | None
    keep_outputs: bool

    def mesh(self) -> Mesh:
        """The mesh; raises UsageError where there is none or it is malformed."""
        if self.request.mesh is None:
            raise UsageError("no mesh to plan for", next_step="add --mesh 4, 2x4 or data=2,tensor=4")
        with said_by(self.source("mesh")):
            return parse_mesh(self.request.mesh)

    def source(self, name: str) -> str | None:
        """The file that says what field `name` of the request is, None where the command line does."""
        return None if name in self.flags else self.file

    def options(self) -> Options:
        """The options as the plan records them."""
        request = self.request
        return Options(
            mode=request.mode,
            optimizer=request.optimizer if request.mode == "train" else "none",
            precision=request.precision,
            memory_gib=positive("--memory-gib", request.memory_gib),
            seed=request.seed,
            keep_outputs=self.keep_outputs,
            compile=request.compile,
        )


def make(order: Order) -> tuple[Planned, dict[str, float]]:
    """The plan, and the seconds of every stage: what is cheap to refuse is refused before anything is loaded."""
    start = perf_counter()
    mesh, options, pins = order.mesh(), order.options(), read_pins(order.request.pins)
    from autoplan.cli.progress import Stages

    with Stages() as stages:
        stages.stage("load")
        hardware = choose_hardware(order.request.hardware, order.source("hardware"))
        from autoplan.load import build_meta

        target = target_of_request(order.request)
        built = build_meta(target)
        from autoplan.planner.pipeline import PlanRequest, plan_module

        request = PlanRequest(
            mesh=mesh,
            hardware=hardware,
            options=options,
            target=target.relative_to(order.folder),
            settings=target.settings,
            rules=target.rules_relative_to(order.folder),
            pins=pins,
            base=order.base,
            unfold=order.unfold,
            strict=order.strict,
            time_limit_s=order.time_limit_s,
        )
        planned = plan_module(built.module, built.args, built.kwargs, request, stages)
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
        "parameters": plan.model.parameters,
        "mesh": said["mesh"],
        "hardware": plan.hardware.profile,
        **({"plan": said} if whole else {}),
    }


def _check_output(out: Path | None, order: Order) -> None:
    """Refuses, before minutes of planning, what could not be written or would destroy what is read."""
    if out is None:
        return
    if out.exists() and not out.is_file():
        kind = "a folder" if out.is_dir() else "no regular file"
        raise UsageError(f"-o {out}: this is {kind}", next_step="name a file; without -o the plan goes to stdout")
    if not out.parent.is_dir():
        raise UsageError(f"-o {out}: there is no folder {out.parent}", next_step=f"mkdir -p {out.parent}")
    if not os.access(out.parent, os.W_OK):
        raise UsageError(f"-o {out}: the folder {out.parent} cannot be written")
    read = [
        Path(name)
        for name in (order.file, order.request.target.partition(":")[0], order.request.pins, order.request.rules)
        if isinstance(name, str)
    ]
    if out.exists() and any(path.is_file() and out.samefile(path) for path in read):
        raise UsageError(f"-o {out}: this is what is planned, not where the plan goes", next_step="name another file")
