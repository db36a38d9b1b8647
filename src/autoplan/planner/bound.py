"""A lower bound on every strategy of a `Problem`, by message passing on pairwise relaxations (TRW-S).

A value is brought into each needed state once, whoever reads it so. Charging each reader a share of that, the shares of one
state adding up to 1, can only be less; so costs on nodes and on (producer, reader) pairs bound the problem from below, whatever
the shares. They start out equal and move to the readers that use the state. Memory joins by multipliers: for any non-negative
multiplier of a row, cost + multiplier x (memory - limit) is no more than the cost of a choice within the limit; a peak counts
as one of its groups. Any messages give a valid bound (Kolmogorov, "Convergent Tree-reweighted Message Passing", 2006), so all
of these only ever raise it, and the strongest bound seen counts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from autoplan.planner.problem import FORBIDDEN, Evaluation, Group, Matrix, Problem, ProblemValue, evaluate, top_groups

Array = np.ndarray
FIRST_SWEEPS = 40  # at most, before shares and multipliers move for the first time
SWEEPS = 8  # at most, between two moves
ROUNDS = 60  # of moving them
PATIENCE = 10  # rounds without a better bound


@dataclass(frozen=True, slots=True)
class Bound:
    """`value` bounds every choice from below, `conditional[u][s]` every choice with strategy s of node u; inf: impossible.

    `choice` is the best feasible one met on the way, None if there was none.
    """

    value: float
    conditional: tuple[Array, ...]
    choice: tuple[int, ...] | None = None


def bound(problem: Problem) -> Bound:
    """The best bound found on the cost. Multipliers move only where the relaxation's own choice exceeds a limit."""
    limits = np.array(problem.limits, dtype=float)

    def worth(result: Evaluation) -> float:
        fits = all(used <= limit for used, limit in zip(result.memory, problem.limits, strict=True))
        return float(result.cost) if result.cost is not None and fits else np.inf

    def move(multipliers: Array, result: Evaluation, best: float, round_: int) -> Array:
        excess = (np.array(result.memory) - limits) / np.maximum(limits, 1.0)
        return _moved(multipliers, excess, limits, scale=max(abs(best), 1.0), round_=round_)

    return _ascend(problem, np.zeros(len(limits)), worth, move)


def memory_bound(problem: Problem) -> Bound:
    """The best bound found on the greatest row of memory, whatever it costs: any weights of the rows that add up to 1 give one."""
    rows = len(problem.limits)

    def worth(result: Evaluation) -> float:
        return float(max(result.memory)) if result.cost is not None else np.inf

    def move(weights: Array, result: Evaluation, best: float, round_: int) -> Array:
        target = np.eye(rows)[int(np.argmax(result.memory))]
        return weights + (target - weights) / (2 + round_ / 4)

    return _ascend(_of_memory_alone(problem), np.full(rows, 1 / rows), worth, move)


def _of_memory_alone(problem: Problem) -> Problem:
    """The problem with nothing to pay and no memory to use; what is impossible stays so."""

    def free(matrix: Matrix) -> Matrix:
        return tuple(tuple(FORBIDDEN if cost == FORBIDDEN else 0 for cost in row) for row in matrix)

    return replace(
        problem,
        nodes=tuple(replace(node, costs=(0,) * len(node.costs)) for node in problem.nodes),
        values=tuple(replace(value, forward=free(value.forward), backward=free(value.backward)) for value in problem.values),
        limits=(0,) * len(problem.limits),
    )


