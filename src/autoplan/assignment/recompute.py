"""Which copies of blocks run their forward again in backward: a plan's `recompute` lines against a graph's segments."""

from __future__ import annotations

from collections.abc import Sequence

from autoplan.errors import PlanError, join_problems
from autoplan.graph.segments import Segment
from autoplan.plan.match import match_lines
from autoplan.plan.patterns import match
from autoplan.plan.schema import Plan, RecomputeLine

POLICIES = ("full",)


def recomputed_segments(plan: Plan, segments: Sequence[Segment]) -> frozenset[str]:
    """Names of the segments (`layers.3`) that recompute: of each line the first copies. Raises PlanError naming wrong lines."""
    if not plan.recompute:
        return frozenset()
    match_lines(plan, "recompute", [segment.name for segment in segments])
    if unknown := [key for key, line in plan.recompute.items() if line.policy not in POLICIES]:
        raise join_problems(PlanError, [_unknown_policy(plan, key) for key in unknown])
    return frozenset(name for key, line in plan.recompute.items() for name in _first(key, line, segments))


def _first(key: str, line: RecomputeLine, segments: Sequence[Segment]) -> list[str]:
    return [segment.name for segment in segments if match(key, segment.name)][: line.blocks]


def _unknown_policy(plan: Plan, key: str) -> PlanError:
    where = plan.provenance.where("recompute", key)
    return PlanError(f"{key}: unknown policy {plan.recompute[key].policy!r}", where=where, next_step=f"write one of: {', '.join(POLICIES)}")
