"""The numbers of a profile by their place in it: `("compute", "matmul", "half_depth")`; keys of mappings, places in tuples too."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from autoplan.cost.hardware import Hardware

Place = tuple[Any, ...]


def number_at(hardware: Hardware, place: Place) -> float:
    """What the profile has there."""
    found: Any = hardware
    for step in place:
        found = found[step] if isinstance(found, Mapping | tuple) else getattr(found, step)
    return found


def with_number(hardware: Hardware, place: Place, value: Any) -> Hardware:
    """The profile with that value there."""
    return hardware.changed(**{place[0]: _with(getattr(hardware, place[0]), place[1:], value)})


def _with(holder: Any, place: Place, value: Any) -> Any:
    if not place:
        return value
    step, rest = place[0], place[1:]
    if isinstance(holder, Mapping):
        return {**holder, step: _with(holder.get(step), rest, value)}
    if isinstance(holder, tuple):
        return (*holder[:step], _with(holder[step], rest, value), *holder[step + 1 :])
    return replace(holder, **{step: _with(getattr(holder, step), rest, value)})
