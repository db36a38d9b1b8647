"""Redistribution of local tensors: the steps of `redistribution.lower`, run forward and backward as planned."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from autoplan.collectives.base import Collectives, index_in_group
from autoplan.placement import Placements, Shard, forward_of, gradient_of
from autoplan.redistribution import Step, lower, transition


def run_steps(tensor: Tensor, steps: tuple[Step, ...], group: Collectives) -> Tensor:
    """`tensor` after `steps`, not differentiable."""
    for step in steps:
        tensor = _RUN[step.kind](tensor, step, group)
    return tensor


def redistribute(tensor: Tensor, produced: Placements, needed: Placements, group: Collectives) -> Tensor:
    """A local tensor in state `produced` as the local tensor in state `needed`; its gradient goes back the planned way."""
    if not tensor.requires_grad:
        return run_steps(tensor, lower(forward_of(produced), forward_of(needed), group.mesh), group)
    forward, backward = transition(produced, needed, group.mesh, needs_grad=True)
    if not forward and not backward:
        return tensor
    return _Redistribute.apply(tensor, None, forward, backward, group)


def redistribute_gradient(tensor: Tensor, shared: Tensor, produced: Placements, needed: Placements, group: Collectives) -> Tensor:
    """As `redistribute`, but the forward result is there already: `shared`, from another state with the same placements."""
    backward = lower(gradient_of(needed), gradient_of(produced), group.mesh)
    return _Redistribute.apply(tensor, shared.detach(), (), backward, group)


def redistribute_by(
    tensor: Tensor, forward: tuple[Step, ...], backward: tuple[Step, ...], group: Collectives, shared: Tensor | None = None
) -> Tensor:
    """As `redistribute`, by steps that are known; with `shared`, as `redistribute_gradient`."""
    if not tensor.requires_grad:
        return run_steps(tensor, forward, group) if shared is None else shared
    if shared is not None:
        return _Redistribute.apply(tensor, shared.detach(), (), backward, group)
    return _Redistribute.apply(tensor, None, forward, backward, group) if forward or backward else tensor


def own_output(tensor: Tensor) -> Tensor:
    """What an autograd function may return: under torch.compile a tensor object of its own.

    Torch 2.11 compiles every intermediate of the function to a further output, and autograd gives a tensor that leaves twice
    the edge of the second alone: the gradient is lost without a word. `contiguous`, `to` and `wait_tensor` return what they
    were given where there is nothing to do.
    """
    return tensor.view_as(tensor) if torch.compiler.is_compiling() else tensor


class _Redistribute(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, tensor: Tensor, shared: Tensor | None, forward: tuple[Step, ...], backward: tuple[Step, ...], group: Collectives
    ) -> Tensor:
        ctx.steps, ctx.group = backward, group
        if shared is not None:
            return shared.view_as(shared)
        result = run_steps(tensor, forward, group)
        return result.view_as(result) if result is tensor else own_output(result)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None, None]:
        return run_steps(gradient, ctx.steps, ctx.group), None, None, None, None


def _split(tensor: Tensor, dim: int, *sizes: int) -> Tensor:
    """`tensor` with `dim` seen as `sizes` (one may be -1)."""
    return tensor.unflatten(dim, sizes)


def _slice(tensor: Tensor, step: Step, group: Collectives) -> Tensor:
    assert isinstance(step.dst, Shard)
    n = group.mesh.group_size(step.axes)
    dim, groups = step.dst.dim, step.dst.groups
    index = index_in_group(group, step.axes)
    if groups == 1:
        size = tensor.shape[dim] // n
        return tensor.narrow(dim, index * size, size).contiguous()
    return _split(tensor, dim, groups, n, -1).select(dim + 1, index).flatten(dim, dim + 1)


def _keep(tensor: Tensor, step: Step, group: Collectives) -> Tensor:
    return tensor if index_in_group(group, step.axes) == 0 else torch.zeros_like(tensor)


def _pad(tensor: Tensor, step: Step, group: Collectives) -> Tensor:
    assert isinstance(step.src, Shard)
    n = group.mesh.group_size(step.axes)
    dim, groups = step.src.dim, step.src.groups
    parts = _split(tensor, dim, groups, -1)
    padded = parts.new_zeros(*parts.shape[: dim + 1], n, *parts.shape[dim + 1 :])
    padded.select(dim + 1, index_in_group(group, step.axes)).copy_(parts)
    return padded.flatten(dim, dim + 2)


def parts_for_ranks(tensor: Tensor, shard: Shard, n: int) -> Tensor:
    """[n, *local]: what each of n ranks has of `tensor` when it is cut by `shard`, contiguous. Only a view where dim 0 is cut in one run."""
    dim, groups = shard.dim, shard.groups
    words = _in_words(tensor, groups * n if dim == tensor.ndim - 1 else 1)
    parts = words.unflatten(dim, (groups, n, -1)).movedim(dim + 1, 0).flatten(dim + 1, dim + 2)
    return parts.contiguous().view(tensor.dtype)


def joined_parts(parts: Tensor, shard: Shard) -> Tensor:
    """The whole tensor, contiguous, of what each rank has of it, [n, *local]: the inverse of `parts_for_ranks`."""
    dim, groups = shard.dim, shard.groups
    words = _in_words(parts, groups if dim == parts.ndim - 2 else 1)
    whole = words.unflatten(dim + 1, (groups, -1)).movedim(0, dim + 1).flatten(dim, dim + 2)
    return whole.contiguous().view(parts.dtype)


_WORD, _WORD_BYTES = torch.int64, 8


def _in_words(tensor: Tensor, cuts: int) -> Tensor:
    """`tensor` in words of 8 bytes, if each run of its last dim, cut into `cuts` runs, has whole words; else as it is.

    What is to be copied run by run moves at 3.4e12 bytes per second in words and at 1.6e12 in bf16 (H200, 29 million numbers,
    benchmarks/runtime). Compiled code copies in its own way.
    """
    if torch.compiler.is_compiling() or not tensor.is_contiguous():
        return tensor
    run_bytes = tensor.shape[-1] // cuts * tensor.itemsize
    begin_bytes = tensor.storage_offset() * tensor.itemsize
    if run_bytes % _WORD_BYTES or begin_bytes % _WORD_BYTES:
        return tensor
    return tensor.view(_WORD)


def _all_gather(tensor: Tensor, step: Step, group: Collectives) -> Tensor:
    assert isinstance(step.src, Shard)
    gathered = group.all_gather(tensor.contiguous(), step.axes)
    return joined_parts(gathered.unflatten(0, (group.mesh.group_size(step.axes), -1)), step.src)


def _reduce_scatter(tensor: Tensor, step: Step, group: Collectives) -> Tensor:
    assert isinstance(step.dst, Shard)
    parts = parts_for_ranks(tensor, step.dst, group.mesh.group_size(step.axes))
    return group.reduce_scatter(parts.flatten(0, 1), step.axes)


def _all_reduce(tensor: Tensor, step: Step, group: Collectives) -> Tensor:
    return group.all_reduce(tensor.contiguous(), step.axes)


def _all_to_all(tensor: Tensor, step: Step, group: Collectives) -> Tensor:
    """Cut `dst.dim` into a part per rank, exchange, and put what arrives together along `src.dim`."""
    assert isinstance(step.src, Shard) and isinstance(step.dst, Shard)
    parts = parts_for_ranks(tensor, step.dst, group.mesh.group_size(step.axes))
    return joined_parts(group.all_to_all(parts, step.axes), step.src)


_RUN = {
    "slice": _slice,
    "keep": _keep,
    "pad": _pad,
    "all-gather": _all_gather,
    "reduce-scatter": _reduce_scatter,
    "all-reduce": _all_reduce,
    "all-to-all": _all_to_all,
}
