"""What one planning run is asked for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from autoplan.cost.hardware import Hardware
from autoplan.placement import Mesh
from autoplan.plan.schema import Options, Plan


@dataclass(frozen=True, slots=True)
class PlanRequest:
    """What to plan for: the model as the plan will name it, the mesh, the hardware and the options."""

    mesh: Mesh
    hardware: Hardware
    options: Options = Options()
    target: str = "module"
    settings: Mapping[str, Any] = field(default_factory=dict)
    rules: str | None = None
    pins: tuple[Mapping[str, Any], ...] = ()
    base: Plan | None = None
    unfold: bool = False
    strict: bool = False
    time_limit_s: float | None = None

    @property
    def limit_bytes(self) -> int:
        """The memory one device may use."""
        if self.options.memory_gib is not None:
            return int(self.options.memory_gib * 2**30)
        return int(self.hardware.memory_bytes)
