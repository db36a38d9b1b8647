"""Planning from Python: the module in hand instead of a target on the command line."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from autoplan.cost.hardware import Hardware, load_hardware
from autoplan.placement import Mesh, parse_mesh
from autoplan.plan.schema import Options, Plan
from autoplan.planner.pipeline import PlanRequest, plan_module

IN_HAND = "module"  # what a plan names as its target when there was a module and no target


def make_plan(
    module: nn.Module,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any] | None = None,
    *,
    mesh: str | Mesh,
    hardware: str | Path | Hardware,
    options: Options | None = None,
    pins: tuple[Mapping[str, Any], ...] = (),
    time_limit_s: float | None = None,
    strict: bool = False,
) -> Plan:
    """The cheapest plan for `module` on `mesh` (`"2x4"`); parameters may be real or on meta, and are not touched.

    `hardware` is the name or the file of a profile. Raises what `autoplan plan` reports: TargetError, NoPlanFits, OutOfTime.
    """
    machine = hardware if isinstance(hardware, Hardware) else load_hardware(hardware)
    axes = mesh if isinstance(mesh, Mesh) else parse_mesh(mesh)
    request = PlanRequest(axes, machine, options or Options(), IN_HAND, pins=pins, time_limit_s=time_limit_s, strict=strict)
    return plan_module(module, args, kwargs or {}, request).plan
