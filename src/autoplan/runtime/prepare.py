"""A module and a plan become what can be run: the captured graph, checked against the plan, and its assignment."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor, nn

from autoplan.assignment import Assignment
from autoplan.assignment.decode import decode
from autoplan.assignment.encode import named
from autoplan.assignment.gathers import GatherGroup, gather_groups
from autoplan.assignment.recompute import recomputed_segments
from autoplan.errors import PlanError, join_problems
from autoplan.graph import COMPUTE_DTYPE, Graph, capture, cast_module, find_blocks, foldable_prefixes, graph_digest, model_digest
from autoplan.graph.ir import Ref, map_refs
from autoplan.graph.segments import Segment, find_segments
from autoplan.plan.dump import dump_plan
from autoplan.plan.match import match_params
from autoplan.plan.patterns import match
from autoplan.plan.schema import GatherLine, Plan

STORED_DTYPE = {"fp32": torch.float32, "bf16": torch.bfloat16, "bf16-master": torch.float32}

Rewrite = Callable[[Graph], Graph]


@dataclass(frozen=True)
class Template:
    """The module as capture sees it, without weights, to be captured in training and in eval mode."""

    module: nn.Module
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    plan: Plan
    rewrite: Rewrite | None = None

    def captured(self, training: bool) -> Graph:
        """The graph that the plan is for; of a training plan in eval mode, the same outputs without gradients."""
        mode = self.plan.options.mode
        if mode == "infer" or training:
            graph = capture(
                self.module,
                self.args,
                self.kwargs,
                mode="infer" if mode == "infer" else "train",
                keep_outputs=self.plan.options.keep_outputs,
            )
        else:
            graph = capture(self.module, self.args, self.kwargs, mode="infer")
            graph = only_planned(graph, self.plan) if self.plan.options.keep_outputs else only_loss(graph, self.plan)
        return graph if self.rewrite is None else self.rewrite(graph)


def make_template(
    module: nn.Module,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    plan: Plan,
    *,
    dtype: torch.dtype | None = None,
    rewrite: Rewrite | None = None,
) -> Template:
    """The twin of `module` in the plan's compute precision (or `dtype`) with its example inputs on meta."""
    twin, args, kwargs = cast_module(module, args, kwargs, dtype or COMPUTE_DTYPE[plan.options.precision])
    args, kwargs = pytree.tree_map_only(Tensor, lambda tensor: tensor.to("meta"), (args, dict(kwargs)))
    return Template(twin, args, kwargs, plan, rewrite)


def check_model(module: nn.Module, plan: Plan) -> None:
    """Raises PlanError that names the parameters by which `module` is not the one that was planned."""
    match_params(plan, {fqn: tuple(parameter.shape) for fqn, parameter in module.named_parameters()})
    if model_digest(module) != plan.model.digest:
        raise PlanError(
            "the plan is for another model: names and shapes of its parameters agree, but dtypes, ties or which of them train differ",
            where=plan.provenance.where("model", "digest"),
            next_step="build the model as it was planned, or plan again",
        )


def check_graph(graph: Graph, plan: Plan) -> str | None:
    """A note if the captured computation is not the planned one; whether the decisions still resolve, `decode` says."""
    if graph_digest(graph) == plan.model.graph:
        return None
    return "note: the captured graph is not the planned one (another torch, or another forward); every decision still resolves"


def groups_of(assignment: Assignment, plan: Plan, recomputed: Sequence[Segment] = ()) -> tuple[GatherGroup, ...]:
    """The gather groups that the plan's `gather` lines say; raises PlanError where they list other collectives than it takes.

    A training plan's lines are not compared with what its graph in eval mode takes, which has no backward.
    """
    lines = plan.gather
    prefixes = {key.rpartition(".")[0] for key, line in lines.items() if line.group == "block"}

    def line_of(name: str) -> tuple[str, GatherLine] | None:
        return next(((key, line) for key, line in lines.items() if match(key, name)), None)

    def regather(name: str) -> bool:
        found = line_of(name)
        return found is not None and found[1].regather

    found = gather_groups(assignment, prefixes, regather, recomputed)
    groups = tuple(replace(group, prefetch=line[1].prefetch if (line := line_of(group.name)) else 0) for group in found)
    problems = []
    for group in groups if plan.options.mode == "infer" or assignment.graph.loss is not None else ():
        takes = (named(group.forward, assignment), named(group.again + group.backward, assignment))
        line = line_of(group.name)
        if ((line[1].forward, line[1].backward) if line else ((), ())) != takes:
            key = line[0] if line else group.name
            written = "forward: [{}], backward: [{}]".format(*(", ".join(map(str, collectives)) for collectives in takes))
            problems.append(
                PlanError(
                    f"gather of {key}: store and use of its parameters take other collectives",
                    where=plan.provenance.where("gather", key),
                    next_step=f"write {written}",
                )
            )
    if problems:
        unique = {str(problem): problem for problem in problems}
        raise join_problems(PlanError, unique.values())
    return groups


@dataclass(frozen=True)
class Prepared:
    """All that a program is built from: decisions, gather groups, the copies of blocks and those of them that recompute.

    `note` is to be printed, if there is one.
    """

    assignment: Assignment
    groups: tuple[GatherGroup, ...]
    segments: tuple[Segment, ...]
    recomputed: tuple[Segment, ...]
    note: str | None = None


