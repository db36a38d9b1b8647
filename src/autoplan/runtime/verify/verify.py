"""Does a parallel run give what one device gives: loss, every gradient, every buffer that the step overwrites, and exactly
the planned collectives?

Reference: the user's module itself in eager torch. Parallel: up to 8 ranks real processes through `parallelize`, above that
all ranks in lock-step as threads, running the same program with simulated collectives.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from math import isfinite
from statistics import median
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor

from autoplan.assignment import Assignment
from autoplan.assignment.gathers import GatherGroup, gather_groups, step_collectives
from autoplan.assignment.recompute import collectives_again
from autoplan.assignment.redistributions import Counts
from autoplan.collectives import Collectives, SimulatedCollectives, run_simulated, run_steps
from autoplan.graph import Graph, find_blocks, foldable_prefixes, input_leaves, tensors_of
from autoplan.graph.segments import Segment
from autoplan.graph.trees import leaf_paths
from autoplan.load import Built
from autoplan.placement import Mesh, Placements, R, forward_of
from autoplan.plan.schema import Plan
from autoplan.plan.summary import collective_counts
from autoplan.redistribution import lower
from autoplan.runtime.parallelize import LocalForward, distribute, local_forward
from autoplan.runtime.prepare import Prepared, Template, make_template, prepare
from autoplan.runtime.program.program import Program, build_program
from autoplan.runtime.program.run import Run
from autoplan.runtime.shards import local_part
from autoplan.runtime.verify.observe import Observer
from autoplan.runtime.verify.pool import WorkerPool
from autoplan.runtime.verify.undropped import NoDropout, undropped

MAX_PROCESSES = 8
LOSS_TOLERANCE = 1e-5
GRADIENT_TOLERANCE = 1e-4


Build = Callable[[], Built]
"""Makes the model, with the same real weights and inputs on every call; picklable."""


@dataclass(frozen=True)
class Reference:
    """One device: the outputs (in training the loss alone), the gradient of every parameter, the flops of the step, and what it
    leaves in the buffers that it overwrites."""

    outputs: tuple[Tensor, ...]
    gradients: Mapping[str, Tensor | None]
    flops: int
    buffers: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class RankResult:
    """One rank: whole outputs, the local part of every gradient and overwritten buffer, what it counted, and where it sits."""

    outputs: tuple[Tensor, ...]
    gradients: Mapping[str, Tensor | None]
    flops: int
    collectives: Counts
    coordinate: tuple[int, ...]
    buffers: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Verification:
    """How far parallel runs are from one device; `to_json` is what `autoplan verify --json` prints."""

    loss_rel_err: float
    grad_rel_err: float
    worst_param: str | None
    split_flops_fraction: float
    planned: Mapping[str, int]
    observed: Mapping[str, int]
    problems: tuple[str, ...] = ()
    random_run: int = 0
    random_ok: int = 0
    buffer_rel_err: float = 0.0
    dtype: str = "float32"

    @property
    def may_be_rounding(self) -> bool:
        """Whether the runs differ, but do the same collectives and give numbers: in a higher precision they may agree.

        Batch norm over few samples, layer after layer, multiplies rounding: of a MobileNet at batch 4 the gradients of ONE
        device in fp32 are 2.5 % off those in fp64 (measured 2026-11-22). And a bias whose channels are then normalised has a
        gradient of 0, so that all there is of it is rounding.
        """
        errors = (self.loss_rel_err, self.grad_rel_err, self.buffer_rel_err)
        return not self.ok and dict(self.planned) == dict(self.observed) and all(map(isfinite, errors))

    @property
    def ok(self) -> bool:
        """Whether everything agrees within the tolerances."""
        close = self.loss_rel_err <= LOSS_TOLERANCE and self.grad_rel_err <= GRADIENT_TOLERANCE
        return close and not self.problems and dict(self.planned) == dict(self.observed) and self.random_run == self.random_ok

    def to_json(self) -> dict[str, Any]:
        """The object of DESIGN 9."""
        return {
            "ok": self.ok,
            "dtype": {"float32": "fp32", "float64": "fp64"}.get(self.dtype, self.dtype),
            "loss_rel_err": self.loss_rel_err,
            "grad_rel_err": self.grad_rel_err,
            "worst_param": self.worst_param,
            "buffer_rel_err": self.buffer_rel_err,
            "split_flops_fraction": self.split_flops_fraction,
            "collectives": {"planned": dict(self.planned), "observed": dict(self.observed)},
            "random_plans": {"run": self.random_run, "ok": self.random_ok},
            "problems": list(self.problems),
        }


@dataclass(frozen=True, slots=True)
class InPrecision:
    """A model built as `build` does, its parameters, buffers and inputs then in `dtype`; picklable if `build` is."""

    build: Build
    dtype: torch.dtype

    def __call__(self) -> Built:
        model = self.build()
        module = model.module.to(self.dtype)
        args, kwargs = pytree.tree_map_only(Tensor, self._cast, (model.args, dict(model.kwargs)))
        return Built(module, args, kwargs)

    def _cast(self, tensor: Tensor) -> Tensor:
        return tensor.to(self.dtype) if tensor.is_floating_point() else tensor


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


def verification_template(model: Built, plan: Plan, dtype: torch.dtype) -> Template:
    """The template of a verification: in `dtype` whatever the plan's precision, dropout off."""
    return make_template(model.module, model.args, model.kwargs, plan, dtype=dtype, rewrite=undropped)


