"""Which copies of blocks run their forward again in backward (a plan's `recompute` lines against a graph's segments), and what
of them does: all up to the last op that keeps anything for backward. Collectives behind it are not repeated."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Sequence

from autoplan.assignment.assignment import Assignment
from autoplan.assignment.keeps import keeps_anything
from autoplan.assignment.redistributions import Counts, count_collectives, redistributions
from autoplan.errors import PlanError, join_problems
from autoplan.graph.ir import Graph
from autoplan.graph.segments import Segment
from autoplan.plan.match import match_lines
from autoplan.plan.patterns import match
from autoplan.plan.schema import Plan, RecomputeLine

POLICIES = ("full",)


def recomputed_segments(plan: Plan, segments: Sequence[Segment]) -> tuple[Segment, ...]:
    """The segments that recompute, in their order: of each line the first copies. Raises PlanError naming wrong lines."""
    if not plan.recompute:
        return ()
    match_lines(plan, "recompute", [segment.name for segment in segments])
    if unknown := [key for key, line in plan.recompute.items() if line.policy not in POLICIES]:
        raise join_problems(PlanError, [_unknown_policy(plan, key) for key in unknown])
    first = {segment for key, line in plan.recompute.items() for segment in _first(key, line, segments)}
    return tuple(segment for segment in segments if segment in first)


def _first(key: str, line: RecomputeLine, segments: Sequence[Segment]) -> list[Segment]:
    return [segment for segment in segments if match(key, segment.name)][: line.blocks]


def recompute_lines(segments: Sequence[Segment], recomputed: Sequence[Segment]) -> dict[str, RecomputeLine]:
    """The lines that say which of the segments recompute: of each prefix the first copies."""
    again = Counter(segment.prefix for segment in recomputed)
    copies = Counter(segment.prefix for segment in segments)
    return {f"{prefix}.*".lstrip("."): RecomputeLine(again[prefix], copies[prefix], "full") for prefix in again}


def _unknown_policy(plan: Plan, key: str) -> PlanError:
    where = plan.provenance.where("recompute", key)
    return PlanError(f"{key}: unknown policy {plan.recompute[key].policy!r}", where=where, next_step=f"write one of: {', '.join(POLICIES)}")


def nodes_again(graph: Graph, segment: Segment) -> range:
    """The nodes of a recomputed segment that backward runs again: the first to the last that keeps anything, none without gradients."""
    keeping = [node for node in segment.nodes if keeps_anything(graph, graph.nodes[node])]
    receives = any(value in graph.receiving for node in keeping for value in graph.nodes[node].outputs)
    return range(segment.nodes.start, keeping[-1] + 1) if receives else range(0)


def collectives_again(assignment: Assignment, recomputed: Iterable[Segment]) -> Counts:
    """How often each (kind, axes) of collective runs once more since segments recompute: redistributions inside them, and the
    forward's collectives inside their ops. Their parameters are not counted here: `GatherGroup.again` has them."""
    graph = assignment.graph
    counts: Counts = Counter()
    moves = redistributions(assignment)
    for segment in recomputed:
        again = nodes_again(graph, segment)
        made = {value for node in segment.nodes for value in graph.nodes[node].outputs}
        inner = made.union(segment.own_inputs)
        counts.update(count_collectives(r.forward for r in moves if r.value in inner and r.readers[0][0] in again))
        for node in again:
            counts.update(assignment.strategies[node].inside_forward())
    return counts


def reads_all(assignment: Assignment, segments: Iterable[Segment], values: Collection[int]) -> bool:
    """Whether every reader of these values is in one and the same of the segments that backward runs again."""
    readers = {node for value in values for need in assignment.needs[value] for node, _ in need.readers}
    return any(nodes_again(assignment.graph, segment) and readers <= set(segment.nodes) for segment in segments)
