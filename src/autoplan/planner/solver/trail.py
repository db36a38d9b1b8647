"""What the reductions did, step by step: enough to turn a choice of the reduced problem into one of the problem before."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from autoplan.planner.solver.model import Array


@dataclass(frozen=True, slots=True)
class Kept:
    """Of a node only the strategies `kept` are left."""

    node: int
    kept: Array

    def undo(self, chosen: dict[int, int]) -> None:
        """Name the strategy as before."""
        chosen[self.node] = int(self.kept[chosen[self.node]])


@dataclass(frozen=True, slots=True)
class Fixed:
    """A node of which nothing depended any more takes its one strategy."""

    node: int
    strategy: int

    def undo(self, chosen: dict[int, int]) -> None:
        """Choose it."""
        chosen[self.node] = self.strategy


@dataclass(frozen=True, slots=True)
class Merged:
    """Strategy k of `into` stands for its former strategy `of_into[k]` together with `of_node[k]` of a node that is gone."""

    node: int
    into: int
    of_node: Array
    of_into: Array

    def undo(self, chosen: dict[int, int]) -> None:
        """Take them apart."""
        k = chosen[self.into]
        chosen[self.node], chosen[self.into] = int(self.of_node[k]), int(self.of_into[k])


@dataclass(frozen=True, slots=True)
class Bridged:
    """A node between two others, gone: `best[s, t]` is its strategy where those take s and t."""

    node: int
    first: int
    second: int
    best: Array

    def undo(self, chosen: dict[int, int]) -> None:
        """Choose what suits both neighbours."""
        chosen[self.node] = int(self.best[chosen[self.first], chosen[self.second]])


Step = Kept | Fixed | Merged | Bridged


@dataclass(slots=True)
class Trail:
    """The steps in order, the numbers that the remaining nodes had before, and for each former row the one that stands for it, or -1."""

    steps: list[Step] = field(default_factory=list)
    nodes: tuple[int, ...] = ()
    rows: Array = field(default_factory=lambda: np.zeros(0, dtype=np.int64))

    def prices(self, before: Array) -> Array:
        """Prices of the former rows as prices of the rows now."""
        kept = self.rows >= 0
        return np.bincount(self.rows[kept], weights=before[kept], minlength=self.rows.max(initial=-1) + 1)

    def expand(self, choice: Sequence[int]) -> tuple[int, ...]:
        """The choice of the problem before the reductions that `choice` of the reduced one stands for."""
        chosen = dict(zip(self.nodes, map(int, choice), strict=True))
        for step in reversed(self.steps):
            step.undo(chosen)
        return tuple(chosen[node] for node in range(len(chosen)))