def reference_run(model: Built, graph: Graph) -> Reference:
    """One eager step of the module itself, dropout off; what it returns is matched with the graph's outputs by name."""
    trains = graph.loss is not None
    model.module.train(trains)
    with Observer() as observed, NoDropout(), torch.set_grad_enabled(trains):
        returned = model.module(*model.args, **dict(model.kwargs))
        outputs = (loss_of(returned),) if trains else tuple(leaf for leaf in pytree.tree_leaves(returned) if isinstance(leaf, Tensor))
        if trains:
            outputs[0].backward()
    gradients = {fqn: parameter.grad for fqn, parameter in model.module.named_parameters()}
    return Reference(tuple(output.detach() for output in outputs), gradients, observed.flops, _overwritten(model.module, graph))


def _overwritten(module: nn.Module, graph: Graph) -> dict[str, Tensor]:
    buffers = dict(module.named_buffers(remove_duplicate=False))
    return {fqn: buffers[fqn].detach() for fqn in graph.mutations}


def loss_of(returned: Any) -> Tensor:
    """The loss as capture finds it: what is called `loss`, else the first scalar float."""
    leaves, spec = pytree.tree_flatten(returned)
    scalars = [
        (path[-1:], leaf)
        for path, leaf in zip(leaf_paths(spec), leaves, strict=True)
        if isinstance(leaf, Tensor) and leaf.dim() == 0 and leaf.is_floating_point()
    ]
    return next((leaf for path, leaf in scalars if path == ("loss",)), scalars[0][1])


def rank_of_plan(build: Build, plan: Plan, dtype: torch.dtype) -> RankResult:
    """One rank's step through `parallelize`, in a process of its own."""
    model = build()
    mesh = worker_mesh(plan.mesh)
    template = verification_template(model, plan, dtype)
    return _process_step(distribute(model.module, template, mesh, dtype), model)


@cache
def worker_mesh(mesh: Mesh) -> DeviceMesh:
    """Made once in a worker, for every plan that it runs: its groups have threads until the process ends."""
    return init_device_mesh("cpu", mesh.shape, mesh_dim_names=mesh.names)


def _process_step(module: nn.Module, model: Built) -> RankResult:
    local = local_forward(module)
    assignment, collectives = local.program.assignment, local.collectives
    trains = assignment.graph.loss is not None
    module.train(trains)
    args, kwargs = _local_arguments(local, model)
    with Observer(collectives.axes_of_group) as observed:
        returned = module(*args, **kwargs)
        if trains:
            loss_of(returned).backward()
    leaves = [leaf.to_local() if isinstance(leaf, DTensor) else leaf for leaf in pytree.tree_leaves(returned)]
    outputs = _whole(leaves, assignment, collectives)
    gradients = {fqn: _local_gradient(parameter) for fqn, parameter in module.named_parameters()}
    buffers = _overwritten(module, assignment.graph)
    return RankResult(outputs, gradients, observed.flops, observed.collectives, collectives.coordinate, buffers)


