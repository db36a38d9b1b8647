"""Losses: cross-entropy over split batches and split classes, and elementwise losses with their reductions."""

from __future__ import annotations

from collections.abc import Iterator
from math import nan, prod
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from autoplan.collectives import Collectives
from autoplan.collectives.redistribute import own_output
from autoplan.placement import P, Placement, R, Shard
from autoplan.rules.execute import torch_op
from autoplan.rules.ops.dims import shards
from autoplan.rules.registry import LocalCall, local, rule
from autoplan.rules.row import Call, Row, TensorSpec

_NONE, _MEAN = 0, 1


@rule("aten.cross_entropy_loss")
def cross_entropy(call: Call) -> Iterator[Row]:
    """logits[N, C, ..], target[N, ..] (classes, or probabilities shaped as logits), weight[C] -> loss

    logits    target    weight    loss
    S(d,g)    S(e,g)    R      -> S(e,g)   any dim but C, reduction none
    S(d,g)    S(e,g)    R      -> P        reduction sum
    S(d,g)    S(e,g)    R      -> P        reduction mean: the local sum over the count of targets that are not ignored,
                                           which takes an all-reduce (local implementation)
    S(1)      R         R      -> R        classes, no logits gathered: all-reduces of the maximum, the sum of exponentials and
                                           the target's logit (local implementation); not with smoothing or probabilities

    e is d, or d - 1 behind C.
    """
    probabilities = "float" in call.operands[1].dtype
    yield from _split_samples(call, probabilities)
    if not probabilities and not call.arg(5, "label_smoothing", 0.0):
        rest: tuple[Placement, ...] = tuple(R for _ in call.operands[2:])
        yield Row((Shard(_class_dim(call.operands[0])), R, *rest), (R,), local="cross_entropy", inside=("all-reduce",) * 3)


@rule("aten.nll_loss", "aten.nll_loss_nd", "aten.nll_loss2d")
def nll_loss(call: Call) -> Iterator[Row]:
    """log-probabilities[N, C, ..], target[N, ..], weight[C] -> loss

    x         target    weight    loss
    S(d,g)    S(e,g)    R      -> S(e,g)   any dim but C, reduction none; e is d, or d - 1 behind C
    S(d,g)    S(e,g)    R      -> P        reduction sum; mean: as in cross_entropy (local implementation)
    P         R         R      -> P
    """
    yield from _split_samples(call, probabilities=False)
    yield Row((P, *(R for _ in call.operands[1:])), (P,))


def _class_dim(logits: TensorSpec | Tensor) -> int:
    return 1 if logits.ndim > 1 else 0


def _split_samples(call: Call, probabilities: bool) -> Iterator[Row]:
    """Rows of cross_entropy and nll_loss that cut any dim but the classes."""
    logits, target = call.operands[:2]
    reduction = call.arg(3, "reduction", _MEAN)
    classes = _class_dim(logits)
    rest: tuple[Placement, ...] = tuple(R for _ in call.operands[2:])
    for dim in range(logits.ndim):
        if dim == classes:
            continue
        there = dim if probabilities or dim < classes else dim - 1
        loss_dim = dim if dim < classes else dim - 1
        places = [(logits, dim), (target, there)] + ([(call.outputs[0], loss_dim)] if reduction == _NONE else [])
        for groups in shards(*places):
            cut = (Shard(dim, groups), Shard(there, groups), *rest)
            if reduction == _NONE:
                yield Row(cut, (Shard(loss_dim, groups),))
            elif reduction == _MEAN:
                yield Row(cut, (P,), local="cross_entropy", inside=() if probabilities else ("all-reduce",))
            else:
                yield Row(cut, (P,))


@local("cross_entropy")
def local_cross_entropy(call: LocalCall) -> Tensor:
    """This rank's term of the loss: the batch on some axes, the classes on others.

    Class axes give the whole loss with whole gradients, since their sums are taken inside; batch axes a partial sum.
    """
    logits, target, weight = call.arg(0, "self"), call.arg(1, "target"), call.arg(2, "weight")
    reduction, ignore, smoothing = call.arg(3, "reduction", _MEAN), call.arg(4, "ignore_index", -100), call.arg(5, "label_smoothing", 0.0)
    classes = _class_dim(logits)
    class_axes = call.axes(0, classes)
    batch_axes = [axis for dim in range(logits.ndim) if dim != classes for axis in call.axes(0, dim)]
    if class_axes:
        first = call.indices(0, classes)[0]
        losses = _SplitClasses.apply(logits, target, weight, first, classes, ignore, class_axes, call.group)
        if reduction == _NONE:
            return losses
        total = losses.sum()
    elif call.call.op.startswith("aten.nll_loss"):
        total = F.nll_loss(logits, target, weight, reduction="sum", ignore_index=ignore)
    else:
        total = F.cross_entropy(logits, target, weight, reduction="sum", ignore_index=ignore, label_smoothing=smoothing)
    if reduction != _MEAN:
        return total
    if target.is_floating_point():
        whole = call.call.operands[0]
        batch = prod(size for dim, size in enumerate(whole.shape) if dim != classes)
        return total / (batch if whole.shape[classes] else nan)  # torch takes elements / classes
    counted = target != ignore
    count = (counted if weight is None else weight[torch.where(counted, target, 0)] * counted).sum().to(total.dtype)
    for axis in sorted(batch_axes):
        count = call.group.all_reduce(count, (axis,))
    return total / count


