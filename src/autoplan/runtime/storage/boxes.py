"""Which parts of a whole tensor a rank holds: the boxes of a DTensor's local part.

A plain shard is one box. A grouped one (`S(d,g)`, DTensor's `_StridedShard`) is a box for each group.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, product
from typing import Any

from torch import Tensor
from torch.distributed.tensor import DTensor, Shard
from torch.distributed.tensor.placement_types import _StridedShard


@dataclass(frozen=True, slots=True)
class Box:
    """A part without gaps: where it begins in the whole tensor and in the rank's local one, and its size."""

    start: tuple[int, ...]
    local_start: tuple[int, ...]
    size: tuple[int, ...]

    @property
    def whole(self) -> tuple[slice, ...]:
        """The part as an index of the whole tensor."""
        return _slices(self.start, self.size)

    @property
    def local(self) -> tuple[slice, ...]:
        """The part as an index of the local tensor."""
        return _slices(self.local_start, self.size)


def boxes_of(tensor: Tensor) -> tuple[Box, ...]:
    """What this rank holds of a DTensor; any other tensor is held whole."""
    if not isinstance(tensor, DTensor):
        return boxes(tensor.shape, (), (), ())
    return boxes(tensor.shape, tensor.placements, tuple(tensor.device_mesh.shape), tuple(tensor.device_mesh.get_coordinate() or ()))


def boxes(shape: Sequence[int], placements: Sequence[Any], mesh_shape: Sequence[int], coordinate: Sequence[int]) -> tuple[Box, ...]:
    """What the rank at `coordinate` of a mesh holds of a tensor of `shape`, which DTensor's placements cut in mesh order."""
    runs = [[range(size)] for size in shape]
    for placement, parts, index in zip(placements, mesh_shape, coordinate, strict=True):
        if isinstance(placement, Shard | _StridedShard):
            runs[placement.dim] = _cut(runs[placement.dim], getattr(placement, "split_factor", 1), parts, index)
    return tuple(_box(corner) for corner in product(*(_with_local_start(of_dim) for of_dim in runs)))


def _cut(runs: list[range], groups: int, parts: int, index: int) -> list[range]:
    """Of the elements in `runs`, seen as equal groups, part `index` of each group; a last part may be shorter."""
    length = sum(map(len, runs)) // groups
    part = -(-length // parts)
    wanted = [
        range(group * length + min(index * part, length), group * length + min((index + 1) * part, length)) for group in range(groups)
    ]
    found: list[range] = []
    for begin, run in _with_local_start(runs):
        for want in wanted:
            piece = run[max(0, want.start - begin) : max(0, want.stop - begin)]
            if found and piece and found[-1].stop == piece.start:
                found[-1] = range(found[-1].start, piece.stop)
            elif piece:
                found.append(piece)
    return found


def _with_local_start(runs: Sequence[range]) -> list[tuple[int, range]]:
    """Each run with where it begins among the elements of all."""
    return list(zip(accumulate(map(len, runs), initial=0), runs, strict=False))


def _box(corner: Sequence[tuple[int, range]]) -> Box:
    return Box(tuple(run.start for _, run in corner), tuple(begin for begin, _ in corner), tuple(len(run) for _, run in corner))


def _slices(start: tuple[int, ...], size: tuple[int, ...]) -> tuple[slice, ...]:
    return tuple(slice(begin, begin + length) for begin, length in zip(start, size, strict=True))
