"""What a profile predicts beside what was measured, work by work and family by family."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from statistics import median
from typing import Any

from autoplan.calibrate.works import Collective, Timing
from autoplan.cost.hardware import Hardware


@dataclass(frozen=True, slots=True)
class Residual:
    """One work; `family` says also by which way it is predicted, where there are two."""

    family: str
    what: str
    measured_s: float
    predicted_s: float
    runs: int

    @property
    def error(self) -> float:
        """0.1 is ten percent too long."""
        return self.predicted_s / self.measured_s - 1

    def to_json(self) -> dict[str, Any]:
        """What `--json` says of it."""
        return {
            "family": self.family,
            "what": self.what,
            "measured_s": self.measured_s,
            "predicted_s": self.predicted_s,
            "error": self.error,
            "runs": self.runs,
        }


def residuals(timings: Sequence[Timing], hardware: Hardware) -> list[Residual]:
    """Each work as the profile predicts it. Links twice: by tables, which between their sizes interpolate, and by the formula alone."""
    formula = hardware.changed(node_link=hardware.node_link.without_tables())
    found = []
    for timing in timings:
        if isinstance(timing.work, Collective) and timing.work.is_inside:
            family = "links, between" if timing.work.between else "links, in tables"
            found += [_residual(family, timing, hardware), _residual("links, by formula", timing, formula)]
        else:
            found.append(_residual(timing.work.family, timing, hardware))
    return found


def _residual(family: str, timing: Timing, hardware: Hardware) -> Residual:
    return Residual(family, str(timing.work), timing.seconds, timing.work.seconds(hardware), timing.runs)


@dataclass(frozen=True, slots=True)
class Summary:
    """How well a family is predicted: the typical error, without its sign, and the worst."""

    family: str
    works: int
    typical: float
    worst: Residual


def summaries(found: Sequence[Residual]) -> list[Summary]:
    """One for each family, in the order in which they come."""
    order = list(dict.fromkeys(each.family for each in found))
    by_family = groupby(sorted(found, key=lambda each: order.index(each.family)), lambda each: each.family)
    groups = [list(members) for _, members in by_family]
    return [
        Summary(group[0].family, len(group), median(abs(each.error) for each in group), max(group, key=lambda each: abs(each.error)))
        for group in groups
    ]
