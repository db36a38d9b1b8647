"""Buckets under way: their collectives are issued when the operands are there, and waited for when somebody needs the results."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from autoplan.assignment.gathers import BUCKETED, Bucket
from autoplan.collectives import Collectives, run_steps
from autoplan.placement import Shard

Tensors = dict[int, Tensor]
"""Local tensors by member of the group."""

Finish = Callable[[Tensor], list[Tensor]]
"""What makes the members' tensors of a collective's result."""


class Rounds:
    """The rounds of a gather group on `tensors`: what can be issued is when this is made, the rest with `finish`."""

    def __init__(self, tensors: Mapping[int, Tensor], rounds: Sequence[Bucket], group: Collectives) -> None:
        self._tensors = dict(tensors)
        self._left = deque(rounds)
        self._group = group
        self._flying: list[tuple[Bucket, Tensor, Finish]] = []
        self._issue()

    def finish(self) -> Tensors:
        """The tensors after all rounds."""
        while self._flying:
            for bucket, result, finish in self._flying:
                self._tensors.update(zip(bucket.members, finish(self._group.wait(result)), strict=True))
            self._flying = []
            self._issue()
        return self._tensors

    def _issue(self) -> None:
        """Run the buckets whose members are all there; collectives are not waited for."""
        awaited: set[int] = set()
        while self._left and awaited.isdisjoint(self._left[0].members):
            bucket = self._left.popleft()
            chosen = [self._tensors[index] for index in bucket.members]
            if bucket.kind in BUCKETED:
                flat, finish = _PREPARE[bucket.kind](chosen, bucket, self._group.mesh.group_size(bucket.axes))
                self._flying.append((bucket, self._group.start(bucket.kind, flat.contiguous(), bucket.axes), finish))
                awaited.update(bucket.members)
            else:
                after = [run_steps(tensor, (step,), self._group) for tensor, step in zip(chosen, bucket.steps, strict=True)]
                self._tensors.update(zip(bucket.members, after, strict=True))


def _all_gather(tensors: list[Tensor], bucket: Bucket, n: int) -> tuple[Tensor, Finish]:
    """[m] flat on each rank; of the result [n, m] every member has a column range."""
    shards = [_shard(step.src) for step in bucket.steps]
    fronts = [tensor.movedim(shard.dim, 0) for tensor, shard in zip(tensors, shards, strict=True)]
    shapes = [front.shape for front in fronts]
    sizes = [front.numel() for front in fronts]

    def finish(gathered: Tensor) -> list[Tensor]:
        columns = gathered.view(n, -1).split(sizes, 1)
        return [_join(column, shape, shard, alone=len(columns) == 1) for column, shape, shard in zip(columns, shapes, shards, strict=True)]

    return _joined([front.reshape(-1) for front in fronts]), finish


def _join(column: Tensor, front: torch.Size, shard: Shard, *, alone: bool) -> Tensor:
    """[n, m]: the parts of n ranks, `shard.dim` in front -> the whole tensor, contiguous in a storage of its own."""
    if alone and shard.groups == 1:
        return column.view(-1, *front[1:]).movedim(0, shard.dim).contiguous()
    parts = column.unflatten(1, (shard.groups, front[0] // shard.groups, *front[1:]))  # [n, groups, k, ...]
    return parts.transpose(0, 1).clone(memory_format=torch.contiguous_format).flatten(0, 2).movedim(0, shard.dim).contiguous()


def _reduce_scatter(tensors: list[Tensor], bucket: Bucket, n: int) -> tuple[Tensor, Finish]:
    """[n, m], a row for every rank and a column range for every member; of the result [m] every member has a range."""
    shards = [_shard(step.dst) for step in bucket.steps]
    rows, shapes = [], []
    for tensor, shard in zip(tensors, shards, strict=True):
        front = tensor.movedim(shard.dim, 0)
        parts = front.unflatten(0, (shard.groups, n, -1)).transpose(0, 1)  # [n, groups, k, ...]
        rows.append(parts.reshape(n, -1))
        shapes.append((front.shape[0] // n, *front.shape[1:]))
    sizes = [row.shape[1] for row in rows]

    def finish(flat: Tensor) -> list[Tensor]:
        pieces = zip(flat.split(sizes), shapes, shards, strict=True)
        return [piece.view(shape).movedim(0, shard.dim).contiguous() for piece, shape, shard in pieces]

    return _joined(rows, 1).reshape(-1), finish


def _all_reduce(tensors: list[Tensor], bucket: Bucket, n: int) -> tuple[Tensor, Finish]:
    shapes = [tensor.shape for tensor in tensors]
    sizes = [tensor.numel() for tensor in tensors]

    def finish(flat: Tensor) -> list[Tensor]:
        return [piece.view(shape) for piece, shape in zip(flat.split(sizes), shapes, strict=True)]

    return _joined([tensor.reshape(-1) for tensor in tensors]), finish


def _joined(parts: list[Tensor], dim: int = 0) -> Tensor:
    """The parts one behind the other; one alone is not copied."""
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim)


def _shard(placement: object) -> Shard:
    assert isinstance(placement, Shard), placement
    return placement


_PREPARE = {"all-gather": _all_gather, "reduce-scatter": _reduce_scatter, "all-reduce": _all_reduce}
