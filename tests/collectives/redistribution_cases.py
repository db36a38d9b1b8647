"""Tensors cut by index lists, as an oracle: nothing here is shared with the code under test."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import product

import torch
from torch import Tensor

from autoplan.placement import Mesh, P, Placements, R, S

CUTS = (R, P, S(0), S(1), S(0, 2), S(1, 3))
SHAPES = {(2,): (12, 18), (3,): (12, 18), (2, 2): (8, 12), (2, 3): (12, 18), (2, 2, 2): (16, 24)}  # what two, three and groups divide


def mesh_of(*shape: int) -> Mesh:
    return Mesh(tuple("xyz"[: len(shape)]), shape)


def held(size: int, dim: int, placements: Placements, mesh: Mesh, coordinate: Sequence[int]) -> list[int]:
    """Which indices of `dim` a rank holds, each axis taking its part of every group that the axes before it left."""
    indices = list(range(size))
    for placement, n, position in zip(placements, mesh.shape, coordinate, strict=True):
        if isinstance(placement, S) and placement.dim == dim:
            group = len(indices) // placement.groups
            indices = [index for i, index in enumerate(indices) if i % group // (group // n) == position]
    return indices


def part(whole: Tensor, placements: Placements, mesh: Mesh, coordinate: Sequence[int]) -> Tensor:
    """What a rank holds of `whole` under shards; R and P leave it whole."""
    for dim, size in enumerate(whole.shape):
        whole = whole.index_select(dim, torch.tensor(held(size, dim, placements, mesh, coordinate)))
    return whole


def terms(whole: Tensor, placements: Placements, mesh: Mesh) -> Callable[[Sequence[int]], Tensor]:
    """Whole numbers that add up to `whole` over the axes with P: one rank's term of the sum, cut as placed."""
    axes = [axis for axis, placement in enumerate(placements) if placement == P]
    keys = list(product(*(range(mesh.shape[axis]) for axis in axes)))
    generator = torch.Generator().manual_seed(7)
    made = {key: torch.randint(-50, 50, whole.shape, generator=generator).double() for key in keys[1:]}
    made[keys[0]] = whole - sum(made.values())
    return lambda coordinate: part(made[tuple(coordinate[axis] for axis in axes)], placements, mesh, coordinate)


def joined(locals_: Sequence[Tensor], placements: Placements, mesh: Mesh) -> list[Tensor]:
    """For each rank the sum over the axes with P of what it and its peers hold: what `part` of the whole must be."""
    coordinates = mesh.coordinates()

    def rest(coordinate: Sequence[int]) -> tuple[int, ...]:
        return tuple(-1 if placement == P else index for placement, index in zip(placements, coordinate, strict=True))

    sums: dict[tuple[int, ...], Tensor] = {}
    for local, coordinate in zip(locals_, coordinates, strict=True):
        key = rest(coordinate)
        sums[key] = sums[key] + local if key in sums else local
    return [sums[rest(coordinate)] for coordinate in coordinates]


def whole_of(mesh: Mesh) -> Tensor:
    """Whole numbers in fp64, whose sums are exact in any order: results are compared bit by bit."""
    generator = torch.Generator().manual_seed(1)
    return torch.randint(-50, 50, SHAPES[mesh.shape], generator=generator).double()