def _ascend(
    problem: Problem, multipliers: Array, worth: Callable[[Evaluation], float], move: Callable[[Array, Evaluation, float, int], Array]
) -> Bound:
    """Sweep, look at the choice that the messages suggest, move multipliers and shares towards what it uses, and again."""
    shares = [_Shares.equal(value) for value in problem.values]
    tops = tuple(tuple(0 for _ in peaks) for peaks in problem.peaks)
    pair = _pairwise(problem, multipliers, shares, tops)
    alive = _arc_consistent(pair)
    if not all(keep.any() for keep in alive):
        return Bound(float("inf"), tuple(np.full(len(keep), np.inf) for keep in alive))
    passing = _Passing(pair, alive)
    best, best_choice, best_worth, idle = -np.inf, None, np.inf, 0
    for round_ in range(ROUNDS):
        passing.settle(SWEEPS if round_ else FIRST_SWEEPS)
        choice = passing.decode()
        result = evaluate(problem, choice)
        if worth(result) < best_worth:
            best_choice, best_worth = choice, worth(result)
        idle = 0 if not round_ or passing.value > best + 1e-6 * abs(best) else idle + 1
        best = max(best, passing.value)
        if idle >= PATIENCE or best_worth <= best + 1e-7 * abs(best):
            break
        multipliers = move(multipliers, result, best, round_)
        for value, share in zip(problem.values, shares, strict=True):
            share.move(value, choice)
        passing.move_to(_pairwise(problem, multipliers, shares, top_groups(problem, choice)))
    return Bound(best, passing.strongest(best), best_choice)


def _moved(multipliers: Array, excess: Array, limits: Array, *, scale: float, round_: int) -> Array:
    """Multipliers after a step towards what the excess over the limits asks for; far from them larger steps."""
    largest = np.abs(excess).max()
    if not multipliers.any() and (excess <= 0).all() or largest == 0:
        return multipliers
    pace = min(1.0, 4.0 * largest) / largest
    return np.maximum(0.0, multipliers + 0.5 * scale / (1 + round_ / 2) * pace * excess / np.maximum(limits, 1.0))


@dataclass(slots=True)
class _Shares:
    """What part of a value's costs each reader is charged: `forward[r, f]` and `backward[r, q]`, adding up to 1 over readers."""

    forward: Array
    backward: Array

    @classmethod
    def equal(cls, value: ProblemValue) -> _Shares:
        readers = len(value.readers)
        return cls(np.full((readers, value.classes), 1 / readers), np.full((readers, len(value.forward_class)), 1 / readers))

    def move(self, value: ProblemValue, choice: tuple[int, ...]) -> None:
        """Half the way to charging only the readers that use a state, where any does."""
        if len(value.readers) == 1:
            return
        states = np.array([-1 if (q := reader.needs[choice[reader.node]]) is None else q for reader in value.readers])
        classes = np.array([-1 if q < 0 else value.forward_class[q] for q in states])
        for shares, used in ((self.backward, states), (self.forward, classes)):
            for column in set(used.tolist()) - {-1}:
                using = used == column
                shares[:, column] = 0.5 * shares[:, column] + 0.5 * using / using.sum()


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


def _pairwise(problem: Problem, multipliers: Array, shares: Sequence[_Shares], tops: Sequence[Sequence[int]]) -> _Pairwise:
    """The relaxation for these multipliers and shares, each peak of memory being its group `tops[row][peak]`."""
    pair = _Pairwise([np.array(node.costs, dtype=float) for node in problem.nodes])
    kept = [np.zeros(value.classes) for value in problem.values]  # what a copy of each value costs, by forward class
    for row, weight in enumerate(multipliers):
        if weight:
            pair.offset -= weight * problem.limits[row]
            _charge_memory(problem, row, weight, tops[row], pair, kept)
    for value, share, copies in zip(problem.values, shares, kept, strict=True):
        backward, forward, classes = _costs(value.backward), _costs(value.forward), list(value.forward_class)
        charged = _copy_costs(value, copies)
        for position, reader in enumerate(value.readers):
            cost = _times(backward, share.backward[position]) + _times(forward, share.forward[position])[:, classes]
            if position in value.keepers:
                cost = cost + charged
            cost = np.concatenate([cost, np.zeros((len(cost), 1))], axis=1)  # the last column: not needed
            columns = [-1 if q is None else q for q in reader.needs]
            pair.add_edge(value.producer, reader.node, cost[list(value.made)][:, columns])
    return pair