class _SplitClasses(torch.autograd.Function):
    """The loss of each target from this rank's classes: log(sum exp) - logit of the target, summed over `axes`.

    The gradient, softmax - onehot, needs no collective. Sums are taken in fp32 at least.
    """

    @staticmethod
    def forward(
        ctx: Any,
        logits: Tensor,
        target: Tensor,
        weight: Tensor | None,
        first: int,
        dim: int,
        ignore: int,
        axes: tuple[int, ...],
        group: Collectives,
    ) -> Tensor:
        wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
        top = wide.amax(dim)
        for axis in axes:
            top = group.all_reduce(top.contiguous(), (axis,), op="max")
        total = (wide - top.unsqueeze(dim)).exp().sum(dim)
        for axis in axes:
            total = group.all_reduce(total.contiguous(), (axis,))
        counted = target != ignore
        inside = counted & (target >= first) & (target < first + logits.shape[dim])
        position = torch.where(inside, target - first, 0)
        chosen = torch.where(inside, wide.gather(dim, position.unsqueeze(dim)).squeeze(dim), 0)
        for axis in axes:
            chosen = group.all_reduce(chosen.contiguous(), (axis,))
        scale = counted.to(wide.dtype) if weight is None else weight.to(wide.dtype)[torch.where(counted, target, 0)] * counted
        ctx.save_for_backward(logits, top + total.log(), position, inside, scale)
        ctx.dim = dim
        return own_output(((top + total.log() - chosen) * scale).to(logits.dtype))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        logits, log_total, position, inside, scale = ctx.saved_tensors
        dim, gradient = ctx.dim, (gradients[0].to(scale.dtype) * scale).unsqueeze(ctx.dim)
        result = (logits.to(scale.dtype) - log_total.unsqueeze(dim)).exp() * gradient
        result.scatter_add_(dim, position.unsqueeze(dim), torch.where(inside.unsqueeze(dim), -gradient, 0))
        return result.to(logits.dtype), None, None, None, None, None, None, None


@rule(
    "aten.mse_loss",
    "aten.l1_loss",
    "aten.smooth_l1_loss",
    "aten.huber_loss",
    "aten.binary_cross_entropy",
    "aten.binary_cross_entropy_with_logits",
    "aten.kl_div",
    "aten.soft_margin_loss",
    "aten.hinge_embedding_loss",
    "aten.margin_ranking_loss",
    "aten.poisson_nll_loss",
)
def elementwise_loss(call: Call) -> Iterator[Row]:
    """x, target, weight.. of one shape -> loss

    x         target      loss
    S(d,g)    S(d,g)   -> S(d,g)    reduction none
    S(d,g)    S(d,g)   -> P         reduction sum; mean: the local sum over the global count (local implementation)
    """
    x = call.operands[0]
    if any(spec.shape != x.shape for spec in call.operands) or 0 in x.shape:
        return
    reduction, mean = _reduction(call), None
    if reduction == _MEAN:
        mean = "elementwise_loss"
    for dim in range(x.ndim):
        for groups in shards(*((spec, dim) for spec in call.operands)):
            out: Placement = Shard(dim, groups) if reduction == _NONE else P
            yield Row(tuple(Shard(dim, groups) for _ in call.operands), (out,), local=mean)


_REDUCTION_AT = {
    "binary_cross_entropy": 3, "binary_cross_entropy_with_logits": 4, "hinge_embedding_loss": 3, "margin_ranking_loss": 4, "poisson_nll_loss": 5,
    "cosine_embedding_loss": 4, "triplet_margin_loss": 7,
}  # fmt: skip


def _reduction(call: Call) -> int:
    return int(call.arg(_REDUCTION_AT.get(call.op.split(".")[1], 2), "reduction", _MEAN))


@rule("aten.cosine_embedding_loss", "aten.triplet_margin_loss")
def loss_of_vectors(call: Call) -> Iterator[Row]:
    """vectors a[N, C], b[N, C], .. (and target[N]) -> loss

    a         the others    loss
    S(0,g)    S(0,g)     -> S(0,g)    samples, reduction none
    S(0,g)    S(0,g)     -> P         reduction sum; mean: the local mean times the share of the samples (local implementation)
    """
    reduction, samples = _reduction(call), call.operands[0].shape[:1]
    if call.operands[0].ndim != 2 or any(spec.shape[:1] != samples for spec in call.operands):
        return
    for groups in shards(*((spec, 0) for spec in call.operands)):
        out: Placement = Shard(0, groups) if reduction == _NONE else P
        yield Row(tuple(Shard(0, groups) for _ in call.operands), (out,), local="elementwise_loss" if reduction == _MEAN else None)


@local("elementwise_loss")
def local_elementwise_loss(call: LocalCall) -> Tensor:
    """The local mean, weighted by the share of the elements that this rank holds."""
    x = call.args[0]
    share = x.numel() / torch.Size(call.call.operands[0].shape).numel()
    return torch_op(call.call.op)(*call.args, **call.kwargs) * share
