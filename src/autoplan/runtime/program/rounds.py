"""Buckets under way: their collectives are issued when the operands are there, and waited for when somebody needs the results."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import repeat

from torch import Tensor

from autoplan.assignment.gathers import BUCKETED, Bucket
from autoplan.collectives import Collectives, UnderWay, run_steps
from autoplan.collectives.redistribute import joined_parts, parts_for_ranks
from autoplan.placement import Shard
from autoplan.redistribution import Step

_ROWS = Shard(0)
Tensors = dict[int, Tensor]
"""Local tensors by member of the group."""


class Rounds:
    """The rounds of a gather group on `tensors`: what can be issued is when this is made, the rest with `finish`."""

    def __init__(self, tensors: Mapping[int, Tensor], rounds: Sequence[Bucket], group: Collectives) -> None:
        self._tensors = dict(tensors)
        self._left = deque(rounds)
        self._group = group
        self._flying: list[tuple[Bucket, UnderWay]] = []
        self._issue()

    def finish(self) -> Tensors:
        """The tensors after all rounds."""
        while self._flying:
            for bucket, started in self._flying:
                arrived = map(_PACKING[bucket.kind].unpack, self._group.wait(started), bucket.steps, self._sizes_of(bucket))
                self._tensors.update(zip(bucket.members, arrived, strict=True))
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
                packed = map(_PACKING[bucket.kind].pack, chosen, bucket.steps, self._sizes_of(bucket))
                self._flying.append((bucket, self._group.start(bucket.kind, list(packed), bucket.axes)))
                awaited.update(bucket.members)
            else:
                after = [run_steps(tensor, (step,), self._group) for tensor, step in zip(chosen, bucket.steps, strict=True)]
                self._tensors.update(zip(bucket.members, after, strict=True))

    def _sizes_of(self, bucket: Bucket) -> Iterator[int]:
        """For each member, how many ranks take part."""
        return repeat(self._group.mesh.group_size(bucket.axes))


@dataclass(frozen=True, slots=True)
class _Packing:
    """How a tensor enters a collective on dim 0 and leaves it: `pack` and `unpack` take it, its step and the number of ranks.

    Where dim 0 is what the step is about, in one run of rows for each rank, it lies as it should already.
    """

    pack: Callable[[Tensor, Step, int], Tensor]
    unpack: Callable[[Tensor, Step, int], Tensor]


def _unpack_gathered(gathered: Tensor, step: Step, n: int) -> Tensor:
    """[n * rows, ...], the shards of n ranks one after the other -> the whole tensor."""
    shard = _shard(step.src)
    return gathered if shard == _ROWS else joined_parts(gathered.unflatten(0, (n, -1)), shard)


def _pack_for_ranks(tensor: Tensor, step: Step, n: int) -> Tensor:
    """What every rank gets, one after the other: [n * rows, ...]."""
    shard = _shard(step.dst)
    return tensor.contiguous() if shard == _ROWS else parts_for_ranks(tensor, shard, n).flatten(0, 1)


def _contiguous(tensor: Tensor, step: Step, n: int) -> Tensor:
    return tensor.contiguous()


def _as_it_is(tensor: Tensor, step: Step, n: int) -> Tensor:
    return tensor


def _shard(placement: object) -> Shard:
    assert isinstance(placement, Shard), placement
    return placement


_PACKING = {
    "all-gather": _Packing(_contiguous, _unpack_gathered),
    "reduce-scatter": _Packing(_pack_for_ranks, _as_it_is),
    "all-reduce": _Packing(_as_it_is, _as_it_is),
}
