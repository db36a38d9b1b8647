"""The precision of a plan: the module as capture should see it, cast without allocating anything."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any, TypeVar

import torch
import torch.utils._pytree as pytree
from torch import Tensor, nn

M = TypeVar("M", bound=nn.Module)
COMPUTE_DTYPE = {"fp32": torch.float32, "bf16": torch.bfloat16, "bf16-master": torch.bfloat16}
"""By `options.precision`."""


def cast_module(
    module: M, args: tuple[Any, ...], kwargs: Mapping[str, Any], dtype: torch.dtype
) -> tuple[M, tuple[Any, ...], dict[str, Any]]:
    """A twin of `module` whose floating parameters are `dtype` and on meta, and the inputs with floats in `dtype`.

    For capture only: the twin shares buffers and other tensors with `module`, which is not touched. Buffers keep their
    dtype (rotary frequencies in bf16 give other positions), so both `bf16` and `bf16-master` cast the parameters alone;
    in `bf16-master` these are the compute copies of the fp32 masters that the runtime stores.
    """
    memo: dict[int, Any] = {id(tensor): tensor for m in module.modules() for tensor in vars(m).values() if isinstance(tensor, Tensor)}
    memo.update({id(buffer): buffer for buffer in module.buffers()})
    for parameter in module.parameters():
        memo[id(parameter)] = nn.Parameter(_on_meta(parameter, dtype), requires_grad=parameter.requires_grad)
    twin = copy.deepcopy(module, memo)
    args, cast_kwargs = pytree.tree_map_only(
        Tensor, lambda tensor: tensor.to(dtype) if tensor.is_floating_point() else tensor, (args, dict(kwargs))
    )
    return twin, args, cast_kwargs


def _on_meta(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    dtype = dtype if tensor.is_floating_point() else tensor.dtype
    return torch.empty_strided(tensor.size(), tensor.stride(), dtype=dtype, device="meta")