def _local_gradient(parameter: nn.Parameter) -> Tensor | None:
    gradient = parameter.grad
    return gradient.to_local() if isinstance(gradient, DTensor) else gradient


def _local_arguments(local: LocalForward, model: Built) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The model's example call with this rank's part of every tensor."""
    assignment, graph = local.program.assignment, local.program.graph
    # a tensor that is two inputs (labels=input_ids) may be cut in two ways: one object for each
    args, kwargs = pytree.tree_map_only(Tensor, torch.clone, (model.args, dict(model.kwargs)))
    leaves = input_leaves(local.signature, args, kwargs)
    parts: dict[int, Tensor] = {}
    for value in graph.inputs:
        leaf = leaves[graph.values[value].address.removeprefix("inputs/")]
        parts[id(leaf)] = local_part(leaf, assignment.sources[value], assignment.mesh, local.collectives.coordinate)
    return pytree.tree_map_only(Tensor, lambda leaf: parts[id(leaf)], (args, kwargs))


def simulated_run(model: Built, program: Program) -> list[RankResult]:
    """All ranks of a program as threads of this process."""
    assignment = program.assignment
    graph, mesh = program.graph, assignment.mesh
    whole = tensors_of(graph, model.module, input_leaves(model.module.forward, model.args, model.kwargs))

    def rank_main(collectives: SimulatedCollectives) -> RankResult:
        local = {value: _own(tensor, assignment.produced[value], mesh, collectives.coordinate) for value, tensor in whole.items()}
        trains = graph.loss is not None
        with Observer() as observed, torch.set_grad_enabled(trains):
            returned = program(Run(collectives), local)
            outputs = returned[: len(graph.outputs)]
            if trains:
                outputs[graph.outputs.index(graph.loss)].backward()
        counts = Counter(collectives.counts)
        outputs = _whole(outputs, assignment, collectives)
        gradients = {p.fqn: local[p.value].grad for p in graph.parameters}
        buffers = dict(zip(program.mutated, (new.detach() for new in returned[len(graph.outputs) :]), strict=True))
        return RankResult(outputs, gradients, observed.flops, counts, collectives.coordinate, buffers)

    return run_simulated(mesh, rank_main)


def _own(tensor: Tensor, state: Placements, mesh: Mesh, coordinate: tuple[int, ...]) -> Tensor:
    """One simulated rank's own copy of its part."""
    return local_part(tensor.detach(), state, mesh, coordinate).clone().requires_grad_(tensor.requires_grad)


def _whole(outputs: Sequence[Tensor], assignment: Assignment, collectives: Collectives) -> tuple[Tensor, ...]:
    """Local outputs as whole ones."""
    whole = tuple(R for _ in assignment.mesh.shape)
    return tuple(
        run_steps(output.detach(), lower(forward_of(state), whole, assignment.mesh), collectives)
        for output, state in zip(outputs, assignment.outputs, strict=True)
    )


def compare(reference: Reference, results: Sequence[RankResult], assignment: Assignment, planned: Mapping[str, int]) -> Verification:
    """The largest differences over all ranks, each gradient compared with the part of the reference's that the rank holds."""
    mesh = assignment.mesh
    observed = [named_counts(result.collectives, mesh) for result in results]
    problems = [f"rank {rank} ran other collectives than rank 0" for rank, counts in enumerate(observed) if counts != observed[0]]
    loss_error = max(
        (_relative(found, wanted) for result in results for found, wanted in zip(result.outputs, reference.outputs, strict=True)),
        default=0.0,
    )
    error, worst = _gradient_error(reference, results, assignment)
    buffer_errors = _buffer_errors(reference, results, assignment)
    problems += [f"buffer {fqn} is {off:.2g} off" for fqn, off in buffer_errors.items() if not off <= GRADIENT_TOLERANCE]
    return Verification(
        loss_error,
        error,
        worst,
        _split_fraction(reference, results, mesh),
        planned,
        observed[0],
        tuple(problems),
        buffer_rel_err=_worst(buffer_errors.values()),
    )


