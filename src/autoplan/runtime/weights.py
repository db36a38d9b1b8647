"""Weights of a parallel module that was built on meta: drawn where they lie, a shard at a time."""

from __future__ import annotations

import hashlib

import torch
from torch import nn
from torch.distributed.tensor import DTensor, Shard

INIT_STD = 0.02  # as GPT-2 and Llama start


def initialize(module: nn.Module, seed: int) -> None:
    """Normal matrices of std 0.02, vectors one (weights, as norms have) or zero (biases).

    Every parameter's numbers follow from `seed`, its FQN and where the shard lies, so replicas agree and a run repeats.
    """
    for fqn, parameter in module.named_parameters():
        with torch.no_grad():
            local = parameter.to_local() if isinstance(parameter, DTensor) else parameter
            if parameter.dim() < 2:
                local.fill_(0.0 if fqn.endswith("bias") else 1.0)
            else:
                text = f"{seed} {fqn} {_shard_coordinate(parameter)}"
                number = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1
                local.normal_(0.0, INIT_STD, generator=torch.Generator(local.device).manual_seed(number))


def _shard_coordinate(parameter: nn.Parameter) -> tuple[int, ...]:
    """This rank's index on the axes that cut the parameter, 0 on others."""
    if not isinstance(parameter, DTensor):
        return ()
    coordinate = parameter.device_mesh.get_coordinate() or ()
    return tuple(
        index if isinstance(placement, Shard) or placement.is_shard() else 0
        for index, placement in zip(coordinate, parameter.placements, strict=True)
    )
