"""What every strategy of every node costs with its neighbours as they are, for all nodes at once: many are small."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from autoplan.planner.solver.model import Array, Model
from autoplan.planner.solver.priced import Priced


class Around:
    """The matrices of all edges, from both ends, behind one another: `entries` are the costs that make up a sum, sum after sum."""

    def __init__(self, model: Model, near: Sequence[Sequence[int]], priced: Priced) -> None:
        """`near` are the neighbours of each node; matrices are charged as `priced` says."""
        self.priced = priced
        sizes = np.array([len(costs) for costs in model.costs], dtype=np.int64)
        self.first = np.append(0, np.cumsum(sizes)).tolist()  # of each node where its strategies stand among all
        self.matrices = np.zeros(2 * sum(edge.cost.size for edge in model.edges.values()), dtype=np.int64)
        self.offset: dict[tuple[int, int], int] = {}  # of the matrix [strategy of the second, strategy of the first]
        length = 0
        places, owners, widths = [], [], []
        for u, others in enumerate(near):
            size, starts = int(sizes[u]), []
            for w in others:
                self.offset[u, w] = length
                starts.append(length)
                length += size * int(sizes[w])
            places.append((np.arange(size)[:, None] + np.array(starts, dtype=np.int64)).ravel())
            owners.append(np.tile(np.array(others, dtype=np.int64), size))
            widths.append(np.full(size * len(others), size))
        none = np.zeros(0, dtype=np.int64)
        self.place, self.owner, self.width = (np.concatenate([none, *arrays]) for arrays in (places, owners, widths))
        degrees = np.repeat([len(others) for others in near], sizes)
        self.touched = np.flatnonzero(degrees)  # the strategies with entries, and where those of each start
        self.starts = (np.cumsum(degrees) - degrees)[self.touched]
        self.take_over(model.edges)

    def take_over(self, edges: Iterable[tuple[int, int]]) -> None:
        """Read anew what these edges are charged."""
        for u, w in edges:
            for node, other in ((u, w), (w, u)):
                matrix = self.priced.edge(other, node)
                start = self.offset[node, other]
                self.matrices[start : start + matrix.size].reshape(matrix.shape)[...] = matrix

    def sums(self, chosen: Array, counts: Array) -> list[Array]:
        """For each node what its strategies cost, alone and with the neighbours w for which `counts[w]`, as `chosen`."""
        total = np.concatenate([np.zeros(0, dtype=np.int64), *self.priced.nodes])
        if len(self.starts):
            costs = self.matrices[self.place + chosen[self.owner] * self.width]
            costs *= counts[self.owner]
            total[self.touched] += np.add.reduceat(costs, self.starts)
        return [total[start:stop] for start, stop in zip(self.first, self.first[1:], strict=False)]
