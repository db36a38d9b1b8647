"""Batch normalisation by the statistics of several ranks, differentiable."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from autoplan.collectives import Collectives
from autoplan.collectives.redistribute import own_output


def synchronised_batch_norm(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, axes: tuple[int, ...], group: Collectives
) -> tuple[Tensor, Tensor, Tensor]:
    """x[N, C, ..] normalised over all dims but C and over `axes`, whose ranks hold equally much; then mean[C] and biased variance[C].

    The gradient of x is exact; those of weight and bias are this rank's terms of the sum. Statistics are in fp32 at least.
    """
    return _Synchronised.apply(x, weight, bias, eps, axes, group)


class _Synchronised(torch.autograd.Function):
    """With u = (x - mean) / deviation over M elements: dx = weight / deviation * (dy - (sum dy + u * sum(dy * u)) / M).

    Mean and variance of the ranks are combined as they are, not as sums of squares, which would cancel (Chan, Golub, LeVeque:
    Algorithms for computing the sample variance, 1983).
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, axes: tuple[int, ...], group: Collectives
    ) -> tuple[Tensor, Tensor, Tensor]:
        wide = torch.promote_types(x.dtype, torch.float32)
        variance, mean = torch.var_mean(x.to(wide), _all_but_channels(x), correction=0)
        for axis in axes:
            means, variances = group.all_gather(torch.stack((mean, variance)).unsqueeze(0), (axis,)).unbind(1)
            mean = means.mean(0)
            variance = variances.mean(0) + (means - mean).square().mean(0)
        ctx.save_for_backward(x, weight, mean, variance)
        ctx.eps, ctx.axes, ctx.group = eps, axes, group
        ctx.mark_non_differentiable(mean, variance)
        y = F.batch_norm(x, mean, variance, _in(weight, wide), _in(bias, wide), eps=eps)
        return own_output(y), own_output(mean), own_output(variance)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, mean, variance = kept = ctx.saved_tensors  # once: what was gathered is gathered again each time
        dy, wide = gradients[0], mean.dtype
        dx, dweight, dbias = torch.ops.aten.native_batch_norm_backward(
            dy, x, _in(weight, wide), mean, variance, None, None, False, ctx.eps, [ctx.needs_input_grad[0], True, True]
        )  # as if the statistics were constants
        if ctx.needs_input_grad[0]:
            dx = dx - _through_statistics(ctx, kept, torch.stack((dbias, dweight))).to(dx.dtype)
        wanted = (dx, _like(dweight, weight), dbias if weight is None else _like(dbias, weight))
        return (*(g if needed else None for g, needed in zip(wanted, ctx.needs_input_grad, strict=False)), None, None, None)


def _through_statistics(ctx: Any, kept: tuple[Tensor, ...], sums: Tensor) -> Tensor:
    """What mean and variance pass back to x; `sums` are this rank's sums of dy and of dy * u over all but the channels."""
    x, weight, mean, variance = kept
    count = x.numel() // mean.numel()
    for axis in ctx.axes:
        sums = ctx.group.all_reduce(sums, (axis,))
        count *= ctx.group.mesh.shape[axis]
    scale = (variance + ctx.eps).rsqrt()
    factor = scale / count if weight is None else scale * weight / count
    shape = (1, -1, *(1 for _ in x.shape[2:]))
    by_mean, by_variance = (factor * sums[0]).view(shape), (factor * scale * sums[1]).view(shape)
    return (x - mean.view(shape)) * by_variance + by_mean


def _all_but_channels(x: Tensor) -> list[int]:
    return [0, *range(2, x.ndim)]


def _in(tensor: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    return None if tensor is None else tensor.to(dtype)


def _like(gradient: Tensor, operand: Tensor | None) -> Tensor | None:
    return None if operand is None else gradient.to(operand.dtype)