def planned_collectives(plan: Plan, prepared: Prepared) -> dict[str, int]:
    """The collectives that the plan lists, and those that its recomputed blocks run again."""
    again = named_counts(collectives_again(prepared.assignment, prepared.recomputed), prepared.assignment.mesh)
    return dict(sorted((Counter(collective_counts(plan)) + Counter(again)).items()))


def named_counts(counts: Counts, mesh: Mesh) -> dict[str, int]:
    """Counts as `{"all-gather x,y": 3}`, sorted, without zeros."""
    named = {f"{kind} {','.join(mesh.names[axis] for axis in axes)}": count for (kind, axes), count in counts.items() if count}
    return dict(sorted(named.items()))


def _gradient_error(reference: Reference, results: Sequence[RankResult], assignment: Assignment) -> tuple[float, str | None]:
    """max|g - r| / max(|r|max, 1e-4 x the median over parameters of |r|max), its maximum over parameters, and whose it is."""
    largest = {fqn: gradient.abs().max().item() for fqn, gradient in reference.gradients.items() if gradient is not None}
    floor = _floor(largest.values())
    state_of = {p.fqn: assignment.produced[p.value] for p in assignment.graph.parameters}
    worst: tuple[float, str | None] = (0.0, None)
    for fqn, wanted in reference.gradients.items():
        for result in results:
            found = result.gradients[fqn]
            if found is None or wanted is None:
                error = 0.0 if found is wanted else float("inf")
            else:
                part = local_part(wanted, state_of[fqn], assignment.mesh, result.coordinate)
                difference = (found - part).abs().max().item() if found.shape == part.shape else float("inf")
                error = _ratio(difference, max(largest[fqn], floor))
            if not error <= worst[0]:  # a NaN is the worst
                worst = (error, fqn)
    return worst


def _floor(largest: Collection[float], small: float = 1e-4) -> float:
    """What a gradient or a buffer is measured against where it is nought but for rounding: a small part of what others are."""
    return small * median(largest) if largest else 0.0


def _buffer_errors(reference: Reference, results: Sequence[RankResult], assignment: Assignment) -> dict[str, float]:
    """How far each overwritten buffer is off, on the rank where it is most; counters must be equal.

    The running mean of what an earlier norm has centred is all rounding, about 1e-7 (fp32) of what is averaged, as large as other
    buffers are: so the least that a buffer is measured against is a hundredth of their median.
    """
    graph, mesh = assignment.graph, assignment.mesh
    largest = {fqn: buffer.abs().max().item() for fqn, buffer in reference.buffers.items() if buffer.is_floating_point()}
    floor = _floor(largest.values(), small=1e-2)
    errors = {}
    for fqn, wanted in reference.buffers.items():
        state = assignment.sources[graph.buffers[fqn]]
        pairs = [(result.buffers[fqn], local_part(wanted, state, mesh, result.coordinate)) for result in results]
        errors[fqn] = _worst(_buffer_error(found, part, max(largest.get(fqn, 0.0), floor)) for found, part in pairs)
    return errors


def _buffer_error(found: Tensor, wanted: Tensor, size: float) -> float:
    if found.shape != wanted.shape or not wanted.is_floating_point():
        return 0.0 if torch.equal(found, wanted) else float("inf")
    return _ratio((found - wanted).abs().max().item(), size)


def _worst(errors: Iterable[float]) -> float:
    """The largest; a NaN is the worst."""
    return max(errors, key=lambda error: (error != error, error), default=0.0)


def _relative(found: Tensor, wanted: Tensor) -> float:
    if found.shape != wanted.shape:
        return float("inf")
    if not wanted.is_floating_point():
        return 0.0 if torch.equal(found, wanted) else float("inf")
    return _ratio((found - wanted).abs().max().item(), wanted.abs().max().item())


def _ratio(difference: float, size: float) -> float:
    return 0.0 if difference == 0.0 else difference / size if size else float("inf")


def _split_fraction(reference: Reference, results: Sequence[RankResult], mesh: Mesh) -> float:
    """How much of the work that could be split is: 1 if each of N ranks does 1/N of it, 0 if one does all."""
    if mesh.size == 1 or not reference.flops:
        return 1.0
    return (reference.flops - max(result.flops for result in results)) / (reference.flops * (1 - 1 / mesh.size))


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
