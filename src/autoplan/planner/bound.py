"""A lower bound on every strategy of a `Problem`, by message passing on its pairwise relaxation (TRW-S).

A value with K readers is brought into each needed state once. Charging every reader 1/K of its own state can only be less,
and is exact where all readers agree; so costs on nodes and on (producer, reader) pairs bound the problem from below. Memory
joins by multipliers: for any non-negative multiplier of a row, cost + multiplier x (memory - limit) is no more than the
cost of a choice within the limit; a peak counts as one of its groups. Any messages give a valid bound (Kolmogorov,
"Convergent Tree-reweighted Message Passing", 2006); sweeps only raise it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from autoplan.planner.problem import FORBIDDEN, Problem, ProblemValue, evaluate

Array = np.ndarray
SWEEPS = 60  # sweeps per multiplier; the bound of a transformer block stands still after some 30
MULTIPLIER_STEPS = 24


@dataclass(frozen=True, slots=True)
class Bound:
    """`value` bounds every choice from below, `conditional[u][s]` every choice with strategy s of node u; inf: impossible."""

    value: float
    conditional: tuple[Array, ...]


def bound(problem: Problem) -> Bound:
    """The best bound found; multipliers move only where the relaxation's own choice exceeds a limit."""
    best = _relax(problem, np.zeros(len(problem.limits)))
    if not np.isfinite(best.bound.value):
        return best.bound
    multipliers = np.zeros(len(problem.limits))
    scale = max(best.bound.value, 1.0)
    limits = np.array(problem.limits, dtype=float)
    for step in range(MULTIPLIER_STEPS):
        relaxed = _relax(problem, multipliers)
        if relaxed.bound.value > best.bound.value:
            best = relaxed
        excess = (np.array(evaluate(problem, relaxed.choice).memory) - limits) / np.maximum(limits, 1.0)
        if (excess <= 0).all() and not multipliers.any():
            break
        multipliers = np.maximum(0.0, multipliers + 0.5 * scale / (step + 1) * excess / max(np.abs(excess).max(), 1e-9) / np.maximum(limits, 1.0) * _pace(excess))
    return best.bound


def _pace(excess: Array) -> float:
    """Far from the limit larger steps: an excess of a tenth moves the multiplier by a tenth of the scale."""
    return float(min(1.0, 4.0 * np.abs(excess).max()))


@dataclass(slots=True)
class _Relaxed:
    bound: Bound
    choice: tuple[int, ...]


@dataclass(slots=True)
class _Pairwise:
    """Costs on nodes and pairs; `edges[(u, w)]` with u < w has a row per strategy of u."""

    nodes: list[Array]
    edges: dict[tuple[int, int], Array] = field(default_factory=dict)
    offset: float = 0.0

    def add_edge(self, u: int, w: int, matrix: Array) -> None:
        if u == w:
            self.nodes[u] = self.nodes[u] + np.diagonal(matrix)
            return
        key, matrix = ((u, w), matrix) if u < w else ((w, u), matrix.T)
        self.edges[key] = self.edges[key] + matrix if key in self.edges else matrix.copy()


def _pairwise(problem: Problem, multipliers: Array) -> _Pairwise:
    pair = _Pairwise([np.array(node.costs, dtype=float) for node in problem.nodes])
    for u, node in enumerate(problem.nodes):
        for row, weight in enumerate(multipliers):
            if weight:
                pair.nodes[u] = pair.nodes[u] + weight * np.array(node.memory[row], dtype=float)
    for value in problem.values:
        moved = (_costs(value.backward) + _costs(value.forward)[:, list(value.forward_class)]) / len(value.readers)
        kept = _kept(value, multipliers)
        for position, reader in enumerate(value.readers):
            cost = moved + kept if position in value.keepers else moved
            cost = np.concatenate([cost, np.zeros((len(cost), 1))], axis=1)  # the last column: not needed
            columns = [-1 if q is None else q for q in reader.needs]
            pair.add_edge(value.producer, reader.node, cost[list(value.made)][:, columns])
    for row, weight in enumerate(multipliers):
        pair.offset -= weight * problem.limits[row]
        if weight:
            _add_peaks(problem, row, weight, pair)
    return pair


def _kept(value: ProblemValue, multipliers: Array) -> Array:
    """For each (made, needed) what one keeper is charged for the copy it shares."""
    kept = np.zeros((len(value.free), len(value.forward_class)))
    for row, weight in enumerate(multipliers):
        if weight and value.keepers:
            kept += weight * np.array(value.kept[row], dtype=float)[list(value.forward_class)] / len(value.keepers)
    free = np.array([[home == f for f in value.forward_class] for home in value.free])
    kept[free] = 0.0
    return kept


def _add_peaks(problem: Problem, row: int, weight: float, pair: _Pairwise) -> None:
    """Each peak as the one of its groups of nodes that is never small."""
    for peak in problem.peaks[row]:
        groups = [group for group in peak if group.nodes and not group.values]
        if groups:
            largest = max(groups, key=lambda group: sum(min(amounts) for _, amounts in group.nodes))
            for node, amounts in largest.nodes:
                pair.nodes[node] = pair.nodes[node] + weight * np.array(amounts, dtype=float)


