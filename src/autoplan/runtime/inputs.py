"""Global batches and local ones: cut for a rank, or taken as the rank's own and checked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Partial, Placement, Replicate, Shard
from torch.distributed.tensor.placement_types import _StridedShard

from autoplan import placement as ours
from autoplan.errors import PlanError, UsageError
from autoplan.graph.ir import Graph
from autoplan.graph.trees import leaf_paths
from autoplan.placement import Mesh, Placements, format_placements, local_shape
from autoplan.plan.schema import Plan
from autoplan.runtime.shards import local_part


def to_torch(placements: Placements) -> tuple[Placement, ...]:
    """Our placements as DTensor's; a grouped shard is its `_StridedShard`."""
    return tuple(map(_to_torch, placements))


def _to_torch(placement: ours.Placement) -> Placement:
    if isinstance(placement, ours.Shard):
        return Shard(placement.dim) if placement.groups == 1 else _StridedShard(placement.dim, split_factor=placement.groups)
    return Partial("sum") if isinstance(placement, ours.Partial) else Replicate()


def as_dtensor(local: Tensor, shape: Sequence[int], placements: Placements, device_mesh: DeviceMesh) -> DTensor:
    """The DTensor of global `shape` of which this rank holds `local`; raises PlanError for placements that DTensor misreads."""
    if not ours.dtensor_holds(placements):
        raise PlanError(
            f"{format_placements(placements)} is not a placement that DTensor can hold", next_step="cut another dim on one of these axes"
        )
    stride = torch.empty(tuple(shape), device="meta").stride()
    return DTensor.from_local(local, device_mesh, to_torch(placements), run_check=False, shape=torch.Size(shape), stride=stride)


def shard_inputs(plan: Plan, device_mesh: DeviceMesh, batch: Any) -> Any:
    """This rank's part of a global batch, in the batch's own structure: a mapping by input names, or tensors in the plan's order.

    What is no tensor stays as it is. Raises UsageError for a batch that is not the planned one in names or shapes.
    """
    if isinstance(batch, Mapping) and not isinstance(batch, dict):
        batch = dict(batch)  # a tokenizer's, which pytree takes for one leaf
    leaves, spec = pytree.tree_flatten(batch)
    names = [".".join(path) for path in leaf_paths(spec)]
    if not isinstance(batch, Mapping):
        names = _in_order(plan, leaves)
    if unknown := [name for name, leaf in zip(names, leaves, strict=True) if isinstance(leaf, Tensor) and name not in plan.inputs]:
        raise UsageError(f"no input called {', '.join(unknown)}", where=f"the plan's inputs: {', '.join(plan.inputs)}")
    coordinate = tuple(device_mesh.get_coordinate() or ())
    return pytree.tree_unflatten([_cut(plan, name, leaf, coordinate) for name, leaf in zip(names, leaves, strict=True)], spec)


def _in_order(plan: Plan, leaves: Sequence[Any]) -> list[str]:
    """The names of leaves without names: of tensors those of the plan's inputs in turn, of others none."""
    tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
    if len(tensors) != len(plan.inputs):
        others = ", ".join(dict.fromkeys(type(leaf).__name__ for leaf in leaves if not isinstance(leaf, Tensor)))
        beside = f", beside {others}" if others else ""
        raise UsageError(f"a batch of {len(tensors)} tensors{beside}; the plan has {len(plan.inputs)} inputs: {', '.join(plan.inputs)}")
    names = iter(plan.inputs)
    return [next(names) if isinstance(leaf, Tensor) else "" for leaf in leaves]


def _cut(plan: Plan, name: str, tensor: Any, coordinate: tuple[int, ...]) -> Any:
    if not isinstance(tensor, Tensor):
        if name in plan.inputs:
            raise UsageError(f"input {name} is of type {type(tensor).__name__}", next_step="give a torch.Tensor")
        return tensor
    line = plan.inputs[name]
    if tuple(tensor.shape) != line.shape:
        raise UsageError(
            f"input {name} has shape {list(tensor.shape)}; planned is {list(line.shape)}", next_step="plan again for another batch"
        )
    return local_part(tensor, line.place, plan.mesh, coordinate).contiguous()


def local_inputs(
    graph: Graph, sources: Mapping[int, Placements], mesh: Mesh, leaves: Mapping[str, Any], device: torch.device
) -> dict[int, Tensor]:
    """The local tensors of a call by value number; raises UsageError that names what was given and what is wanted."""
    wanted = {graph.values[value].address.removeprefix("inputs/"): value for value in graph.inputs}
    given = {name for name, leaf in leaves.items() if isinstance(leaf, Tensor)}
    if given != set(wanted):
        raise UsageError(f"called with tensors {', '.join(sorted(given)) or 'none'}; the plan is for {', '.join(sorted(wanted))}")
    return {value: _local(name, leaves[name], graph, value, sources[value], mesh, device) for name, value in wanted.items()}


def _local(name: str, tensor: Tensor, graph: Graph, value: int, state: Placements, mesh: Mesh, device: torch.device) -> Tensor:
    planned = graph.values[value]
    expected = local_shape(planned.shape, state, mesh)
    if tensor.is_meta:
        raise UsageError(f"input {name} is on meta: it has no values", next_step="give a tensor on the CPU or on this rank's device")
    if tensor.requires_grad and torch.is_grad_enabled() and mesh.size > 1:  # of one rank it is right
        raise UsageError(
            f"input {name} requires a gradient; a plan brings gradients to parameters alone",
            next_step="detach it, or plan one module that makes it as well",
        )
    if isinstance(tensor, DTensor):
        if tuple(tensor.placements) != to_torch(state) or tuple(tensor.shape) != planned.shape:
            raise UsageError(
                f"input {name}: a DTensor {list(tensor.shape)} placed {list(tensor.placements)}; planned is {list(planned.shape)} placed {format_placements(state)}"
            )
        tensor = tensor.to_local()
    if tuple(tensor.shape) != expected:
        step = "give each rank its own part (autoplan.shard_inputs cuts a global batch), or plan again for this shape"
        raise UsageError(
            f"input {name}: local shape {list(tensor.shape)}; wanted is {list(expected)}, which is {list(planned.shape)} placed {format_placements(state)}",
            next_step=step,
        )
    dtype = getattr(torch, planned.dtype)
    if tensor.dtype != dtype and not (tensor.is_floating_point() and dtype.is_floating_point):
        raise UsageError(f"input {name}: dtype {str(tensor.dtype).removeprefix('torch.')}; planned is {planned.dtype}")
    return tensor.to(device, dtype)
