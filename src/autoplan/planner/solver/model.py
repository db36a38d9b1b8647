"""The problem as arrays: nodes with strategies, pairs of nodes that cost something together, rows of memory with limits.

    minimise    sum of costs[u][s_u] + sum over edges (u, w) of cost[s_u, s_w]
    such that   for every row r: the sum of what nodes and edges use in r is at most limits[r]

What a node or an edge uses is the same in all rows of a *span*, a range of rows: a tensor that lives from one moment to
another, or the memory of a step whose peak is one of many. All numbers are integers; FORBIDDEN marks a pair that cannot be.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np

from autoplan.planner.solver.tally import Tally

Array = np.ndarray
FORBIDDEN = 1 << 60  # costs are far below, and eight of it add up within 64 bits


class Span(NamedTuple):
    """Rows `start`, `start + step`, ... below `stop`."""

    start: int
    stop: int
    step: int = 1

    @property
    def rows(self) -> slice:
        """The span as an index into an array of rows."""
        return slice(self.start, self.stop, self.step)


Usage = Mapping[Span, Array]


@dataclass(frozen=True, slots=True)
class Edge:
    """What a pair of nodes costs and uses; `cost[s, t]` and `usage[span][s, t]` for strategy s of the first, t of the second."""

    cost: Array
    usage: Usage = field(default_factory=dict)

    def seen_from_second(self) -> Edge:
        """The same pair with its nodes exchanged."""
        return Edge(self.cost.T, {span: amounts.T for span, amounts in self.usage.items()})


@dataclass(frozen=True, slots=True)
class Model:
    """`costs[u][s]`, `usage[u][span][s]`, `edges[u, w]` with u < w, `limits[row]`; `constant` is paid whatever is chosen."""

    costs: Sequence[Array]
    usage: Sequence[Usage]
    edges: Mapping[tuple[int, int], Edge]
    limits: Array
    constant: int = 0
    _tallies: list[Tally] = field(default_factory=list, init=False, repr=False, compare=False)

    @property
    def strategies(self) -> int:
        """The number of strategies over all nodes."""
        return sum(map(len, self.costs))

    def neighbours(self) -> list[list[int]]:
        """By node, the nodes that it has an edge with."""
        near: list[list[int]] = [[] for _ in self.costs]
        for u, w in self.edges:
            near[u].append(w)
            near[w].append(u)
        return near

    def cost_of(self, choice: Sequence[int]) -> int | None:
        """What a choice costs; None where it uses a forbidden pair."""
        total = self.constant + sum(int(costs[s]) for costs, s in zip(self.costs, choice, strict=True))
        for (u, w), edge in self.edges.items():
            cost = int(edge.cost[choice[u], choice[w]])
            if cost >= FORBIDDEN:
                return None
            total += cost
        return total

    @property
    def tally(self) -> Tally:
        """What nodes with usage, in their order, and then edges with usage, use: made when first asked for."""
        if not self._tallies:
            self._tallies.append(
                Tally([*filter(None, self.usage), *(edge.usage for edge in self.edges.values() if edge.usage)], len(self.limits))
            )
        return self._tallies[0]

    def used_by(self, choice: Sequence[int]) -> Array:
        """What a choice uses in every row."""
        picked = [s for usage, s in zip(self.usage, choice, strict=True) if usage]
        picked += [choice[u] * edge.cost.shape[1] + choice[w] for (u, w), edge in self.edges.items() if edge.usage]
        return self.tally.used_by(np.array(picked, dtype=np.int64))

    def most_used(self) -> Array:
        """More than any choice uses in each row, or as much."""
        most = np.zeros(len(self.limits), dtype=np.int64)
        for usage in (*self.usage, *(edge.usage for edge in self.edges.values())):
            for span, amounts in usage.items():
                most[span.rows] += amounts.max()
        return most

    def fits(self, choice: Sequence[int]) -> bool:
        """Whether a choice keeps every limit."""
        return bool((self.used_by(choice) <= self.limits).all())


@dataclass(frozen=True, slots=True)
class Found:
    """The best choice, None if none was found; no choice is better than `bound`, None: nothing is known. `finished`: not cut."""

    choice: tuple[int, ...] | None
    bound: int | None
    finished: bool


def in_full(choice: Sequence[int], kept: Sequence[Array]) -> tuple[int, ...]:
    """A choice among the strategies that were kept of each node, in their former numbers."""
    return tuple(int(strategies[s]) for strategies, s in zip(kept, choice, strict=True))


def bounds_in_full(sizes: Iterable[int], kept: Sequence[Array], bounds: Sequence[Array]) -> list[Array]:
    """By node, bounds on the strategies that were kept as bounds on all of so many, FORBIDDEN where they were not."""
    found = [np.full(size, FORBIDDEN) for size in sizes]
    for full, strategies, known in zip(found, kept, bounds, strict=True):
        full[strategies] = known
    return found


def chosen_from(model: Model, kept: Sequence[Array]) -> Model:
    """The model with only the strategies `kept` of each node."""
    edges = {}
    for (u, w), edge in model.edges.items():
        usage = {span: amounts[kept[u]][:, kept[w]] for span, amounts in edge.usage.items()}
        edges[u, w] = replace(edge, cost=edge.cost[kept[u]][:, kept[w]], usage=usage)
    return replace(
        model,
        costs=[costs[keep] for costs, keep in zip(model.costs, kept, strict=True)],
        usage=[{span: amounts[keep] for span, amounts in usage.items()} for usage, keep in zip(model.usage, kept, strict=True)],
        edges=edges,
    )