def _costs(matrix: Sequence[Sequence[int]]) -> Array:
    array = np.array(matrix, dtype=float)
    array[array == FORBIDDEN] = np.inf
    return array


def _relax(problem: Problem, multipliers: Array) -> _Relaxed:
    """The bound for these multipliers, swept until it stands still, and the choice that it suggests."""
    pair = _pairwise(problem, multipliers)
    alive = _arc_consistent(pair)
    if not all(keep.any() for keep in alive):
        return _Relaxed(Bound(float("inf"), tuple(np.full(len(keep), np.inf) for keep in alive)), tuple(0 for _ in alive))
    passing = _Passing(pair, alive)
    last = -np.inf
    for _ in range(SWEEPS):
        passing.sweep()
        if passing.value - last <= 1e-7 * abs(passing.value):
            break
        last = passing.value
    return _Relaxed(passing.bound(), passing.decode())


def _arc_consistent(pair: _Pairwise) -> list[Array]:
    """Strategies with a possible partner along every edge; the others go, so that no two infinities ever meet."""
    alive = [np.isfinite(costs) for costs in pair.nodes]
    changed = True
    while changed:
        changed = False
        for (u, w), matrix in pair.edges.items():
            possible = np.isfinite(matrix) & alive[u][:, None] & alive[w][None, :]
            for node, supported in ((u, possible.any(1)), (w, possible.any(0))):
                if (alive[node] & ~supported).any():
                    alive[node] = alive[node] & supported
                    changed = True
    return alive


class _Passing:
    """The costs of nodes and edges, moved between them such that no choice's total changes; their minima bound all choices."""

    def __init__(self, pair: _Pairwise, alive: list[Array]) -> None:
        self.alive = alive
        self.nodes = [costs[keep] for costs, keep in zip(pair.nodes, alive, strict=True)]
        self.edges = {(u, w): matrix[alive[u]][:, alive[w]] for (u, w), matrix in pair.edges.items()}
        self.later: list[list[tuple[int, int]]] = [[] for _ in self.nodes]
        self.earlier: list[list[tuple[int, int]]] = [[] for _ in self.nodes]
        for u, w in self.edges:
            self.later[u].append((u, w))
            self.earlier[w].append((u, w))
        self.value = float(pair.offset + sum(costs.min() for costs in self.nodes) + sum(matrix.min() for matrix in self.edges.values()))
        self.conditional = [np.full(len(costs), -np.inf) for costs in self.nodes]

    def sweep(self) -> None:
        """Forwards and backwards through all nodes, once."""
        for u in range(len(self.nodes)):
            self._visit(u, self.later[u])
        for u in reversed(range(len(self.nodes))):
            self._visit(u, self.earlier[u])

    def _visit(self, u: int, onwards: list[tuple[int, int]]) -> None:
        """Collect at node u what its edges hold, note the bound on each strategy, and hand equal shares on."""
        edges = self.later[u] + self.earlier[u]
        self.value -= self.nodes[u].min() + sum(self.edges[edge].min() for edge in edges)
        for edge in self.later[u]:
            held = self.edges[edge].min(1)
            self.edges[edge] -= held[:, None]
            self.nodes[u] += held
        for edge in self.earlier[u]:
            held = self.edges[edge].min(0)
            self.edges[edge] -= held[None, :]
            self.nodes[u] += held
        self.conditional[u] = np.maximum(self.conditional[u], self.value + self.nodes[u])  # the edges' minima are 0 now
        share = self.nodes[u] / max(len(self.later[u]), len(self.earlier[u]), 1)
        for edge in onwards:
            self.edges[edge] += share[:, None] if edge[0] == u else share[None, :]
            self.nodes[u] = self.nodes[u] - share
        self.value += float(self.nodes[u].min() + sum(self.edges[edge].min() for edge in edges))

    def bound(self) -> Bound:
        """The bound, and the strongest seen for each strategy."""
        conditional = []
        for keep, known in zip(self.alive, self.conditional, strict=True):
            full = np.full(len(keep), np.inf)
            full[keep] = np.maximum(known, self.value)
            conditional.append(full)
        return Bound(self.value, tuple(conditional))

    def decode(self) -> tuple[int, ...]:
        """Node by node the strategy that suits those decided and, by what its edges hold, those to come."""
        chosen: list[int] = []
        for u in range(len(self.nodes)):
            total = self.nodes[u] + sum((self.edges[edge].min(1) for edge in self.later[u]), np.zeros(len(self.nodes[u])))
            for edge in self.earlier[u]:
                total = total + self.edges[edge][chosen[edge[0]]]
            chosen.append(int(total.argmin()))
        return tuple(int(np.flatnonzero(keep)[s]) for keep, s in zip(self.alive, chosen, strict=True))
