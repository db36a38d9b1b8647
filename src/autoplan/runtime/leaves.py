"""Stored parameters as the local tensors that the program reads, and their gradients stored as DTensors again.

`DTensor.to_local` does this for one parameter at a time, and the DTensor that it brings back passes AccumulateGrad, which sends it
through DTensor's dispatch: most of what a parameter costs the host in a step. Here the parameters of a block enter together, and
backward itself keeps their gradients, as FSDP2 does, as soon as those of the block are there: where gradients of several batches
add up, one block's are held twice and not the whole model's.
"""

from __future__ import annotations

from bisect import bisect
from collections.abc import Hashable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from autoplan.graph.ir import Graph, Parameter
from autoplan.graph.segments import Segment
from autoplan.runtime.held import Held

_AT_ONCE = 2**64 - 1  # the sequence number of AccumulateGrad: what is ready runs before all else


class Leaves:
    """The parameters that a program reads, in the groups in which they enter it."""

    def __init__(self, graph: Graph, segments: Sequence[Segment]) -> None:
        self.groups = leaf_groups(graph, segments)
        self.taken = Taken()

    def local(self, parameters: Held) -> dict[int, Tensor]:
        """The local tensors by value number, through which gradients reach `parameters` where autograd records."""
        records = torch.is_grad_enabled()
        found: dict[int, Tensor] = {}
        for group in self.groups:
            trained: dict[int, DTensor] = {}
            for parameter in group:
                stored = parameters[parameter.fqn]
                if not isinstance(stored, DTensor):
                    found[parameter.value] = stored
                elif records and stored.requires_grad:
                    trained[parameter.value] = stored
                else:
                    found[parameter.value] = stored._local_tensor
            if trained:
                found.update(zip(trained, _Leaves.apply(self.taken, *trained.values()), strict=True))
        return found


def leaf_groups(graph: Graph, segments: Sequence[Segment]) -> tuple[tuple[Parameter, ...], ...]:
    """Parameters whose gradients are there at about the same time: that one segment alone reads, or else the very same nodes."""
    segment_of = {node: segment.name for segment in segments for node in segment.nodes}
    leaving = {*graph.outputs, *graph.mutations.values()}
    groups: dict[Hashable, list[Parameter]] = {}
    for parameter in graph.parameters:
        nodes = tuple(node.id for node, _ in graph.consumers[parameter.value])
        readers = {segment_of.get(node) for node in nodes}
        if parameter.value in leaving:
            groups[parameter.fqn] = [parameter]
        elif nodes:
            block = readers.pop() if len(readers) == 1 else None
            groups.setdefault(block or nodes, []).append(parameter)
    return tuple(map(tuple, groups.values()))


class Taken:
    """The memory that gradients brought along in the present backward and now keep: sorted pairs of first address and end.

    One tensor may be the gradient of several parameters (of both terms of a sum), and until backward ends it may be on its way
    to others. Gradients that travelled in one bucket share a storage but no element, and must not be copied: addresses tell the
    two apart, which counts of references would not.

    `borrowed` says that all gradients lie in memory that a CUDA graph writes to again: none of them may be kept.
    """

    def __init__(self) -> None:
        self.borrowed = False
        self._backward = -1
        self._ranges: list[tuple[int, int]] = []

    def begin(self) -> None:
        """Forget what earlier backwards took: nothing else of theirs is left."""
        backward = torch._C._current_graph_task_id()
        if backward != self._backward:
            self._backward, self._ranges = backward, []

    def own(self, gradient: Tensor, local: Tensor) -> Tensor:
        """`gradient`, laid out as `local`, in memory that it shares with no other parameter's: a copy only if it has to be."""
        if gradient.stride() != local.stride():  # expanded or transposed: AccumulateGrad copies these as well
            return _copy(gradient, local)
        taken = self._ranges
        here = start, stop = _range(gradient)
        place = bisect(taken, here)
        if (place < len(taken) and taken[place][0] < stop) or (place and start < taken[place - 1][1]):
            return _copy(gradient, local)
        taken.insert(place, here)
        return gradient

    def __contains__(self, tensor: Tensor) -> bool:
        """Whether a gradient brought the memory of `tensor` in the present backward: others may still have to read it."""
        return _range(tensor) in self._ranges


