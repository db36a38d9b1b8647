"""One step on one device, in eager torch, and as a plan's ranks: real processes, or all of them as threads in lock-step."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor

from autoplan.assignment import Assignment
from autoplan.collectives import Collectives, SimulatedCollectives, run_simulated, run_steps
from autoplan.graph import Graph, input_leaves, tensors_of
from autoplan.graph.trees import leaf_paths
from autoplan.load import Built
from autoplan.placement import Mesh, Placements, R, forward_of
from autoplan.plan.schema import Plan
from autoplan.redistribution import lower
from autoplan.runtime.parallelize import LocalForward, distribute, local_forward
from autoplan.runtime.prepare import Template, make_template
from autoplan.runtime.program.program import Program
from autoplan.runtime.program.run import Run
from autoplan.runtime.shards import local_part
from autoplan.runtime.verify.observe import Observer
from autoplan.runtime.verify.results import RankResult, Reference
from autoplan.runtime.verify.undropped import NoDropout, undropped

Build = Callable[[], Built]
"""Makes the model, with the same real weights and inputs on every call; picklable."""


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
