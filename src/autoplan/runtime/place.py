"""A module's parameters and buffers where a plan wants them, and what its user may not expect of that."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from functools import cache
from typing import Any
from weakref import WeakSet

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_pre_hook
from torch.utils.weak import WeakIdKeyDictionary

from autoplan.assignment import Assignment
from autoplan.errors import PlanError, UsageError
from autoplan.placement import local_shape
from autoplan.runtime.inputs import as_dtensor
from autoplan.runtime.shards import local_part

_REPLACED: WeakIdKeyDictionary = WeakIdKeyDictionary()  # parameters that others stand in for, with their FQNs


def place_parameters(module: nn.Module, assignment: Assignment, device_mesh: DeviceMesh, device: torch.device, dtype: torch.dtype) -> None:
    """Replace every parameter by a DTensor parameter in its stored placement, ties kept. Optimizers of those before fail when they step."""
    _refuse_optimizers_of_replaced()
    placed: dict[int, nn.Parameter] = {}
    coordinate = assignment.mesh.coordinate(dist.get_rank())
    state_of = {p.fqn: assignment.sources[p.value] for p in assignment.graph.parameters}
    for fqn, parameter in list(module.named_parameters()):
        state = state_of[fqn]
        own = dtype if parameter.is_floating_point() else parameter.dtype
        if parameter.is_meta:
            local = torch.empty(local_shape(parameter.shape, state, assignment.mesh), dtype=own, device=device)
        else:
            local = local_part(parameter.detach(), state, assignment.mesh, coordinate).to(device, own, copy=True).contiguous()
        tensor = as_dtensor(local, parameter.shape, state, device_mesh)
        placed[id(parameter)] = nn.Parameter(tensor, requires_grad=parameter.requires_grad)
        _REPLACED[parameter] = fqn
    for owner in module.modules():
        owner._parameters.update({name: placed[id(p)] for name, p in owner._parameters.items() if p is not None})


def place_buffers(module: nn.Module, device: torch.device) -> None:
    """Bring real buffers to the device, whole; raises PlanError that names those on meta, whose values are lost."""
    if lost := [fqn for fqn, buffer in module.named_buffers() if buffer.is_meta]:
        raise PlanError(
            f"buffers without values: {', '.join(lost)} are on meta",
            next_step="build the module with real buffers (autoplan.load.build_skeleton)",
        )
    placed: dict[int, Tensor] = {}
    for owner in module.modules():
        for name, buffer in owner._buffers.items():
            if buffer is not None:
                owner._buffers[name] = placed.setdefault(id(buffer), buffer.to(device))


def notes_on(module: nn.Module, *, trains: bool) -> Iterator[str]:
    """What of a module the user may wait for in vain: hooks of its parts, gradients in eval mode."""
    hooked = [
        name
        for name, part in module.named_modules()
        if name and (part._forward_hooks or part._forward_pre_hooks or part._backward_hooks or part._backward_pre_hooks)
    ]
    if hooked:
        others = f" and {len(hooked) - 1} more" if len(hooked) > 1 else ""
        yield f"note: hooks of {hooked[0]}{others} do not run: the plan runs the ops of parts, and calls the whole module alone"
    if trains and not module.training:
        yield "note: the module is in eval mode, as transformers' from_pretrained leaves it: no gradients until train() is called"


def leave_norms_unremarked() -> None:
    """Take from the log of every rank that DTensor sums a norm axis by axis, which says nothing about the plan."""
    logging.getLogger("torch.distributed.tensor._redistribute").addFilter(_is_no_remark_on_sums)


def _is_no_remark_on_sums(record: logging.LogRecord) -> bool:
    return not str(record.msg).startswith("While redistributing from")


@cache
def _refuse_optimizers_of_replaced() -> None:
    """Have every optimizer of parameters that were replaced fail at its first step: it would train what nobody reads."""
    seen: WeakSet[Optimizer] = WeakSet()

    def check(optimizer: Optimizer, _args: Any, _kwargs: Any) -> None:
        if optimizer in seen:
            return
        held = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        if stale := [_REPLACED[parameter] for parameter in held if parameter in _REPLACED]:
            others = f" and {len(stale) - 1} more" if len(stale) > 1 else ""
            raise UsageError(
                f"{type(optimizer).__name__} trains {stale[0]}{others} as they were before parallelize, which put DTensors in their place",
                next_step="make the optimizer after parallelize, of the parameters that the module has then",
            )
        seen.add(optimizer)

    register_optimizer_step_pre_hook(check)
