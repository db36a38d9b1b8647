"""A solution as a plan: the decisions, folded into patterns, and what they are predicted to cost."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import TYPE_CHECKING, Any

from torch import nn

from autoplan.assignment import Assignment, encode
from autoplan.assignment.gathers import gather_groups
from autoplan.assignment.recompute import recompute_lines
from autoplan.cost.predict import fallback_seconds, predict
from autoplan.graph import Graph, find_blocks, foldable_prefixes, graph_digest, model_digest
from autoplan.graph.segments import Segment, find_segments
from autoplan.plan.patterns import collapse
from autoplan.plan.schema import FallbackLine, HardwareInfo, ModelInfo, Plan, SolverInfo
from autoplan.rules.registry import rule_of

if TYPE_CHECKING:
    from autoplan.planner.request import PlanRequest


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """The model as a plan names it: its target, settings and rules, and the digest of the module as the factory made it."""

    target: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    digest: str = ""
    rules: str | None = None

    @classmethod
    def of(cls, module: nn.Module, target: str, settings: Mapping[str, Any], rules: str | None = None) -> ModelFacts:
        """The facts of `module`."""
        return cls(target, settings, model_digest(module), rules)


def _hardware(request: PlanRequest) -> HardwareInfo:
    per_host = request.hardware.gpus_per_node
    return HardwareInfo(request.hardware.name, request.hardware.digest, per_host if request.mesh.size > per_host else None)


def emit(
    assignment: Assignment,
    facts: ModelFacts,
    request: PlanRequest,
    solver: SolverInfo,
    recomputed: Sequence[Segment] = (),
    prefetch: int = 0,
) -> Plan:
    """The plan that decides `assignment`, recomputes some segments and gathers blocks so many pieces ahead, with its predictions."""
    graph = assignment.graph
    prefixes = foldable_prefixes(find_blocks(graph))
    segments = find_segments(graph, prefixes)
    groups = gather_groups(assignment, prefixes, recomputed=recomputed, prefetch=prefetch)
    decisions = encode(assignment, groups, prefixes)
    return Plan(
        model=_model(graph, facts),
        mesh=request.mesh,
        hardware=_hardware(request),
        options=request.options,
        pins=request.pins,
        inputs=decisions.inputs,
        outputs=decisions.outputs,
        params=decisions.params,
        buffers=decisions.buffers,
        ops=decisions.ops,
        reshard=decisions.reshard,
        gather=decisions.gather,
        recompute=recompute_lines(segments, recomputed),
        fallbacks=_fallbacks(assignment, request, prefixes),
        predicted=predict(assignment, groups, request.hardware, request.options, segments, recomputed),
        solver=solver,
    )


def _model(graph: Graph, facts: ModelFacts) -> ModelInfo:
    numel = sum(prod(graph.values[parameter.value].shape) for parameter in graph.parameters)
    return ModelInfo(facts.target, numel, facts.digest, graph_digest(graph), facts.settings, rules=facts.rules)


def _fallbacks(assignment: Assignment, request: PlanRequest, prefixes: Collection[str]) -> tuple[FallbackLine, ...]:
    """Ops without a rule, by pattern, with the ms that all of them add to a step over being split evenly."""
    nodes = assignment.graph.nodes
    lines = {
        node.address: (node.op, 1e3 * fallback_seconds(assignment, node, request.hardware, request.options))
        for node in nodes
        if rule_of(node.op) is None
    }
    folds = collapse(lines, prefixes, existing=[node.address for node in nodes], execution_order=True)
    return tuple(FallbackLine(pattern, fold.content[0], fold.count, fold.count * fold.content[1]) for pattern, fold in folds.items())
