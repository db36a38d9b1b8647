"""What the local computation needs to talk to other ranks: five collectives on dim 0, over any group of mesh axes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Size, Tensor

from autoplan.placement import Mesh


class Collectives(Protocol):
    """One rank's end of the collectives. A group over several axes orders its ranks row-major, as the mesh does.

    All take and return contiguous tensors and are not differentiable: `redistribute` gives them their gradients.
    """

    mesh: Mesh
    coordinate: tuple[int, ...]  # of this rank, one index per axis

    def all_gather(self, tensor: Tensor, axes: tuple[int, ...]) -> Tensor:
        """The group's tensors [m, ...] one after another: [n * m, ...]."""
        ...

    def reduce_scatter(self, tensor: Tensor, axes: tuple[int, ...]) -> Tensor:
        """This rank's part [m, ...] of the sum of the group's tensors [n * m, ...]."""
        ...

    def all_reduce(self, tensor: Tensor, axes: tuple[int, ...], op: str = "sum") -> Tensor:
        """The sum (or `op="max"`) of the group's tensors; the input is left as it is."""
        ...

    def all_to_all(self, tensor: Tensor, axes: tuple[int, ...]) -> Tensor:
        """The parts [m, ...] that the group's ranks hold for this rank, in rank order: [n * m, ...] in and out."""
        ...

    def exchange(self, tensor: Tensor, send: Sequence[int], receive: Sequence[int], axes: tuple[int, ...]) -> Tensor:
        """An all-to-all of parts that differ: `send[r]` rows go to rank r of the group, `receive[r]` come from it."""
        ...

    def start(self, kind: str, tensors: Sequence[Tensor], axes: tuple[int, ...]) -> UnderWay:
        """One "all-gather", "reduce-scatter" or "all-reduce" of several tensors of one dtype, each by itself, under way.

        Its operands must not be overwritten before `wait`.
        """
        ...

    def wait(self, started: UnderWay) -> list[Tensor]:
        """The results, once they are there (on CUDA: for what the current stream runs from now on); of gathers, each has its own storage."""
        ...


@dataclass(frozen=True, slots=True)
class UnderWay:
    """What a collective makes, not to be touched before `wait`: the results, or all of them flat in one where there are `shapes`."""

    results: list[Tensor]
    shapes: list[Size] | None = None


def index_in_group(collectives: Collectives, axes: tuple[int, ...]) -> int:
    """This rank's row-major index among the ranks of a group over `axes`."""
    index = 0
    for axis in axes:
        index = index * collectives.mesh.shape[axis] + collectives.coordinate[axis]
    return index
