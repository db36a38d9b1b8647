"""What really runs, seen below us on torch's own ops: floating point operations and functional collectives."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from math import prod
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from autoplan.assignment.redistributions import Counts

_KINDS = {
    "all_gather_into_tensor": "all-gather",
    "all_gather_into_tensor_coalesced": "all-gather",
    "reduce_scatter_tensor": "reduce-scatter",
    "reduce_scatter_tensor_coalesced": "reduce-scatter",
    "all_reduce": "all-reduce",
    "all_to_all_single": "all-to-all",
}
_NO_COLLECTIVES = {"wait_tensor", "_wrap_tensor_autograd"}


class Observer(TorchDispatchMode):
    """Within it, `flops` and the collectives of this thread are counted; `axes_of_group` gives the mesh axes of a group's name."""

    def __init__(self, axes_of_group: Mapping[str, tuple[int, ...]] | None = None) -> None:
        super().__init__()
        self.flops = 0
        self.collectives: Counts = Counter()
        self._axes_of_group = axes_of_group or {}

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None) -> Any:
        kwargs = kwargs or {}
        if func.namespace in ("_c10d_functional", "c10d", "c10d_functional"):
            self._count_collective(func, args)
        result = func(*args, **kwargs)
        packet = func._overloadpacket
        if packet in _CPU_ATTENTION:
            self.flops += _attention_flops(args, *_CPU_ATTENTION[packet])
        elif func.name().split("::")[-1].split(".")[0] in _GROUPED_MATMULS:
            self.flops += _grouped_flops(args)
        elif packet in flop_registry:
            self.flops += flop_registry[packet](*args, **kwargs, out_val=result)
        return result

    def _count_collective(self, func: Any, args: tuple[Any, ...]) -> None:
        name = func._opname.rstrip("_")
        if name in _NO_COLLECTIVES:
            return
        group = next((arg for arg in reversed(args) if isinstance(arg, str)), "")
        self.collectives[_KINDS.get(name, name), self._axes_of_group.get(group, ())] += 1


aten = torch.ops.aten
# The registry of torch 2.13 lacks attention on the CPU: where the queries and keys are among its arguments, and its matrix
# products relative to the forward's two (backward has five, as it computes the scores again).
_CPU_ATTENTION = {
    aten._scaled_dot_product_flash_attention_for_cpu: (0, 1, 1.0),
    aten._scaled_dot_product_flash_attention_for_cpu_backward: (1, 2, 2.5),
}


# Products of runs of rows with one matrix each: torch's own, ours and those of transformers, whose backward has two.
_GROUPED_MATMULS = frozenset({"_grouped_mm", "grouped_mm", "grouped_mm_fallback", "grouped_mm_backward", "grouped_mm_fallback_backward"})


def _grouped_flops(args: tuple[Any, ...]) -> int:
    """Flops of rows x[N, K] times w[E, K, M]; or of x[K, N] and w[N, M] over runs of N, the gradient of the matrices."""
    x, w = args[:2]
    products = 2 if len(args) > 3 and isinstance(args[3], torch.Tensor) else 1
    return 2 * products * prod(x.shape) * w.shape[-1]


def _attention_flops(args: tuple[Any, ...], queries: int, keys: int, share: float) -> int:
    """Flops of q k^T and of the weights with v: q[B, H, T, E], k, v[B, K, S, E]; that causal masks skip half is not counted."""
    return int(share * 2 * 2 * prod(args[queries].shape) * args[keys].shape[2])
