"""All ranks of a mesh in one process: each is a thread, and a collective is a meeting of the threads of its group.

The local computation is the same code that processes run; only the object that carries the collectives differs. That
makes rules provable and large meshes testable on a laptop.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from torch import Tensor

from autoplan.collectives.base import UnderWay
from autoplan.placement import Mesh

Result = TypeVar("Result")

MEETING_TIMEOUT_S = 120.0  # a rank that waits longer has lost the others


class _Meeting:
    """Where the ranks of one group exchange tensors: everyone puts one in, everyone sees all of them."""

    def __init__(self, size: int) -> None:
        self.barrier = threading.Barrier(size)
        self.slots: list[Tensor | None] = [None] * size

    def exchange(self, index: int, tensor: Tensor) -> list[Tensor]:
        self.slots[index] = tensor
        self.barrier.wait(MEETING_TIMEOUT_S)
        everyone = [slot for slot in self.slots if slot is not None]
        self.barrier.wait(MEETING_TIMEOUT_S)  # nobody puts the next tensor in before all have read this one
        return everyone


class SimulatedCollectives:
    """The collectives of one simulated rank; `counts` holds how many of each (kind, axes) it has run."""

    def __init__(
        self, mesh: Mesh, coordinate: tuple[int, ...], meet: Callable[[tuple[int, ...], tuple[int, ...]], tuple[_Meeting, int]]
    ) -> None:
        self.mesh = mesh
        self.coordinate = coordinate
        self.counts: Counter[tuple[str, tuple[int, ...]]] = Counter()
        self._meet = meet

    def _exchange(self, kind: str, tensor: Tensor, axes: tuple[int, ...]) -> tuple[list[Tensor], int]:
        self.counts[kind, axes] += 1
        meeting, index = self._meet(self.coordinate, axes)
        return meeting.exchange(index, tensor.detach()), index

    def all_gather(self, tensor: Tensor, axes: tuple[int, ...]) -> Tensor:
        tensors, _ = self._exchange("all-gather", tensor, axes)
        return torch.cat(tensors, 0)

    def reduce_scatter(self, tensor: Tensor, axes: tuple[int, ...]) -> Tensor:
        tensors, index = self._exchange("reduce-scatter", tensor, axes)
        return torch.stack([t.chunk(len(tensors), 0)[index] for t in tensors]).sum(0)

    def all_reduce(self, tensor: Tensor, axes: tuple[int, ...], op: str = "sum") -> Tensor:
        tensors, _ = self._exchange("all-reduce", tensor, axes)
        stacked = torch.stack(tensors)
        return stacked.sum(0) if op == "sum" else stacked.amax(0)

    def all_to_all(self, tensor: Tensor, axes: tuple[int, ...]) -> Tensor:
        tensors, index = self._exchange("all-to-all", tensor, axes)
        return torch.cat([t.chunk(len(tensors), 0)[index] for t in tensors], 0)

    def start(self, kind: str, tensors: Sequence[Tensor], axes: tuple[int, ...]) -> UnderWay:
        """The results themselves: a meeting of threads is over when it returns."""
        run = {"all-gather": self.all_gather, "reduce-scatter": self.reduce_scatter, "all-reduce": self.all_reduce}[kind]
        results = [run(tensor, axes) for tensor in tensors]
        self.counts[kind, axes] -= len(tensors) - 1  # together they are one
        return UnderWay(results)

    def wait(self, started: UnderWay) -> list[Tensor]:
        return started.results

    def exchange(self, tensor: Tensor, send: Sequence[int], receive: Sequence[int], axes: tuple[int, ...]) -> Tensor:
        meeting, index = self._meet(self.coordinate, axes)
        sizes = meeting.exchange(index, torch.tensor(send))
        tensors, _ = self._exchange("all-to-all", tensor, axes)
        arrived = [t.split(each.tolist())[index] for t, each in zip(tensors, sizes, strict=True)]
        assert [len(part) for part in arrived] == list(receive)
        return torch.cat(arrived, 0)


def run_simulated(mesh: Mesh, rank_main: Callable[[SimulatedCollectives], Result]) -> list[Result]:
    """What `rank_main` returns on each rank, in rank order; the first rank's exception, if any raises."""
    meetings: dict[tuple[tuple[int, ...], tuple[int, ...]], _Meeting] = {}
    lock = threading.Lock()

    def meet(coordinate: tuple[int, ...], axes: tuple[int, ...]) -> tuple[_Meeting, int]:
        rest = tuple(-1 if axis in axes else index for axis, index in enumerate(coordinate))
        with lock:
            meeting = meetings.setdefault((axes, rest), _Meeting(mesh.group_size(axes)))
            if any(error is not None for error in errors):
                meeting.barrier.abort()  # somebody will not come
        index = 0
        for axis in axes:
            index = index * mesh.shape[axis] + coordinate[axis]
        return meeting, index

    coordinates = mesh.coordinates()
    results: list[Result | None] = [None] * len(coordinates)
    errors: list[BaseException | None] = [None] * len(coordinates)

    def thread_main(rank: int) -> None:
        try:
            results[rank] = rank_main(SimulatedCollectives(mesh, coordinates[rank], meet))
        except BaseException as error:
            with lock:
                errors[rank] = error
                for meeting in meetings.values():
                    meeting.barrier.abort()

    threads = [threading.Thread(target=thread_main, args=(rank,), daemon=True) for rank in range(len(coordinates))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    _raise_first(errors)
    return results  # type: ignore[return-value]  # every slot is filled once no rank raised


def _raise_first(errors: Sequence[BaseException | None]) -> None:
    """The cause: an error of a rank's own rather than the broken meetings that follow from it."""
    raised = [error for error in errors if error is not None]
    causes = [error for error in raised if not isinstance(error, threading.BrokenBarrierError)]
    for error in causes or raised:
        raise error
