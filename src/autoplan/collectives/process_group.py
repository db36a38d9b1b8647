"""Collectives over torch.distributed process groups: the functional collectives, called by us and by nothing else."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
import torch.distributed as dist
import torch.distributed._functional_collectives  # registers the ops
from torch import Tensor

from autoplan.collectives.base import UnderWay
from autoplan.placement import Mesh

_ops = torch.ops._c10d_functional  # torch 2.13 renames the Python functions around them, the ops stay


class ProcessGroupCollectives:
    """One process's collectives. Every rank must be given the same `groups` of axes, since making a group is collective.

    Tensors that are gathered or scattered together go as they lie, in one call.
    """

    def __init__(self, mesh: Mesh, groups: Iterable[tuple[int, ...]]) -> None:
        assert mesh.size == dist.get_world_size()
        self.mesh = mesh
        self.coordinate = mesh.coordinate(dist.get_rank())
        self.groups = {axes: _group(mesh, axes) for axes in sorted(set(groups))}
        self.names = {axes: group.group_name for axes, group in self.groups.items()}  # what the ops take

    @property
    def axes_of_group(self) -> dict[str, tuple[int, ...]]:
        """The mesh axes of each process group, by the name that the c10d ops carry."""
        return {name: axes for axes, name in self.names.items()}

    def start(self, kind: str, tensors: Sequence[Tensor], axes: tuple[int, ...]) -> UnderWay:
        n, name = self.mesh.group_size(axes), self.names[axes]
        with _unrecorded():
            if kind == "all-reduce":
                copies = torch.cat([tensor.reshape(-1) for tensor in tensors])
                return UnderWay([_ops.all_reduce_(copies, "sum", name)], [tensor.shape for tensor in tensors])
            if len(tensors) == 1:
                return UnderWay([self._start_one(kind, tensors[0], n, name)])
            if kind == "all-gather":
                return UnderWay(_ops.all_gather_into_tensor_coalesced(list(tensors), n, name))
            return UnderWay(_ops.reduce_scatter_tensor_coalesced(list(tensors), "sum", n, name))

    def _start_one(self, kind: str, tensor: Tensor, n: int, name: str) -> Tensor:
        if kind == "all-gather":
            return _ops.all_gather_into_tensor(tensor, n, name)
        assert kind == "reduce-scatter", kind
        return _ops.reduce_scatter_tensor(tensor, "sum", n, name)

    def wait(self, started: UnderWay) -> list[Tensor]:
        with _unrecorded():
            there = [_ops.wait_tensor(result) for result in started.results]
        if started.shapes is None:
            return there
        parts = there[0].split([shape.numel() for shape in started.shapes])
        return [part.view(shape) for part, shape in zip(parts, started.shapes, strict=True)]

    def all_gather(self, tensor: Tensor, axes: tuple[int, ...]) -> Tensor:
        return _ops.wait_tensor(self._start_one("all-gather", tensor, self.mesh.group_size(axes), self.names[axes]))

    def reduce_scatter(self, tensor: Tensor, axes: tuple[int, ...]) -> Tensor:
        return _ops.wait_tensor(self._start_one("reduce-scatter", tensor, self.mesh.group_size(axes), self.names[axes]))

    def all_reduce(self, tensor: Tensor, axes: tuple[int, ...], op: str = "sum") -> Tensor:
        return _ops.wait_tensor(_ops.all_reduce(tensor, op, self.names[axes]))

    def all_to_all(self, tensor: Tensor, axes: tuple[int, ...]) -> Tensor:
        n = self.mesh.group_size(axes)
        parts = [tensor.shape[0] // n] * n
        return self.exchange(tensor, parts, parts, axes)

    def exchange(self, tensor: Tensor, send: Sequence[int], receive: Sequence[int], axes: tuple[int, ...]) -> Tensor:
        return _ops.wait_tensor(_ops.all_to_all_single(tensor, list(receive), list(send), self.names[axes]))


def _unrecorded() -> AbstractContextManager[object]:
    """Straight to what the ops do, where autograd records nothing: torch registers Python functions for that, and 4 us a tensor stay away."""
    return nullcontext() if torch.is_grad_enabled() else torch._C._AutoDispatchBelowAutograd()


_groups: tuple[object, dict[tuple[tuple[int, ...], tuple[int, ...]], dist.ProcessGroup]] = (None, {})  # of one world


def _group(mesh: Mesh, axes: tuple[int, ...]) -> dist.ProcessGroup:
    """The group over `axes`, made once: a group has threads (gloo) or buffers (NCCL) until the process ends."""
    global _groups
    if _groups[0] is not dist.group.WORLD:
        _groups = (dist.group.WORLD, {})
    made = _groups[1]
    if (mesh.shape, axes) not in made:
        made[mesh.shape, axes] = _make_group(mesh, axes)
    return made[mesh.shape, axes]


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
