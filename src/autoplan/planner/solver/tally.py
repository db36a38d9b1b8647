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
        self.owner = np.repeat(np.arange(len(usages)), counts)  # of each entry, which is one span of one owner
        spans = [span for usage in usages for span in usage]
        self.start, self.stop, self.step = np.array(spans, dtype=np.int64).reshape(-1, 3).T
        self.sparse = np.flatnonzero(self.step > 1)
        amounts = [amounts.ravel() for usage in usages for amounts in usage.values()]
        self.amounts = np.concatenate(amounts) if amounts else np.zeros(0, dtype=np.int64)
        self.lengths = np.array(list(map(len, amounts)), dtype=np.int64)
        self.offset = np.cumsum(self.lengths) - self.lengths
        self.place = np.append(0, np.cumsum(self.sizes, dtype=np.int64))  # of each owner where all of its strategies stand but once
        self.slot = np.arange(len(self.amounts)) + np.repeat(self.place[self.owner] - self.offset, self.lengths)
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

    def charges(self, prices: Array) -> tuple[Array, list[int]]:
        """What each strategy (or pair) of each owner pays, in one array, and the owners whose charges do not fit into it."""
        total = np.append(0, np.cumsum(prices))
        each = total[self.stop] - total[self.start]
        for entry in self.sparse.tolist():
            each[entry] = prices[self.start[entry] : self.stop[entry] : self.step[entry]].sum()
        paid = np.zeros(self.place[-1], dtype=np.int64)
        np.add.at(paid, self.slot, np.repeat(each, self.lengths) * self.amounts)
        most = np.bincount(self.owner, weights=each.astype(float) * self.most, minlength=len(self.sizes))
        return paid, np.flatnonzero(most >= SAFE).tolist()
