"""`autoplan::grouped_mm`: torch's grouped product in the dtypes that its own meta kernel refuses.

`aten::_grouped_mm` runs in fp32 on a CPU, but torch 2.13 can only capture it in bf16. A model that calls it could be planned and not
verified, which is done in fp32: so capture puts this op in its place.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor


@contextmanager
def grouped_products_in_all_dtypes() -> Iterator[None]:
    """Within it, `torch._grouped_mm`, which `F.grouped_mm` calls, is `autoplan::grouped_mm` where the operands are not bf16."""
    original = torch._grouped_mm

    def replaced(x: Tensor, w: Tensor, offs: Tensor | None = None, **options: Any) -> Tensor:
        plain = offs is not None and not any(option is not None for option in options.values())
        if plain and (x.ndim, w.ndim) == (2, 3) and x.dtype == w.dtype != torch.bfloat16:
            made: Tensor = torch.ops.autoplan.grouped_mm(x, w, offs)
            return made
        return original(x, w, offs=offs, **options)

    torch._grouped_mm = replaced  # type: ignore[assignment]  # its keywords are options here
    try:
        yield
    finally:
        torch._grouped_mm = original


def grouped_mm(x: Tensor, w: Tensor, ends: Tensor) -> Tensor:
    """Rows ends[e-1] to ends[e] of x[N, K] times w[e] of w[E, K, M]: [N, M]."""
    y = x.new_zeros(x.shape[0], w.shape[2])
    for expert, rows in _runs(ends):
        y[rows] = x[rows] @ w[expert]
    return y


def grouped_mm_backward(x: Tensor, w: Tensor, ends: Tensor, gradient: Tensor) -> tuple[Tensor, Tensor]:
    """The gradients of x and w."""
    of_x, of_w = torch.zeros_like(x), torch.zeros_like(w)
    for expert, rows in _runs(ends):
        of_x[rows] = gradient[rows] @ w[expert].T
        of_w[expert] = x[rows].T @ gradient[rows]
    return of_x, of_w


def _runs(ends: Tensor) -> Iterator[tuple[int, slice]]:
    start = 0
    for expert, end in enumerate(ends.tolist()):
        yield expert, slice(start, end)
        start = end


def _keep(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _differentiate(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None]:
    return *torch.ops.autoplan.grouped_mm_backward(*ctx.saved_tensors, gradient), None


_forward = torch.library.custom_op("autoplan::grouped_mm", grouped_mm, mutates_args=())
_forward.register_fake(lambda x, w, ends: x.new_empty(x.shape[0], w.shape[2]))
_forward.register_autograd(_differentiate, setup_context=_keep)
_backward = torch.library.custom_op("autoplan::grouped_mm_backward", grouped_mm_backward, mutates_args=())
_backward.register_fake(lambda x, w, ends, gradient: (torch.empty_like(x), torch.empty_like(w)))
