"""What a fit goes by: the machine, what was timed on it, and the profile to begin with."""

from __future__ import annotations

from dataclasses import dataclass, field

from autoplan.calibrate.works import Timing
from autoplan.cost.hardware import Hardware

DTYPES = {"cuda": "bfloat16", "cpu": "float32"}


@dataclass(frozen=True, slots=True)
class Site:
    """Where this runs: the device of each rank, and how many there are."""

    kind: str  # cuda or cpu
    device: str  # as it calls itself
    memory_bytes: int  # of one device; on the CPU each process's share
    free_bytes: int  # the least on any rank
    devices_per_host: int
    ranks: int
    per_host: int  # ranks on each host
    software: str
    date: str

    @property
    def dtype(self) -> str:
        """In which it computes."""
        return DTYPES[self.kind]

    @property
    def hosts(self) -> int:
        """How many there are."""
        return self.ranks // self.per_host


@dataclass(slots=True)
class Measured:
    """What was timed, and what was not with the reason."""

    timings: list[Timing] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)

    def of(self, family: str) -> list[Timing]:
        """The timings of one family."""
        return [timing for timing in self.timings if timing.work.family == family]


@dataclass(frozen=True, slots=True)
class Evidence:
    """What the fit goes by. `same_device`: the base is the profile of this device, so that its peaks are this device's."""

    base: Hardware
    same_device: bool
    site: Site
    measured: Measured

    def of(self, family: str) -> list[Timing]:
        """The timings of one family."""
        return self.measured.of(family)
