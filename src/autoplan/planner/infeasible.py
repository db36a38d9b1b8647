"""When nothing fits: the smallest memory that would, what fills it, which pins stand in the way, and what would help."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import islice
from math import ceil, floor, log10
from time import perf_counter

from autoplan.assignment.gathers import gather_groups
from autoplan.assignment.recompute import recompute_lines
from autoplan.cost.moments import Moment
from autoplan.cost.predict import Memory, largest_holders, peak_moment
from autoplan.errors import NoPlanFits, OutOfTime, PlanError
from autoplan.plan.patterns import collapse
from autoplan.planner.build import Built
from autoplan.planner.prices import Prices
from autoplan.planner.smallest import smallest

GIB = 2**30
TIME_LIMIT_S = 10.0  # to find the smallest plan; what is not proved by then is said to be an upper bound
REMEDIES_LIMIT_S = 20.0  # for all remedies together
HOLDERS = 4
LINES = 15


@dataclass(frozen=True, slots=True)
class Remedy:
    """Something that the user may change, and the problem that it makes; `pins` that are given up are named as such."""

    text: str  # "on 4x4", "with precision bf16", "without the pin {...}"
    problem: Callable[[], Built]


def nothing_fits(start: Built, limit_bytes: int, remedies: Sequence[Remedy] = ()) -> NoPlanFits:
    """The error that says how much the smallest plan needs, and for what; each remedy is solved for the least it needs.

    Raises PlanError where pins exclude each other, so that there is no plan of any size.
    """
    prices = start.terms.prices
    found = smallest(start, limit_bytes, TIME_LIMIT_S)
    if found is None:
        raise PlanError("no plan respects all pins together", next_step="`gather: never` needs parameters stored as they are used")
    needed_bytes = found.solution.cost * start.problem.unit_bytes
    assignment = found.built.assignment(found.solution.choice)
    groups = gather_groups(assignment, prices.prefixes, recomputed=found.built.recomputed)
    moment, memory = peak_moment(assignment, groups, prices.hardware, prices.options, prices.segments, found.built.recomputed)
    lines = [
        f"no plan fits {prices.options.memory_gib or limit_bytes / GIB:.4g} GiB per device; "
        f"the smallest needs {rounded_up_gib(needed_bytes):.4g} ({_parts(memory)})"
    ]
    if found.solution.status != "optimal":
        least = found.solution.bound * start.problem.unit_bytes / GIB
        lines.append(f"smallest found in {TIME_LIMIT_S:g} s; none needs less than {least:.4g}")
    again = recompute_lines(prices.segments, found.built.recomputed)
    lines.extend(f"with {line.blocks} of {line.of} {pattern} recomputed" for pattern, line in again.items())
    holders = largest_holders(assignment, prices.hardware, prices.options, moment)
    lines.append(f"most of it, at {_moment_name(moment)}: {_largest(holders, prices)}")
    lines.extend(islice(_helping(remedies, limit_bytes, needed_bytes), LINES - len(lines) - 1))
    return NoPlanFits(
        "\n  ".join(lines),
        limit_bytes=limit_bytes,
        smallest_bytes=needed_bytes,
        next_step="raise --memory-gib, take a mesh of more devices, a smaller batch or another precision",
    )


def _parts(memory: Memory) -> str:
    parts = sorted(((getattr(memory, f.name), f.name) for f in fields(memory)), reverse=True)
    return ", ".join(f"{name} {amount / GIB:.3g}" for amount, name in parts[:4] if amount > 0)


def _moment_name(moment: Moment | None) -> str:
    if moment is None:
        return "the optimizer step"
    return "the begin of backward" if moment.at_work is None else f"the backward of {moment.at_work.name}"


def _largest(holders: Mapping[str, int], prices: Prices) -> str:
    """Who holds most, copies of a block together."""
    folds = collapse(holders, prices.prefixes, existing=holders)
    total = sorted(((fold.content * fold.count, pattern) for pattern, fold in folds.items()), reverse=True)
    return ", ".join(f"{pattern} {nbytes / GIB:.3g}" for nbytes, pattern in total[:HOLDERS])


def _helping(remedies: Sequence[Remedy], limit_bytes: int, needed_bytes: int) -> Iterator[str]:
    """What each remedy needs, of those that need less."""
    deadline = perf_counter() + REMEDIES_LIMIT_S
    for position, remedy in enumerate(remedies):
        share = (deadline - perf_counter()) / (len(remedies) - position)
        if share < 1.0:
            return
        try:
            built = remedy.problem()
            found = smallest(built, limit_bytes, share)
        except OutOfTime:
            continue
        needs = found.solution.cost * built.problem.unit_bytes if found is not None else needed_bytes
        if needs < needed_bytes:
            yield f"{remedy.text}: {rounded_up_gib(needs):.4g} GiB{', which fits' if needs <= limit_bytes else ''}"


def rounded_up_gib(amount: int) -> float:
    """Bytes in GiB with four significant digits, never less than they are."""
    gib = amount / GIB
    scale = 10.0 ** (3 - floor(log10(gib)))
    return ceil(gib * scale) / scale
