"""What the planner is asked for on the command line: a request, the flags over it, and where the plan goes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from autoplan.cli.hardware import choose_hardware
from autoplan.cli.options import (
    batch_option,
    hardware_option,
    mode_option,
    positive,
    requested,
    rules_option,
    said_by,
    seq_option,
    set_option,
    target_of_request,
)
from autoplan.cli.output import check_output
from autoplan.errors import UsageError
from autoplan.placement import Mesh, parse_mesh
from autoplan.plan import Options, Plan
from autoplan.request import OPTIMIZERS, PRECISIONS, Request, is_request

if TYPE_CHECKING:
    from autoplan.cli.progress import Stages
    from autoplan.cost.hardware import Hardware
    from autoplan.load import Built, Target
    from autoplan.planner.pipeline import PlanRequest

_ORDER_OPTIONS = (
    hardware_option,
    click.option("--memory-gib", type=float, metavar="G", help="Memory limit per device; all it has unless said."),
    mode_option,
    click.option("--precision", type=click.Choice(PRECISIONS), help="fp32 unless said."),
    click.option("--optimizer", type=click.Choice(OPTIMIZERS), help="adamw unless said."),
    set_option,
    batch_option,
    seq_option,
    click.option("--time-limit", type=float, metavar="S", help="Seconds the solver may take for a plan."),
    rules_option,
    click.option("--strict", is_flag=True, help="Refuse ops without a rule."),
    click.option("--seed", type=click.IntRange(min=0), metavar="S", help="Recorded in the plan: of weights and dropout."),
    click.option("--keep-outputs", is_flag=True, help="Return all outputs beside the loss."),
    click.option("--compile", is_flag=True, default=None, help="Steps will run through torch.compile; predict such steps."),
)


def order_options(command: Callable[..., None]) -> Callable[..., None]:
    """`command` with the flags of every command that plans."""
    for option in reversed(_ORDER_OPTIONS):
        command = option(command)
    return command


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

    def loaded(self, stages: Stages) -> Loaded:
        """The hardware and the model."""
        stages.stage("load")
        hardware = choose_hardware(self.request.hardware, self.source("hardware"))
        from autoplan.load import build_meta

        target = target_of_request(self.request)
        return Loaded(self, hardware, target, build_meta(target))


def ordered(
    target: str,
    settings: tuple[str, ...],
    out: Path | None,
    *,
    strict: bool,
    time_limit: float | None,
    keep_outputs: bool,
    base: Plan | None = None,
    unfold: bool = False,
    **flags: Any,
) -> Order:
    """The order that the command line makes; raises where what is written to `out` could not be or would destroy what is read."""
    order = Order(
        request=requested(target, settings, **flags),
        file=target if is_request(target) else None,
        flags=frozenset(name for name, value in flags.items() if value is not None),
        folder=out.parent if out else Path(),
        base=base,
        unfold=unfold,
        strict=strict,
        time_limit_s=positive("--time-limit", time_limit),
        keep_outputs=keep_outputs,
    )
    _check_output(out, order)
    return order


@dataclass(frozen=True, slots=True)
class Loaded:
    """An order with the hardware and the model it names."""

    order: Order
    hardware: Hardware
    target: Target
    built: Built

    def request(self, mesh: Mesh, options: Options, pins: tuple[Mapping[str, Any], ...]) -> PlanRequest:
        """The planner's request for one mesh."""
        from autoplan.planner.pipeline import PlanRequest

        order = self.order
        return PlanRequest(
            mesh=mesh,
            hardware=self.hardware,
            options=options,
            target=self.target.relative_to(order.folder),
            settings=self.target.settings,
            rules=self.target.rules_relative_to(order.folder),
            pins=pins,
            base=order.base,
            unfold=order.unfold,
            strict=order.strict,
            time_limit_s=order.time_limit_s,
        )


def _check_output(out: Path | None, order: Order) -> None:
    """Refuses, before minutes of planning, what could not be written or would destroy what is read."""
    if out is None:
        return
    check_output(out, "the plan")
    read = [
        Path(name)
        for name in (order.file, order.request.target.partition(":")[0], order.request.pins, order.request.rules)
        if isinstance(name, str)
    ]
    if out.exists() and any(path.is_file() and out.samefile(path) for path in read):
        raise UsageError(f"-o {out}: this is what is planned, not where the plan goes", next_step="name another file")
