"""Stored parameters become used ones: the gather groups of an assignment, run on local tensors.

One call gathers a whole group, one autograd node brings its gradients back: each bucket (see `assignment.gathers`) is one collective.
Where the stored dtype is not the one that is used (fp32 masters of a bf16 model), parameters are cast before they travel, and
gradients are cast back before they are reduced.

A group that the plan gathers ahead (`prefetch`) is under way while others compute: `Ahead` issues its gather some pieces before its
first reader, backward that of the groups before, and its gradients are reduced while backward goes on: `Late`, whose autograd
node is as old as the forward and therefore the last to run, waits for them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from autoplan.assignment.gathers import Bucket, GatherGroup, GatherMember, buckets
from autoplan.collectives import Collectives
from autoplan.collectives.redistribute import own_output
from autoplan.placement import forward_of
from autoplan.runtime.program.regather import GatheredAgain
from autoplan.runtime.program.rounds import Rounds, Tensors
from autoplan.runtime.program.run import Run


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
        used = _Gather.apply(self, run, *stored)
        if run.regathering is not None and self.plan.again:
            kept, group = [tensor.detach() for tensor in stored], run.group
            gathered = GatheredAgain(lambda: self.start(kept, self.plan.again, group), self.plan.prefetch)  # `run` holds it: no cycle
            for index in sorted({index for bucket in self.plan.again for index in bucket.members}):
                run.regathering.track(used[index], gathered, index)
        return used

    def start(self, stored: Sequence[Tensor], rounds: Sequence[Bucket], group: Collectives) -> Rounds:
        """Under way: the members that `rounds` bring to their use, and those that are used as they are stored."""
        first = [index for index, member in enumerate(self.plan.members) if member.is_first]
        return Rounds({index: stored[self.source[index]].to(self.dtypes[index]) for index in first}, rounds, group)

    def start_reduction(self, gradients: Tensors, group: Collectives) -> Rounds:
        """Under way: the gradients of used members, as they are of stored parameters."""
        members = self.plan.members
        steps = [member.backward if index in gradients else () for index, member in enumerate(members)]
        return Rounds(gradients, self.plan.backward if len(gradients) == len(members) else buckets(members, steps), group)

    def total(self, reduced: Tensors) -> Tensors:
        """Reduced gradients of members, added up for each of `values`."""
        total: Tensors = {}
        for index, gradient in reduced.items():
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


class Ahead(nn.Module):
    """Issues what `gather` will wait for."""

    def __init__(self, gather: Gather) -> None:
        super().__init__()
        self.gather = gather

    @torch.no_grad()
    def forward(self, run: Run, *stored: Tensor) -> None:
        run.ahead[self.gather.plan.name] = self.gather.start(stored, self.gather.plan.forward, run.group)


class Late(nn.Module):
    """Stored parameters as they are; their gradients are waited for when nothing else is left to do."""

    def __init__(self, gather: Gather) -> None:
        super().__init__()
        self.gather = gather

    def forward(self, run: Run, *stored: Tensor) -> tuple[Tensor, ...]:
        if not torch.is_grad_enabled() or not any(tensor.requires_grad for tensor in stored):
            return stored
        return _Late.apply(self.gather, run, *stored)


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gather: Gather, run: Run, *stored: Tensor) -> tuple[Tensor, ...]:
        ctx.gather, ctx.run = gather, run
        ctx.stored_dtypes, ctx.shapes = [tensor.dtype for tensor in stored], [tensor.shape for tensor in stored]
        ctx.set_materialize_grads(False)
        started = run.ahead.pop(gather.plan.name, None)
        full = (started or gather.start(stored, gather.plan.forward, run.group)).finish()
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
        gather, run = ctx.gather, ctx.run
        trained, source = ctx.needs_input_grad[2:], gather.source
        present = {
            index: gradient.to(ctx.stored_dtypes[source[index]])
            for index, gradient in enumerate(gradients)
            if gradient is not None and trained[source[index]]
        }
        reduction = gather.start_reduction(present, run.group)
        if not gather.plan.prefetch:
            reduced = gather.total(reduction.finish())
            return None, None, *(reduced.get(place) for place in range(len(trained)))
        run.reductions.add(gather.plan.name, reduction)
        places = {source[index]: gradient for index, gradient in present.items()}
        return None, None, *(_awaited(places[k], ctx.shapes[k]) if k in places else None for k in range(len(trained)))


def _awaited(gradient: Tensor, shape: torch.Size) -> Tensor:
    """Stands for a gradient of that shape which is under way."""
    return gradient.new_zeros(()).expand(shape)


class _Late(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gather: Gather, run: Run, *stored: Tensor) -> tuple[Tensor, ...]:
        ctx.gather, ctx.run = gather, run
        ctx.set_materialize_grads(False)
        passed = tuple(tensor.view_as(tensor) for tensor in stored)
        trained = ctx.needs_input_grad[2:]
        ctx.mark_non_differentiable(*(tensor for tensor, need in zip(passed, trained, strict=True) if not need))
        return passed

    @staticmethod
    def backward(ctx: Any, *_: Tensor | None) -> tuple[Tensor | None, ...]:
        reduced = ctx.gather.total(ctx.run.reductions.take(ctx.gather.plan.name))
        return None, None, *(reduced.get(place) for place in range(len(ctx.needs_input_grad) - 2))