def _charge_memory(problem: Problem, row: int, weight: float, tops: Sequence[int], pair: _Pairwise, kept: list[Array]) -> None:
    """Add one row's memory, `weight` for each unit of it: to nodes, and to the copies of values."""
    for u, node in enumerate(problem.nodes):
        pair.nodes[u] = pair.nodes[u] + weight * np.array(node.memory[row], dtype=float)
    for v, value in enumerate(problem.values):
        kept[v] += weight * np.array(value.kept[row], dtype=float)
    for top, peak in zip(tops, problem.peaks[row], strict=True):
        group = peak[top] if peak else Group()
        for u, amounts in group.nodes:
            pair.nodes[u] = pair.nodes[u] + weight * np.array(amounts, dtype=float)
        for v, amounts in group.values:
            kept[v] += weight * np.array(amounts, dtype=float)


def _copy_costs(value: ProblemValue, copies: Array) -> Array:
    """For each (made, needed) what one keeper is charged for the copy it shares."""
    charged = np.tile(copies[list(value.forward_class)] / max(len(value.keepers), 1), (len(value.free), 1))
    charged[np.array([[home == f for f in value.forward_class] for home in value.free])] = 0.0
    return charged


def _costs(matrix: Sequence[Sequence[int]]) -> Array:
    array = np.array(matrix, dtype=float)
    array[array == FORBIDDEN] = np.inf
    return array


def _times(costs: Array, share: Array) -> Array:
    """Costs times a share of them; what is impossible stays so."""
    return np.where(np.isfinite(costs), np.where(np.isfinite(costs), costs, 0.0) * share, np.inf)


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
        self.edges = self._alive_edges(pair)
        self.pair = pair
        self.later: list[list[tuple[int, int]]] = [[] for _ in self.nodes]
        self.earlier: list[list[tuple[int, int]]] = [[] for _ in self.nodes]
        for u, w in self.edges:
            self.later[u].append((u, w))
            self.earlier[w].append((u, w))
        self.value = self._total()
        self.conditional = [np.full(len(costs), -np.inf) for costs in self.nodes]

    def _alive_edges(self, pair: _Pairwise) -> dict[tuple[int, int], Array]:
        return {(u, w): matrix[self.alive[u]][:, self.alive[w]] for (u, w), matrix in pair.edges.items()}

    def _total(self) -> float:
        return float(self.pair.offset + sum(costs.min() for costs in self.nodes) + sum(matrix.min() for matrix in self.edges.values()))

    def move_to(self, pair: _Pairwise) -> None:
        """Go on with another relaxation of the same problem: what the messages have moved stays moved."""
        before, after = self._alive_edges(self.pair), self._alive_edges(pair)
        for edge, matrix in after.items():
            possible = np.isfinite(matrix)
            self.edges[edge] = np.where(
                possible, self.edges[edge] + np.where(possible, matrix, 0.0) - np.where(possible, before[edge], 0.0), np.inf
            )
        for u, keep in enumerate(self.alive):
            self.nodes[u] = self.nodes[u] + (pair.nodes[u] - self.pair.nodes[u])[keep]
        self.pair = pair
        self.value = self._total()

    def settle(self, sweeps: int) -> None:
        """Sweep until the bound stands still, `sweeps` times at most."""
        last = -np.inf
        for _ in range(sweeps):
            self.sweep()
            if self.value - last <= 1e-7 * abs(self.value):
                break
            last = self.value

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

    def strongest(self, value: float) -> tuple[Array, ...]:
        """For each strategy the strongest bound seen, `value` at least."""
        conditional = []
        for keep, known in zip(self.alive, self.conditional, strict=True):
            full = np.full(len(keep), np.inf)
            full[keep] = np.maximum(known, value)
            conditional.append(full)
        return tuple(conditional)

    def decode(self) -> tuple[int, ...]:
        """Node by node the strategy that suits those decided and, by what its edges hold, those to come."""
        chosen: list[int] = []
        for u in range(len(self.nodes)):
            total = self.nodes[u] + sum((self.edges[edge].min(1) for edge in self.later[u]), np.zeros(len(self.nodes[u])))
            for edge in self.earlier[u]:
                total = total + self.edges[edge][chosen[edge[0]]]
            chosen.append(int(total.argmin()))
        return tuple(int(np.flatnonzero(keep)[s]) for keep, s in zip(self.alive, chosen, strict=True))
