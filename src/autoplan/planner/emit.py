"""A solution as a plan: the decisions, folded into patterns, and what they are predicted to cost."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import prod
from typing import TYPE_CHECKING, Any

from torch import nn

from autoplan.assignment import Assignment, encode
from autoplan.assignment.gathers import gather_groups
from autoplan.cost.predict import fallback_seconds, predict
from autoplan.graph import Graph, find_blocks, foldable_prefixes, graph_digest, model_digest
from autoplan.plan.schema import FallbackLine, HardwareInfo, ModelInfo, Plan, SolverInfo
from autoplan.rules.registry import rule_of

if TYPE_CHECKING:
    from autoplan.planner.pipeline import PlanRequest


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """The model as a plan names it: its target and settings, and the digest of the module as the factory made it."""

    target: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    digest: str = ""

    @classmethod
    def of(cls, module: nn.Module, target: str, settings: Mapping[str, Any]) -> ModelFacts:
        """The facts of `module`."""
        return cls(target, settings, model_digest(module))


def emit(assignment: Assignment, facts: ModelFacts, request: PlanRequest, solver: SolverInfo) -> Plan:
    """The plan that decides `assignment`, with its predictions on the request's hardware."""
    graph = assignment.graph
    prefixes = foldable_prefixes(find_blocks(graph))
    groups = gather_groups(assignment, prefixes)
    decisions = encode(assignment, groups, prefixes)
    return Plan(
        model=_model(graph, facts),
        mesh=request.mesh,
        hardware=HardwareInfo(request.hardware.name, request.hardware.digest),
        options=request.options,
        pins=request.pins,
        inputs=decisions.inputs,
        outputs=decisions.outputs,
        params=decisions.params,
        buffers=decisions.buffers,
        ops=decisions.ops,
        reshard=decisions.reshard,
        gather=decisions.gather,
        fallbacks=_fallbacks(assignment, request),
        predicted=predict(assignment, groups, request.hardware, request.options),
        solver=solver,
    )


def _model(graph: Graph, facts: ModelFacts) -> ModelInfo:
    numel = sum(prod(graph.values[parameter.value].shape) for parameter in graph.parameters)
    return ModelInfo(facts.target, numel, facts.digest, graph_digest(graph), facts.settings)


def _fallbacks(assignment: Assignment, request: PlanRequest) -> tuple[FallbackLine, ...]:
    """Ops without a rule, by op and module pattern, with the ms a step they add over being split evenly."""
    lines: dict[str, list[Any]] = {}
    for node in assignment.graph.nodes:
        if rule_of(node.op) is None:
            lines.setdefault(node.op, []).append(node)
    return tuple(
        FallbackLine(nodes[0].address, op, len(nodes), 1e3 * sum(fallback_seconds(assignment, node, request.hardware) for node in nodes))
        for op, nodes in lines.items()
    )
