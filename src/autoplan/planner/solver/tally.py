"""What choices use, and what that costs under prices, counted over all spans at once: merged nodes have hundreds of spans each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from autoplan.planner.solver.model import Array, Usage

SAFE = 1 << 60  # charges below are added without looking at each


class Tally:
    """Nodes and edges, called owners, with what each of their strategies (or pairs) uses, behind one another in one array."""

    def __init__(self, usages: Sequence[Usage], rows: int) -> None:
        """`usages[owner][span]` is by strategy, or by pair; `rows` is how many there are."""
        self.rows = rows
        self.sizes = [next(iter(usage.values())).size if usage else 0 for usage in usages]
        counts = np.array([len(usage) for usage in usages], dtype=np.int64)
        self.first = np.append(0, np.cumsum(counts))  # entry of each owner; an entry is one span of one owner
        self.owner = np.repeat(np.arange(len(usages)), counts)
        spans = [span for usage in usages for span in usage]
        self.start, self.stop, self.step = np.array(spans, dtype=np.int64).reshape(-1, 3).T
        self.sparse = np.flatnonzero(self.step > 1)
        amounts = [amounts.ravel() for usage in usages for amounts in usage.values()]
        self.amounts = np.concatenate(amounts) if amounts else np.zeros(0, dtype=np.int64)
        sizes = np.array(list(map(len, amounts)), dtype=np.int64)
        self.offset = np.cumsum(sizes) - sizes
        self.most = np.maximum.reduceat(np.abs(self.amounts), self.offset).astype(float) if amounts else np.zeros(0)

    def used_by(self, picked: Array) -> Array:
        """What is used in every row where `picked[owner]` is the strategy of each, or the number of the pair."""
        amounts = self.amounts[self.offset + picked[self.owner]]
        change = np.zeros(self.rows + 1, dtype=np.int64)
        dense = self.step == 1 if len(self.sparse) else slice(None)
        np.add.at(change, self.start[dense], amounts[dense])
        np.subtract.at(change, self.stop[dense], amounts[dense])
        used = np.cumsum(change[:-1])
        for entry in self.sparse.tolist():
            used[self.start[entry] : self.stop[entry] : self.step[entry]] += amounts[entry]
        return used

    def charges(self, prices: Array) -> dict[int, Array | None]:
        """By owner that pays anything what each of its strategies or pairs pays; None where that may not fit into 64 bits."""
        total = np.append(0, np.cumsum(prices))
        each = total[self.stop] - total[self.start]
        for entry in self.sparse.tolist():
            each[entry] = prices[self.start[entry] : self.stop[entry] : self.step[entry]].sum()
        paying = np.unique(self.owner[each > 0])
        charges: dict[int, Array | None] = {}
        for owner in paying.tolist():
            entries = slice(self.first[owner], self.first[owner + 1])
            if each[entries].astype(float) @ self.most[entries] >= SAFE:
                charges[owner] = None
                continue
            begin = self.offset[entries.start]
            size = self.sizes[owner]
            amounts = self.amounts[begin : begin + size * (entries.stop - entries.start)]
            charges[owner] = each[entries] @ amounts.reshape(-1, size)
        return charges
