"""Seconds of parameters that travel together, in one collective: what starting it takes, and what each of them adds.

The runtime hands a collective the tensors as they lie. An all-gather or a reduce-scatter makes no other copies of several than of each
by itself; an all-reduce works in place and sums one copy of them all. Between nothing and all parameters of a block, seconds are taken to
rise evenly: so they are the sum over parameters, and of starts.
"""

from __future__ import annotations

from functools import lru_cache

from autoplan.assignment.gathers import BUCKETED
from autoplan.cost.communication import collective_seconds, copied_seconds
from autoplan.cost.hardware import Hardware
from autoplan.placement import Mesh
from autoplan.redistribution import Kind, Step

LEAST_BYTES = 1.0


@lru_cache(maxsize=4096)
def start_seconds(kind: Kind, axes: tuple[int, ...], mesh: Mesh, hardware: Hardware) -> float:
    """Seconds of a collective of parameters, however small these are."""
    if mesh.group_size(axes) == 1:
        return 0.0
    return _together_seconds(kind, axes, LEAST_BYTES, mesh, hardware)


def carried_seconds(step: Step, nbytes: float, block_bytes: float, mesh: Mesh, hardware: Hardware) -> float:
    """Seconds that a parameter of `nbytes` (global) adds to those of a start, in a block whose parameters have `block_bytes` in all."""
    assert step.kind in BUCKETED
    if mesh.group_size(step.axes) == 1:
        return 0.0
    full = block_bytes / step.full_divisor
    all_s = _together_seconds(step.kind, step.axes, full, mesh, hardware) - start_seconds(step.kind, step.axes, mesh, hardware)
    return all_s * nbytes / block_bytes + (0.0 if step.kind == "all-reduce" else copied_seconds(step, nbytes, mesh, hardware))


def _together_seconds(kind: Kind, axes: tuple[int, ...], full_bytes: float, mesh: Mesh, hardware: Hardware) -> float:
    seconds = collective_seconds(kind, axes, full_bytes, mesh, hardware)
    return seconds + hardware.copy_seconds(2 * full_bytes) if kind == "all-reduce" else seconds