def prepare(template: Template, training: bool) -> Prepared:
    """What the template's plan says for its graph; nothing recomputes in eval mode. Raises PlanError."""
    plan = template.plan
    graph = template.captured(training)
    records = graph.loss is not None
    planned = records or plan.options.mode == "infer"
    assignment = decode(plan, graph) if planned else decode(in_eval_mode(plan, graph), graph, exact=False)
    segments = segments_of(graph, plan)
    recomputed = recomputed_segments(plan, segments) if records else ()
    groups = groups_of(assignment, plan, recomputed)
    note = check_graph(graph, plan) if training and template.rewrite is None else None
    return Prepared(assignment, groups, segments, recomputed, note)


def segments_of(graph: Graph, plan: Plan) -> tuple[Segment, ...]:
    """The copies of blocks: of those that the graph repeats, and of those that the plan speaks of, be there only one."""
    spoken_of = [key for key, line in plan.gather.items() if line.group == "block"] + list(plan.recompute)
    return find_segments(graph, foldable_prefixes(find_blocks(graph)).union(key.rpartition(".")[0] for key in spoken_of))


_KEEPING_STATISTICS = frozenset({"aten.batch_norm", "aten.instance_norm"})


def in_eval_mode(plan: Plan, graph: Graph) -> Plan:
    """A training plan as it holds for its graph in eval mode, where no gradient flows and both kinds of R are one state.

    A norm that keeps running statistics has one output there, not three: what the plan says of its first output holds for
    that one, what it says of the others, and of the row that makes them, for nothing. The statistics themselves, which it
    then reads and no longer only updates, are cut as the rest of its inputs wants them.
    """
    read = [graph.values[value] for node in graph.nodes if node.name in _KEEPING_STATISTICS for value in node.inputs]
    statistics = {value.address for value in read if value.kind == "buffer"}
    reshard = {
        name: tuple(replace(entry, forward=next(e.forward for e in entries if e.to == entry.to), backward=()) for entry in entries)
        for key, entries in plan.reshard.items()
        if (name := _name_in(key, [value.address for value in graph.values if value.address not in statistics]))
    }
    ops = {
        key: replace(line, gradient=None)
        for key, line in plan.ops.items()
        if any(match(key, node.address) and _makes(line.row, len(node.outputs)) for node in graph.nodes)
    }
    return replace(plan, reshard=reshard, ops=ops)


def _name_in(key: str, names: Collection[str]) -> str | None:
    """`key` if it is a pattern of any of `names`, or what is before its `[0]`."""
    return next((pattern for pattern in (key, key.removesuffix("[0]")) if any(match(pattern, name) for name in names)), None)


def _makes(row: str | None, outputs: int) -> bool:
    """Whether a row as plans write it is one of an op with so many outputs."""
    return row is None or all(len(part.split(" on ")[0].partition("->")[2].split()) == outputs for part in row.split("; "))


def plan_digest(plan: Plan) -> str:
    """A fingerprint of all that the plan says."""
    return hashlib.sha256(dump_plan(plan).encode()).hexdigest()


def only_loss(graph: Graph, plan: Plan) -> Graph:
    """A graph captured in eval mode, cut down to the loss that the training plan returns: the first scalar float."""
    scalars = [
        (name, value)
        for name, value in zip(graph.output_names, graph.outputs, strict=True)
        if not graph.values[value].shape and graph.values[value].is_float
    ]
    if not scalars:
        raise PlanError("in eval mode the model returns no loss", next_step="call it with labels, or plan it with --mode infer")
    _, loss = next((scalar for scalar in scalars if scalar[0] == "loss"), scalars[0])
    return restricted(graph, {loss: "loss"})


def only_planned(graph: Graph, plan: Plan) -> Graph:
    """A graph captured in eval mode, cut down to the outputs that a training plan keeps; others it may have in this mode alone."""
    kept = {value: name for name, value in zip(graph.output_names, graph.outputs, strict=True) if any(match(k, name) for k in plan.outputs)}
    return restricted(graph, kept)


def restricted(graph: Graph, outputs: Mapping[int, str]) -> Graph:
    """The part of a graph that `outputs` (value -> name) need, values and nodes numbered anew."""
    needed = set(outputs) | set(graph.mutations.values())
    kept = []
    for node in reversed(graph.nodes):
        if needed.intersection(node.outputs):
            needed.update(node.inputs)
            kept.append(node)
    kept.reverse()
    made = {value for node in kept for value in node.outputs}
    values = [
        value
        for value in graph.values
        if value.kind in ("input", "parameter", "buffer") or value.id in made or (value.kind == "constant" and value.id in needed)
    ]
    number = {value.id: new for new, value in enumerate(values)}

    def renumbered(ref: Ref) -> Ref:
        return Ref(number[ref.value])

    return replace(
        graph,
        values=tuple(replace(value, id=number[value.id]) for value in values),
        nodes=tuple(
            replace(
                node,
                id=new,
                args=map_refs(node.args, renumbered),
                kwargs=map_refs(node.kwargs, renumbered),
                outputs=tuple(number[v] for v in node.outputs),
            )
            for new, node in enumerate(kept)
        ),
        inputs=_numbers(graph.inputs, number),
        parameters=tuple(replace(p, value=number[p.value]) for p in graph.parameters),
        buffers={fqn: number[value] for fqn, value in graph.buffers.items()},
        outputs=_numbers(tuple(outputs), number),
        constants={number[value]: tensor for value, tensor in graph.constants.items() if value in number},
        mutations={fqn: number[value] for fqn, value in graph.mutations.items()},
        output_names=tuple(outputs.values()),
    )


def _numbers(values: Sequence[int], number: Mapping[int, int]) -> tuple[int, ...]:
    return tuple(number[value] for value in values)