def _copy(gradient: Tensor, local: Tensor) -> Tensor:
    return torch.empty_like(local).copy_(gradient)


def _copies(gradients: Sequence[Tensor | None]) -> tuple[Tensor | None, ...]:
    """Each in memory of its own, by one call for all."""
    copied = iter(torch._foreach_mul([gradient for gradient in gradients if gradient is not None], 1))
    return tuple(None if gradient is None else next(copied) for gradient in gradients)


def _range(tensor: Tensor) -> tuple[int, int]:
    start = tensor.data_ptr()
    return start, start + tensor.nbytes


class _Leaves(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, taken: Taken, *parameters: DTensor) -> tuple[Tensor, ...]:
        ctx.taken, ctx.parameters = taken, parameters
        ctx.set_materialize_grads(False)
        ctx._set_sequence_nr(_AT_ONCE)
        return tuple(parameter._local_tensor.view_as(parameter._local_tensor) for parameter in parameters)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        taken: Taken = ctx.taken
        taken.begin()
        if taken.borrowed:
            gradients = _copies(gradients)
        returned: list[Tensor | None] = []
        sums: list[Tensor] = []
        terms: list[Tensor] = []
        for parameter, gradient, (node, _) in zip(ctx.parameters, gradients, ctx.next_functions, strict=True):
            left = None
            if gradient is not None:
                if torch.is_grad_enabled():
                    left = _as_dtensor(gradient.contiguous(), parameter)
                elif parameter._post_accumulate_grad_hooks:  # these may write to it at once, whoever else still has to read it
                    left = _as_dtensor(_copy(gradient, parameter._local_tensor), parameter)
                elif not _only_accumulates(parameter, gradient, node):
                    left = _as_dtensor(taken.own(gradient, parameter._local_tensor), parameter)
                elif parameter.grad is None:
                    _keep(parameter, taken.own(gradient, parameter._local_tensor))
                elif parameter.grad._local_tensor in taken:
                    _keep(parameter, parameter.grad._local_tensor + gradient)
                else:
                    sums.append(parameter.grad._local_tensor)
                    terms.append(gradient)
            returned.append(left)
        if sums:
            torch._foreach_add_(sums, terms)
        return None, *returned


def _only_accumulates(parameter: DTensor, gradient: Tensor, node: Any) -> bool:
    """Whether all that autograd would do with a gradient is to keep it in `parameter.grad`; `node` is its AccumulateGrad.

    It also runs hooks, returns what `autograd.grad` asks for, leaves out what `backward(inputs=...)` does, and adds to
    gradients that others made.
    """
    if parameter._backward_hooks or not parameter.requires_grad:
        return False
    if getattr(parameter, "grad_dtype", gradient.dtype) != gradient.dtype:
        return False
    kept = parameter.grad
    if kept is not None and (kept.requires_grad or not isinstance(kept, DTensor) or kept.placements != parameter.placements):
        return False
    try:
        return torch._C._will_engine_execute_node(node)
    except RuntimeError:  # torch's answer for leaves while autograd.grad runs
        return False


def _keep(parameter: DTensor, local: Tensor) -> None:
    # `__new__` alone: `__init__` does nothing but enter and leave torch.compile's contexts, for most of what both take
    parameter.grad = DTensor.__new__(DTensor, local, parameter._spec, requires_grad=False)


def _as_dtensor(local: Tensor, parameter: DTensor) -> Tensor:
    """As `to_local` brings a gradient back, differentiable."""
    spec = parameter._spec
    return DTensor.from_local(local, spec.mesh, spec.placements, run_check=False, shape=spec.shape, stride=spec.stride)
