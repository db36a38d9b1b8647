"""When nothing fits: the smallest memory that would, and what fills it."""

from __future__ import annotations

from dataclasses import fields
from math import ceil, floor, log10

from autoplan.assignment.gathers import gather_groups
from autoplan.cost.predict import predict
from autoplan.errors import NoPlanFits
from autoplan.planner.build import Built
from autoplan.planner.prices import Prices
from autoplan.planner.recompute import smallest

GIB = 2**30
TIME_LIMIT_S = 10.0  # to find the smallest plan; what is not proved by then is said to be an upper bound


def nothing_fits(start: Built, prices: Prices, limit_bytes: int) -> NoPlanFits:
    """The error that says how much the smallest plan needs, and for what."""
    found = smallest(start, prices, limit_bytes, TIME_LIMIT_S)
    assert found is not None, "without limits everything fits"
    needed_bytes = found.solution.cost * start.problem.unit_bytes
    assignment = found.built.assignment(found.solution.choice)
    groups = gather_groups(assignment, prices.prefixes, recomputed=found.built.recomputed)
    options = prices.options
    memory = predict(assignment, groups, prices.hardware, options, prices.segments, found.built.recomputed).memory_gib
    parts = sorted(((getattr(memory, f.name), f.name) for f in fields(memory) if f.name != "peak"), reverse=True)
    filled = ", ".join(f"{name} {amount:.3g}" for amount, name in parts[:4] if amount > 0)
    proved = found.solution.status == "optimal"
    return NoPlanFits(
        f"no plan fits {options.memory_gib or limit_bytes / GIB:.4g} GiB per device; the smallest needs {rounded_up_gib(needed_bytes):.4g} ({filled})",
        limit_bytes=limit_bytes,
        smallest_bytes=needed_bytes,
        where=None
        if proved
        else f"smallest found in {TIME_LIMIT_S:g} s, none needs less than {found.solution.bound * start.problem.unit_bytes / GIB:.4g}",
        next_step="raise --memory-gib, take a mesh of more devices, a smaller batch or another precision",
    )


def rounded_up_gib(amount: int) -> float:
    """Bytes in GiB with four significant digits, never less than they are."""
    gib = amount / GIB
    scale = 10.0 ** (3 - floor(log10(gib)))
    return ceil(gib * scale) / scale
