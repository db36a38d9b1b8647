"""Does a parallel run give what one device gives: loss, every gradient, every buffer that the step overwrites, and exactly
the planned collectives?

Reference: the user's module itself in eager torch. Parallel: up to 8 ranks real processes through `parallelize`, above that
all ranks in lock-step as threads, running the same program with simulated collectives.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch

from autoplan.assignment import Assignment
from autoplan.assignment.gathers import GatherGroup, gather_groups, step_collectives
from autoplan.assignment.recompute import collectives_again
from autoplan.graph import Graph, find_blocks, foldable_prefixes
from autoplan.graph.segments import Segment
from autoplan.plan.schema import Plan
from autoplan.plan.summary import collective_counts
from autoplan.runtime.prepare import Prepared, prepare
from autoplan.runtime.program.program import build_program
from autoplan.runtime.verify.compare import compare, named_counts
from autoplan.runtime.verify.pool import WorkerPool
from autoplan.runtime.verify.results import RankResult, Reference, Verification
from autoplan.runtime.verify.runs import Build, InPrecision, rank_of_plan, reference_run, simulated_run, verification_template

MAX_PROCESSES = 8


def verify(
    build: Build,
    plan: Plan,
    *,
    dtype: torch.dtype = torch.float32,
    pool: WorkerPool | None = None,
    random_assignments: Sequence[Assignment] = (),
) -> Verification:
    """`plan` against one device; `random_assignments` are further decisions on the graph that `verified_graph` gives.

    Raises PlanError for a plan that is not this model's.
    """
    build = InPrecision(build, dtype)
    template = verification_template(build(), plan, dtype)
    prepared = prepare(template, plan.options.mode == "train")
    assignment = prepared.assignment
    reference = reference_run(build(), assignment.graph)
    if plan.mesh.size <= MAX_PROCESSES:
        results = _in_processes(pool, plan.mesh.size, rank_of_plan, build, plan, dtype)
    else:
        program = build_program(assignment, prepared.groups, "cpu", segments=prepared.segments, recomputed=prepared.recomputed)
        results = simulated_run(build(), program)
    found = compare(reference, results, assignment, planned_collectives(plan, prepared))
    good = sum(_random_ok(build, reference, other) for other in random_assignments)
    return replace(found, random_run=len(random_assignments), random_ok=good, dtype=str(dtype).removeprefix("torch."))


def verified_graph(build: Build, plan: Plan, dtype: torch.dtype = torch.float32) -> Graph:
    """The graph that `verify` runs: captured in `dtype`, dropout off."""
    return verification_template(InPrecision(build, dtype)(), plan, dtype).captured(plan.options.mode == "train")


def planned_collectives(plan: Plan, prepared: Prepared) -> dict[str, int]:
    """The collectives that the plan lists, and those that its recomputed blocks run again."""
    again = named_counts(collectives_again(prepared.assignment, prepared.recomputed), prepared.assignment.mesh)
    return dict(sorted((Counter(collective_counts(plan)) + Counter(again)).items()))


def verify_assignment(
    build: Build,
    assignment: Assignment,
    groups: tuple[GatherGroup, ...],
    dtype: torch.dtype = torch.float32,
    *,
    recomputed: Sequence[Segment] = (),
) -> Verification:
    """Decisions without a plan against one device, ranks simulated; the collectives are compared with those computed."""
    build = InPrecision(build, dtype)
    reference = reference_run(build(), assignment.graph)
    return _against(build, reference, assignment, groups, recomputed)


def _against(
    build: Build, reference: Reference, assignment: Assignment, groups: tuple[GatherGroup, ...], recomputed: Sequence[Segment] = ()
) -> Verification:
    planned = named_counts(step_collectives(assignment, groups, recomputed), assignment.mesh)
    program = build_program(assignment, groups, "cpu", recomputed=recomputed)
    return compare(reference, simulated_run(build(), program), assignment, planned)


def _in_processes(pool: WorkerPool | None, size: int, job: Callable[..., RankResult], *args: Any) -> list[RankResult]:
    if pool is not None and pool.size == size:
        return pool.run(job, *args)
    with WorkerPool(size) as own:
        return own.run(job, *args)


def _random_ok(build: Build, reference: Reference, assignment: Assignment) -> bool:
    groups = gather_groups(assignment, foldable_prefixes(find_blocks(assignment.graph)))
    return _against(build, reference, assignment, groups).ok
