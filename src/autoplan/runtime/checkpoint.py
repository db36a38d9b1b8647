"""Checkpoints by torch.distributed.checkpoint: under the module's own FQNs, readable on any mesh."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
import torch.utils._pytree as pytree
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.tensor import DTensor, Replicate
from torch.distributed.tensor.placement_types import _StridedShard
from torch.optim import Optimizer

from autoplan.errors import PlanError


def save(folder: str, module: nn.Module, optimizer: Optimizer | None, step: int) -> None:
    """Write parameters, buffers, optimizer states and the number of steps done."""
    dcp.save(_writable(_state(module, optimizer, step)), checkpoint_id=folder)


def resume(folder: str, module: nn.Module, optimizer: Optimizer | None) -> int:
    """Read what `save` wrote, on whichever mesh; how many steps were done, 0 where nothing was saved yet."""
    if not (Path(folder) / ".metadata").exists():
        return 0
    state = _state(module, optimizer, 0)
    loaded = _writable(state)
    try:
        dcp.load(loaded, checkpoint_id=folder)
    except (dcp.api.CheckpointException, RuntimeError, KeyError) as error:
        said = str(error).strip().splitlines()
        raise PlanError(
            f"the checkpoint is not this model's: {said[-1] if said else error!r}", where=folder, next_step="give another --checkpoint"
        ) from error
    state = _mapped(lambda own, read: _as_before(own, read), state, loaded)
    set_state_dict(module, _optimizers(optimizer), model_state_dict=state["model"], optim_state_dict=state["optimizer"])
    return int(loaded["step"])


def _state(module: nn.Module, optimizer: Optimizer | None, step: int) -> dict[str, Any]:
    model, states = get_state_dict(module, _optimizers(optimizer))
    return {"model": model, "optimizer": states, "step": torch.tensor(step)}


def _optimizers(optimizer: Optimizer | None) -> list[Optimizer]:
    return [] if optimizer is None else [optimizer]


def _writable(state: dict[str, Any]) -> dict[str, Any]:
    """Grouped shards are no contiguous parts, which a checkpoint is made of: they are written whole."""
    return pytree.tree_map_only(
        DTensor, lambda tensor: tensor.redistribute(placements=_ungrouped(tensor)) if _is_grouped(tensor) else tensor, state
    )


def _is_grouped(tensor: DTensor) -> bool:
    return any(isinstance(placement, _StridedShard) for placement in tensor.placements)


def _ungrouped(tensor: DTensor) -> list[Any]:
    return [Replicate() if isinstance(placement, _StridedShard) else placement for placement in tensor.placements]


def _mapped(function: Callable[[Any, Any], Any], first: Any, second: Any) -> Any:
    leaves, spec = pytree.tree_flatten(first)
    return pytree.tree_unflatten([function(a, b) for a, b in zip(leaves, pytree.tree_leaves(second), strict=True)], spec)


def _as_before(own: Any, read: Any) -> Any:
    """What was read, in the placements that it has here."""
    if not isinstance(own, DTensor) or not _is_grouped(own):
        return read
    local: Tensor = read.to_local()
    for placement, size, index in zip(own.placements, own.device_mesh.shape, own.device_mesh.get_coordinate() or (), strict=True):
        if isinstance(placement, _StridedShard):
            parts = local.unflatten(placement.dim, (placement.split_factor, size, -1)).select(placement.dim + 1, index)
            local = parts.flatten(placement.dim, placement.dim + 1)
    return DTensor.from_local(local.contiguous(), own.device_mesh, own.placements, run_check=False, shape=own.shape, stride=own.stride())
