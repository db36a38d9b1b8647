"""Collectives over torch.distributed process groups: the functional collectives, called by us and by nothing else."""

from __future__ import annotations

from collections.abc import Iterable

import torch.distributed as dist
import torch.distributed._functional_collectives as funcol
from torch import Tensor

from autoplan.placement import Mesh


class ProcessGroupCollectives:
    """One process's collectives. Every rank must be given the same `groups` of axes, since making a group is collective."""

    def __init__(self, mesh: Mesh, groups: Iterable[tuple[int, ...]]) -> None:
        assert mesh.size == dist.get_world_size()
        self.mesh = mesh
        self.coordinate = mesh.coordinate(dist.get_rank())
        self.groups = {axes: _make_group(mesh, axes) for axes in sorted(set(groups))}

    @property
    def axes_of_group(self) -> dict[str, tuple[int, ...]]:
        """The mesh axes of each process group, by the name that the c10d ops carry."""
        return {group.group_name: axes for axes, group in self.groups.items()}

    def all_gather(self, tensor: Tensor, axes: tuple[int, ...]) -> Tensor:
        return funcol.wait_tensor(funcol.all_gather_tensor(tensor, 0, self.groups[axes]))

    def reduce_scatter(self, tensor: Tensor, axes: tuple[int, ...]) -> Tensor:
        return funcol.wait_tensor(funcol.reduce_scatter_tensor(tensor, "sum", 0, self.groups[axes]))

    def all_reduce(self, tensor: Tensor, axes: tuple[int, ...], op: str = "sum") -> Tensor:
        return funcol.wait_tensor(funcol.all_reduce(tensor, op, self.groups[axes]))

    def all_to_all(self, tensor: Tensor, axes: tuple[int, ...]) -> Tensor:
        return funcol.wait_tensor(funcol.all_to_all_single(tensor, None, None, self.groups[axes]))


def _make_group(mesh: Mesh, axes: tuple[int, ...]) -> dist.ProcessGroup:
    """This rank's group over `axes`: the ranks that share its coordinates on all other axes, row-major."""
    if len(axes) == mesh.ndim:
        return dist.group.WORLD  # type: ignore[return-value]  # set once the process group is initialised
    members: dict[tuple[int, ...], list[int]] = {}
    for rank, coordinate in enumerate(mesh.coordinates()):
        rest = tuple(index for axis, index in enumerate(coordinate) if axis not in axes)
        members.setdefault(rest, []).append(rank)
    mine, _ = dist.new_subgroups_by_enumeration(list(members.values()))
    assert mine is not None
    return mine
