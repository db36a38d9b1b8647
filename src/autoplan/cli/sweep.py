"""`autoplan sweep`: the best plan of every mesh that so many devices can form, ranked."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

import click

from autoplan.cli.exits import reported
from autoplan.cli.options import PLAN, TARGET_HELP, SettingsCommand, json_option
from autoplan.cli.order import Order, order_options, ordered
from autoplan.cli.output import put, put_json, tell
from autoplan.errors import NoPlanFits, OutOfTime, TargetError
from autoplan.plan import Plan, plan_to_json, write_plan

if TYPE_CHECKING:
    from autoplan.cli.order import Loaded
    from autoplan.cli.progress import Stages
    from autoplan.graph import Graph
    from autoplan.planner.pipeline import PlanRequest

_GIB = 2**30
_BAR_WIDTH = 20


@click.command(cls=SettingsCommand, epilog=TARGET_HELP)
@click.argument("target")
@click.option("--devices", type=click.IntRange(min=1), required=True, metavar="N", help="How many devices there are.")
@click.option(
    "--axes", type=click.IntRange(1, 3), default=2, show_default=True, help="Of how many axes a mesh has at most; three take minutes."
)
@click.option("-o", "--out", type=PLAN, metavar="FILE", help="Where the best plan goes.")
@order_options
@json_option
@reported
def sweep(target: str, settings: tuple[str, ...], devices: int, axes: int, out: Path | None, as_json: bool, **flags: Any) -> None:
    """Plan for every mesh of N devices, and rank them: the fastest first, of equally fast ones that with the fewest axes."""
    order = ordered(target, settings, out, **flags)
    start = perf_counter()
    tries = ranked(plans_of_meshes(order, devices, axes, compare=out is not None))
    best = tries[0].plan
    if best is None:
        raise _first_error(tries)
    if out:
        write_plan(best, out)
    if as_json:
        put_json({"devices": devices, "meshes": [entry.to_json() for entry in tries], "seconds": perf_counter() - start})
    else:
        put("\n".join(table(tries)) + "\n")
    if out:
        tell(f"\nwrote {out}, the plan for {tries[0].mesh}")


@dataclass(frozen=True, slots=True)
class Try:
    """One mesh: its plan, or why it has none."""

    mesh: str
    plan: Plan | None
    error: NoPlanFits | OutOfTime | None
    seconds: float

    def rank(self) -> tuple[bool, float, int]:
        """By time in three digits, as plans have it, then by axes; what has no plan comes last."""
        step_ms = float(_three_digits(self.plan.predicted.step_ms)) if self.plan else 0.0
        return self.plan is None, step_ms, self.mesh.count("x")

    def to_json(self) -> dict[str, Any]:
        """What `--json` says of it."""
        if self.plan is None:
            smallest = self.error.smallest_bytes / _GIB if isinstance(self.error, NoPlanFits) else None
            status = "nothing fits" if isinstance(self.error, NoPlanFits) else "out of time"
            return {"mesh": self.mesh, "status": status, "smallest_gib": smallest, "seconds": self.seconds}
        predicted, solver = self.plan.predicted, self.plan.solver
        return {
            "mesh": self.mesh,
            "status": solver.status,
            "gap": solver.gap,
            "step_ms": predicted.step_ms,
            "peak_gib": predicted.memory_gib.peak,
            "predicted": plan_to_json(self.plan)["predicted"],
            "seconds": self.seconds,
        }


def plans_of_meshes(order: Order, devices: int, axes: int, *, compare: bool) -> list[Try]:
    """Every mesh with its plan, which may `compare` itself with layouts by hand; the model is captured once.

    Ctrl-C ends with those that have been planned.
    """
    if order.request.pins:
        raise TargetError(
            "pins speak of the axes of one mesh", where=order.source("pins"), next_step="plan with them: autoplan plan --mesh ..."
        )
    options = order.options()
    from autoplan.cli.progress import Stages

    with Stages() as stages:
        loaded = order.loaded(stages)
        stages.stage("capture")
        from autoplan.planner.pipeline import capture_for
        from autoplan.planner.shapes import mesh_shapes, shape_text

        built = loaded.built
        graph = capture_for(built.module, built.args, built.kwargs, options)
        found: list[Try] = []
        for mesh in mesh_shapes(devices, loaded.hardware.gpus_per_node, axes):
            stages.stage(shape_text(mesh.shape))
            try:
                tried, interrupted = _try(loaded, loaded.request(mesh, options, ()), graph, stages, compare)
            except KeyboardInterrupt:
                if not found:
                    raise
                break
            found.append(tried)
            if interrupted:
                break
    return found


def _try(loaded: Loaded, request: PlanRequest, graph: Graph, stages: Stages, compare: bool) -> tuple[Try, bool]:
    """One mesh, and whether the user cut its planning short."""
    from autoplan.planner.pipeline import plan_module
    from autoplan.planner.shapes import shape_text

    mesh, built, start = shape_text(request.mesh.shape), loaded.built, perf_counter()
    try:
        found = _Found(stages)
        planned = plan_module(built.module, built.args, built.kwargs, request, found, graph=graph, advise=False, compare=compare)
    except (NoPlanFits, OutOfTime) as error:
        return Try(mesh, None, error, perf_counter() - start), False
    step_ms, gap = planned.plan.predicted.step_ms, planned.plan.solver.gap
    stages.incumbent(step_ms, (1 - (gap or 0.0)) * step_ms)
    return Try(mesh, planned.plan, None, perf_counter() - start), planned.interrupted


class _Found:
    """Progress of one plan as that of one stage: what it has found, not which of its own stages it is in."""

    def __init__(self, stages: Stages) -> None:
        self._stages = stages

    def stage(self, name: str) -> None:
        """A stage of the planner begins."""

    def incumbent(self, cost_ms: float, bound_ms: float) -> None:
        """The solver has found a better plan."""
        self._stages.incumbent(cost_ms, bound_ms)


def ranked(tries: Sequence[Try]) -> list[Try]:
    """The best first."""
    return sorted(tries, key=Try.rank)


def table(tries: Sequence[Try]) -> Iterator[str]:
    """A line for each mesh, with a bar as long as its step is beside the longest."""
    titles = ("mesh", "step ms", "", "peak GiB", "compute", "recompute", "communication", "hidden", "host")
    rows = [titles, *(_cells(entry) for entry in tries)]
    widths = [max(len(row[i]) for row in rows if len(row) == len(titles)) for i in range(len(titles))]
    longest = max(entry.plan.predicted.step_ms for entry in tries if entry.plan)
    for entry, row in zip((None, *tries), rows, strict=True):
        if entry is not None and entry.plan is None:
            yield f"{row[0]:<{widths[0]}}  {row[1]}"
            continue
        cells = [f"{cell:>{width}}" for cell, width in zip(row[1:], widths[1:], strict=True)]
        bar = "█" * round(_BAR_WIDTH * entry.plan.predicted.step_ms / longest) if entry is not None and entry.plan else ""
        yield f"{row[0]:<{widths[0]}}  {'  '.join(cells)}  {bar}".rstrip()


def _cells(entry: Try) -> tuple[str, ...]:
    if entry.plan is None:
        if isinstance(entry.error, NoPlanFits):
            from autoplan.planner.infeasible import rounded_up_gib

            return entry.mesh, f"nothing fits; the smallest needs {rounded_up_gib(entry.error.smallest_bytes):.4g} GiB"
        return entry.mesh, "no plan in the time there was"
    predicted, solver = entry.plan.predicted, entry.plan.solver
    gap = "" if solver.status == "optimal" else "?" if solver.gap is None else f"gap {100 * solver.gap:.2g} %"
    communication = predicted.communication_ms
    parts = (predicted.compute_ms, predicted.recompute_ms, communication.exposed, communication.hidden, predicted.host_ms)
    return entry.mesh, _three_digits(predicted.step_ms), gap, _three_digits(predicted.memory_gib.peak), *map(_three_digits, parts)


def _three_digits(number: float) -> str:
    return f"{float(f'{number:.3g}'):.12g}"


def _first_error(tries: Sequence[Try]) -> Exception:
    """Why no mesh has a plan: the least memory that any needs, or the time."""
    fitting = [entry.error for entry in tries if isinstance(entry.error, NoPlanFits)]
    if fitting:
        return min(fitting, key=lambda error: error.smallest_bytes)
    return next(entry.error for entry in tries if entry.error is not None)
