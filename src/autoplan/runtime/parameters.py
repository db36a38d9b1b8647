"""Stored parameters become used ones: the gather groups of an assignment, run on local tensors.

One call gathers a whole group, one autograd node brings its gradients back: each bucket (see `assignment.gathers`) is one
collective of one flat buffer. Where the stored dtype is not the one that is used (fp32 masters of a bf16 model), parameters
are cast before they travel, and gradients are cast back before they are reduced.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from autoplan.assignment.gathers import BUCKETED, Bucket, GatherGroup, GatherMember, buckets
from autoplan.collectives import Collectives, run_steps
from autoplan.collectives.redistribute import own_output
from autoplan.placement import Shard, forward_of
from autoplan.runtime.regather import GatheredAgain
from autoplan.runtime.run import Run

Tensors = dict[int, Tensor]
"""Local tensors by member of the group."""


class Gather(nn.Module):
    """A gather group as a part of the local program: stored parameters in, used ones out.

    Parameters come once each, in the order of `values`, however many states they are used in. Used ones leave in the order
    of the group's members.
    """

    def __init__(self, group: GatherGroup) -> None:
        super().__init__()
        self.plan = group
        self.values = tuple(dict.fromkeys(member.value for member in group.members))
        self.source = tuple(self.values.index(member.value) for member in group.members)  # of each member, among `values`
        self.result = tuple(_shown_first(group.members, member) for member in group.members)  # the member that is gathered for it
        self.dtypes = tuple(getattr(torch, member.dtype) for member in group.members)

    def forward(self, run: Run, *stored: Tensor) -> tuple[Tensor, ...]:
        """`stored[k]` is the local part of the parameter `values[k]`."""
        used = _Gather.apply(self, run.group, *stored)
        if run.regathering is not None and self.plan.again:
            kept = [tensor.detach() for tensor in stored]
            gathered = GatheredAgain(lambda: self.gather(kept, self.plan.again, run.group))
            for index in {index for bucket in self.plan.again for index in bucket.members}:
                run.regathering.track(used[index], gathered, index)
        return used

    def gather(self, stored: Sequence[Tensor], rounds: Sequence[Bucket], group: Collectives) -> Tensors:
        """The members that `rounds` bring to their use, and those that are used as they are stored."""
        first = [index for index, member in enumerate(self.plan.members) if member.is_first]
        return run_buckets({index: stored[self.source[index]].to(self.dtypes[index]) for index in first}, rounds, group)

    def reduce(self, gradients: Tensors, group: Collectives) -> Tensors:
        """The gradients of used members, as gradients of stored parameters by their place in `values`."""
        members = self.plan.members
        steps = [member.backward if index in gradients else () for index, member in enumerate(members)]
        rounds = self.plan.backward if len(gradients) == len(members) else buckets(members, steps)
        total: Tensors = {}
        for index, gradient in run_buckets(gradients, rounds, group).items():
            place = self.source[index]
            total[place] = total[place] + gradient if place in total else gradient
        return total


def _shown_first(members: Sequence[GatherMember], member: GatherMember) -> int:
    """The member whose forward result `member` uses."""
    same = (
        k
        for k, other in enumerate(members)
        if other.is_first and other.value == member.value and forward_of(other.state) == forward_of(member.state)
    )
    return next(same)


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gather: Gather, group: Collectives, *stored: Tensor) -> tuple[Tensor, ...]:
        ctx.gather, ctx.group, ctx.stored_dtypes = gather, group, [tensor.dtype for tensor in stored]
        ctx.set_materialize_grads(False)
        full = gather.gather(stored, gather.plan.forward, group)
        used = []
        for index, result in enumerate(gather.result):
            tensor = full[result]
            is_own = index == result and not any(tensor is given for given in stored)
            used.append(own_output(tensor) if is_own else tensor.view_as(tensor))
        trained = ctx.needs_input_grad[2:]
        ctx.mark_non_differentiable(*(tensor for tensor, place in zip(used, gather.source, strict=True) if not trained[place]))
        return tuple(used)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        trained, source = ctx.needs_input_grad[2:], ctx.gather.source
        present = {
            index: gradient.to(ctx.stored_dtypes[source[index]])
            for index, gradient in enumerate(gradients)
            if gradient is not None and trained[source[index]]
        }
        reduced = ctx.gather.reduce(present, ctx.group)
        return None, None, *(reduced.get(place) for place in range(len(trained)))


def run_buckets(tensors: Tensors, rounds: Sequence[Bucket], group: Collectives) -> Tensors:
    """`tensors` after the rounds; every collective of a bucket is one call."""
    current = dict(tensors)
    for bucket in rounds:
        chosen = [current[index] for index in bucket.members]
        if len(chosen) == 1 or bucket.kind not in BUCKETED:
            after = [run_steps(tensor, (step,), group) for tensor, step in zip(chosen, bucket.steps, strict=True)]
        else:
            after = _RUN[bucket.kind](chosen, bucket, group)
        current.update(zip(bucket.members, after, strict=True))
    return current


def _all_gather(tensors: list[Tensor], bucket: Bucket, group: Collectives) -> list[Tensor]:
    """[m] flat on each rank -> [n, m], a column range for every member."""
    n = group.mesh.group_size(bucket.axes)
    fronts = [tensor.movedim(_shard(step.src).dim, 0) for tensor, step in zip(tensors, bucket.steps, strict=True)]
    gathered = group.all_gather(torch.cat([front.reshape(-1) for front in fronts]), bucket.axes).view(n, -1)
    columns = gathered.split([front.numel() for front in fronts], 1)
    return [_join(column, front.shape, _shard(step.src), n) for column, front, step in zip(columns, fronts, bucket.steps, strict=True)]


def _join(column: Tensor, front: torch.Size, shard: Shard, n: int) -> Tensor:
    """[n, m]: the parts of n ranks, `shard.dim` in front -> the whole tensor, contiguous in a storage of its own."""
    parts = column.unflatten(1, (shard.groups, front[0] // shard.groups, *front[1:]))  # [n, groups, k, ...]
    return parts.transpose(0, 1).clone(memory_format=torch.contiguous_format).flatten(0, 2).movedim(0, shard.dim).contiguous()


def _reduce_scatter(tensors: list[Tensor], bucket: Bucket, group: Collectives) -> list[Tensor]:
    """[n, m], a row for every rank and a column range for every member -> [m], summed."""
    n = group.mesh.group_size(bucket.axes)
    rows, fronts = [], []
    for tensor, step in zip(tensors, bucket.steps, strict=True):
        shard = _shard(step.dst)
        front = tensor.movedim(shard.dim, 0)
        parts = front.unflatten(0, (shard.groups, n, -1)).transpose(0, 1)  # [n, groups, k, ...]
        rows.append(parts.reshape(n, -1))
        fronts.append((front.shape[0] // n, *front.shape[1:]))
    flat = group.reduce_scatter(torch.cat(rows, 1).view(-1), bucket.axes)
    pieces = flat.split([row.shape[1] for row in rows])
    return [
        piece.view(front).movedim(0, _shard(step.dst).dim).contiguous()
        for piece, front, step in zip(pieces, fronts, bucket.steps, strict=True)
    ]


def _all_reduce(tensors: list[Tensor], bucket: Bucket, group: Collectives) -> list[Tensor]:
    flat = group.all_reduce(torch.cat([tensor.reshape(-1) for tensor in tensors]), bucket.axes)
    pieces = flat.split([tensor.numel() for tensor in tensors])
    return [piece.view(tensor.shape) for piece, tensor in zip(pieces, tensors, strict=True)]


def _shard(placement: object) -> Shard:
    assert isinstance(placement, Shard), placement
    return placement


_RUN = {"all-gather": _all_gather, "reduce-scatter": _reduce_scatter, "all-reduce": _all_reduce}

__all__ = ["Gather", "run_buckets"]
