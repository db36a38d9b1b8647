"""Where a tensor's elements are: placements along the axes of a mesh, and their notation. No torch.

A mesh has *axes*, a tensor has *dims*. A tensor's placements are a tuple with one placement per mesh axis, in mesh
order, and they apply one after another: the first axis cuts the global tensor, the second cuts what the first left.
So `(S(0), S(0))` nests the second axis inside the first, and local shapes follow from cutting in mesh order.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import product

from autoplan.errors import PlacementError, UsageError


@dataclass(frozen=True, slots=True)
class Replicate:
    """Every rank of the axis holds the whole value.

    `partial_gradient` tells the two states of a replicated value apart: its gradient is either whole on every rank, or
    a partial sum that is still to be added over the axis. Plans write both `R`; the gradient's kind is derived.
    """

    partial_gradient: bool = False

    def __str__(self) -> str:
        return "R"


@dataclass(frozen=True, slots=True)
class Partial:
    """Every rank of the axis holds one term of a sum; the gradient is whole on every rank."""

    def __str__(self) -> str:
        return "P"


@dataclass(frozen=True, slots=True)
class Shard:
    """Dim `dim`, seen as `groups` equal groups, each cut evenly over the axis (DTensor's `_StridedShard` if groups > 1)."""

    dim: int
    groups: int = 1

    def __str__(self) -> str:
        return f"S({self.dim})" if self.groups == 1 else f"S({self.dim},{self.groups})"


Placement = Replicate | Partial | Shard
Placements = tuple[Placement, ...]

R = Replicate()
R_PARTIAL = Replicate(partial_gradient=True)
P = Partial()
S = Shard

_SHARD = re.compile(r"S\((\d{1,2})(?:,\s*(\d{1,9}))?\)")


def parse_placement(text: str) -> Placement:
    """`R`, `P`, `S(0)` or `S(0,3)` as a placement; raises PlacementError for anything else."""
    if text == "R":
        return R
    if text == "P":
        return P
    match = _SHARD.fullmatch(text)
    if match and int(match[2] or 1) >= 1:
        return Shard(int(match[1]), int(match[2] or 1))
    raise PlacementError(f"{text!r} is not a placement", next_step="write R, P, S(dim) or S(dim,groups)")


def format_placements(placements: Placements) -> str:
    """`[S(0), R]`, as plans write it."""
    return "[" + ", ".join(map(str, placements)) + "]"


@cache
def forward_of(state: Placements) -> Placements:
    """The placements of the value itself: a state without the kind of its gradient."""
    return tuple(R if isinstance(p, Replicate) else p for p in state)


@cache
def gradient_of(state: Placements) -> Placements:
    """The placements of the gradient of a value in `state`: S as the value, P gives R, R gives R or P (DESIGN 4)."""
    return tuple(_gradient(p) for p in state)


def _gradient(placement: Placement) -> Placement:
    if isinstance(placement, Partial):
        return R
    if isinstance(placement, Replicate):
        return P if placement.partial_gradient else R
    return placement


@dataclass(frozen=True, slots=True)
class Mesh:
    """Named axes of ranks in row-major order: the last axis is innermost, its ranks are neighbours."""

    names: tuple[str, ...]
    shape: tuple[int, ...]

    def __post_init__(self) -> None:
        assert len(self.names) == len(self.shape) == len(set(self.names)), (self.names, self.shape)

    @property
    def size(self) -> int:
        """The number of ranks."""
        size = 1
        for n in self.shape:
            size *= n
        return size

    @property
    def ndim(self) -> int:
        """The number of axes."""
        return len(self.shape)

    def group_size(self, axes: Sequence[int]) -> int:
        """How many ranks a group over `axes` has."""
        size = 1
        for axis in axes:
            size *= self.shape[axis]
        return size

    def coordinate(self, rank: int) -> tuple[int, ...]:
        """Where `rank` sits on each axis."""
        coordinate = []
        for n in reversed(self.shape):
            rank, index = divmod(rank, n)
            coordinate.append(index)
        return tuple(reversed(coordinate))

    def coordinates(self) -> list[tuple[int, ...]]:
        """The coordinates of all ranks, in rank order."""
        return list(product(*(range(n) for n in self.shape)))

    def __str__(self) -> str:
        return "x".join(map(str, self.shape))


_AXIS_NAMES = "xyzuvw"
_AXIS = re.compile(r"(?:([A-Za-z_]\w*)=)?(\d{1,6})")


def parse_mesh(text: str) -> Mesh:
    """`4`, `2x4` (axes x, y, ...) or `data=2,tensor=4` as a mesh; raises UsageError that names the bad token."""
    named = "=" in text
    tokens = text.split(",") if named else text.split("x")
    hint = "write --mesh 4, 2x4 or data=2,tensor=4"
    if len(tokens) > len(_AXIS_NAMES):
        raise UsageError(f"mesh {text!r}: {len(tokens)} axes, at most {len(_AXIS_NAMES)}", next_step=hint)
    names, shape = [], []
    for index, token in enumerate(tokens):
        match = _AXIS.fullmatch(token.strip())
        if not match or bool(match[1]) != named or int(match[2]) < 1:
            raise UsageError(f"mesh {text!r}: {token!r} is not an axis of at least one rank", next_step=hint)
        name = match[1] or _AXIS_NAMES[index]
        if name in names:
            raise UsageError(f"mesh {text!r}: axis {token!r} repeats the name {name!r}", next_step=hint)
        names.append(name)
        shape.append(int(match[2]))
    return Mesh(tuple(names), tuple(shape))


def cut(shape: Sequence[int], placement: Placement, axis_size: int) -> tuple[int, ...]:
    """`shape` as one rank of an axis holds it; raises PlacementError where the dim is missing or does not divide."""
    if not isinstance(placement, Shard):
        return tuple(shape)
    dim, groups = placement.dim, placement.groups
    if dim >= len(shape):
        raise PlacementError(f"{placement} of a tensor with {len(shape)} dims {list(shape)}", next_step=f"dims are 0 to {len(shape) - 1}")
    if shape[dim] % (groups * axis_size):
        raise PlacementError(
            f"{placement} over {axis_size} ranks does not divide {shape[dim]}", next_step=f"it must be a multiple of {groups * axis_size}"
        )
    return (*shape[:dim], shape[dim] // axis_size, *shape[dim + 1 :])


def local_shape(shape: Sequence[int], placements: Placements, mesh: Mesh) -> tuple[int, ...]:
    """The shape one rank holds: `shape` cut by each axis in mesh order; raises PlacementError where it cannot be."""
    local = tuple(shape)
    for placement, n in zip(placements, mesh.shape, strict=True):
        local = cut(local, placement, n)
    return local


def fits(shape: Sequence[int], placements: Placements, mesh: Mesh) -> bool:
    """Whether every shard of `shape` under `placements` exists and divides evenly."""
    local = list(shape)
    for placement, n in zip(placements, mesh.shape, strict=True):
        if isinstance(placement, Shard):
            if placement.dim >= len(local) or local[placement.dim] % (placement.groups * n):
                return False
            local[placement.dim] //= n
    return True


def dtensor_holds(placements: Placements) -> bool:
    """Whether DTensor reads `placements` as we do: no later axis may cut a dim that an earlier one cuts in groups.

    torch 2.13: `full_tensor` of `[S(0,3), S(0,3)]` is wrong, that of `[S(0,3), S(0)]` fails.
    """
    grouped: set[int] = set()
    for placement in placements:
        if isinstance(placement, Shard):
            if placement.dim in grouped:
                return False
            if placement.groups > 1:
                grouped.add(placement.dim)
    return True
