"""A `Problem` as the solver's `Model`: the same decisions, and nodes that see to it that what is shared is paid once.

A value is brought into a state once, whoever needs it. One of its readers, the payer, is charged for the state that it needs,
in an edge with the producer. Every other reader gets a node that says where its state comes from: from a reader before it,
from home, or paid for. Memory that only one group at a time uses becomes a row for each combination of groups; only those
that are exceeded will ever matter.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from autoplan.planner.problem import FORBIDDEN as NEVER
from autoplan.planner.problem import Group, Problem, ProblemValue
from autoplan.planner.solver.model import FORBIDDEN, Array, Edge, Model, Span

HOME, PAID = -1, -2  # where a state comes from, unless from a reader

Name = tuple[tuple[int, ...], tuple[int, ...]]
"""The nodes and the values of a group."""

Row = tuple[int, Name, Name]
"""The problem's row that a row of the model stands for, and which group is the largest of each of its peaks there."""


def model_of(problem: Problem) -> Model:
    """The model whose first nodes are the problem's; a choice of it begins with the problem's choice."""
    return Modeller(problem).model()


def extended(model: Model, choice: Sequence[int]) -> tuple[int, ...]:
    """The model's choice for a possible one of the problem: every state from where it is cheapest, the first of its node's states."""
    chosen = list(choice)
    around = {node: np.zeros(len(model.costs[node]), dtype=np.int64) for node in range(len(choice), len(model.costs))}
    for (u, w), edge in model.edges.items():
        if w in around:
            around[w] = np.maximum(around[w], edge.cost[chosen[u]])
    return (*chosen, *(int((costs >= FORBIDDEN).argmin()) for costs in around.values()))


@dataclass(frozen=True, slots=True)
class Place:
    """What a node of a model stands for: `numbers` of its strategies among the `size` that there may be under its name."""

    name: object
    size: int
    numbers: Array

    def among(self, kept: Array) -> Place:
        """The same where only some of its strategies are left."""
        return replace(self, numbers=self.numbers[kept])


class Modeller:
    """A problem's nodes, edges and rows under construction."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        self.costs = [np.array(node.costs, dtype=np.int64) for node in problem.nodes]
        self.usage: list[dict[Span, Array]] = [{} for _ in problem.nodes]
        self.places = [Place(u, len(costs), np.arange(len(costs))) for u, costs in enumerate(self.costs)]
        self.edges: dict[tuple[int, int], Edge] = {}
        self.limits: list[int] = []
        self.kept: list[dict[Span, Array]] = [{} for _ in problem.values]  # by value: what a copy in each class uses

    def model(self) -> Model:
        """The whole."""
        for row in range(len(self.problem.limits)):
            self._add_row(row)
        for value, kept in zip(self.problem.values, self.kept, strict=True):
            self._add_value(value, kept)
        return Model(self.costs, self.usage, self.edges, np.array(self.limits, dtype=np.int64))

    def _add_row(self, row: int) -> None:
        """One row of the model for each combination of groups that can be the largest of their peaks."""
        peaks = _two_peaks(self.problem, row)
        first, second = map(len, peaks)
        start, stop = len(self.limits), len(self.limits) + first * second
        self.limits += [self.problem.limits[row]] * (first * second)
        everywhere = Span(start, stop)
        for u, node in enumerate(self.problem.nodes):
            self._use(self.usage[u], everywhere, node.memory[row])
        for v, value in enumerate(self.problem.values):
            self._use(self.kept[v], everywhere, value.kept[row])
        spans = (
            [Span(start + i * second, start + (i + 1) * second) for i in range(first)],
            [Span(start + j, stop, second) for j in range(second)],
        )
        for peak, places in zip(peaks, spans, strict=False):
            for group, span in zip(peak, places, strict=True):
                for u, amounts in group.nodes:
                    self._use(self.usage[u], span, amounts)
                for v, amounts in group.values:
                    self._use(self.kept[v], span, amounts)

    def _use(self, usage: dict[Span, Array], span: Span, amounts: Sequence[int]) -> None:
        if any(amounts):
            usage[span] = usage.get(span, 0) + np.array(amounts, dtype=np.int64)

    def _add_value(self, value: ProblemValue, kept: dict[Span, Array]) -> None:
        made = np.array(value.made)
        backward, forward = _costs(value.backward)[made], _costs(value.forward)[made]
        nodes = [reader.node for reader in value.readers]
        states = [np.array([-1 if q is None else q for q in reader.needs]) for reader in value.readers]
        of_state = np.array([*value.forward_class, -1])
        classes = [of_state[needed] for needed in states]
        for node, needed, class_ in zip(nodes, states, classes, strict=True):
            self._forbid(value.producer, node, price_of(backward, needed) + price_of(forward, class_) >= FORBIDDEN)
        home = np.array([-1 if f is None else f for f in value.free])[made]
        self._share_value(value, backward, forward, kept, home, states, classes)

    def _share_value(
        self,
        value: ProblemValue,
        backward: Array,
        forward: Array,
        kept: dict[Span, Array],
        home: Array,
        states: list[Array],
        classes: list[Array],
    ) -> None:
        """What the readers of a value share: its gradient by state, and by forward class the value itself and the copies kept of it."""
        nodes, nowhere = [reader.node for reader in value.readers], np.full(len(backward), -1)
        self._share((value.name, "backward"), value.producer, backward, {}, nowhere, nodes, states)
        self._share((value.name, "forward"), value.producer, forward, {}, nowhere, nodes, classes)
        if kept and value.keepers:
            keepers = value.keepers
            readers, labels = [nodes[k] for k in keepers], [classes[k] for k in keepers]
            self._share((value.name, "kept"), value.producer, np.zeros_like(forward), kept, home, readers, labels)

    def _share(
        self,
        name: tuple[str, str],
        producer: int,
        costs: Array,
        uses: dict[Span, Array],
        home: Array,
        readers: Sequence[int],
        labels: Sequence[Array],
    ) -> None:
        """Each label that a reader's strategy has is paid once: `costs[producer's strategy, label]`, and `uses` unless it is at home."""
        if not uses and not costs[costs < FORBIDDEN].any():
            return
        payer = next((r for r, label in enumerate(labels) if (label >= 0).all()), 0)
        away = home[:, None] != labels[payer][None, :]
        self._add_edge(
            producer,
            readers[payer],
            price_of(known_costs(costs), labels[payer]),
            {span: np.where(away & (labels[payer] >= 0), np.append(amounts, 0)[labels[payer]], 0) for span, amounts in uses.items()},
        )
        before = [payer]
        for r in range(len(readers)):
            if r != payer:
                self._add_source(name, producer, costs, uses, home, readers, labels, before, r)
                before.append(r)

    def _add_source(
        self,
        name: tuple[str, str],
        producer: int,
        costs: Array,
        uses: dict[Span, Array],
        home: Array,
        readers: Sequence[int],
        labels: Sequence[Array],
        before: Sequence[int],
        r: int,
    ) -> None:
        """A node for where reader r has its label from; its states are (source, label), the cheapest source first."""
        prices = known_costs(costs)
        priced = np.asarray(prices.any(0))
        for amounts in uses.values():
            priced = priced | (amounts > 0)
        needed = sorted(set(labels[r].tolist()))
        if not priced[[label for label in needed if label >= 0]].any():
            return
        states = [(j, label) for j in before for label in needed if label >= 0 and (labels[j] == label).any()]
        states += [(HOME, label) for label in needed if label < 0 or not priced[label] or (uses and (home == label).any())]
        states += [(PAID, label) for label in needed if label >= 0 and priced[label]]
        source, label = np.array(states).T
        node = len(self.costs)
        paid = source == PAID
        self.costs.append(np.zeros(len(states), dtype=np.int64))
        every = costs.shape[1] + 1  # label, and none
        self.places.append(Place((*name, r), (len(labels) + 2) * every, (source - PAID) * every + label + 1))
        self.usage.append({span: np.where(paid, amounts[label], 0) for span, amounts in uses.items()})
        self._forbid(node, readers[r], label[:, None] != labels[r][None, :])
        for j in before:
            self._forbid(node, readers[j], (source == j)[:, None] & (label[:, None] != labels[j][None, :]))
        free = (label < 0) | ~priced[label]
        self._forbid(node, producer, ((source == HOME) & ~free)[:, None] & (label[:, None] != home[None, :]))
        self._add_edge(node, producer, np.where(paid[:, None], prices.T[label], 0), {})

    def _forbid(self, u: int, w: int, never: Array) -> None:
        if never.any():
            self._add_edge(u, w, np.where(never, FORBIDDEN, 0), {})

    def _add_edge(self, u: int, w: int, cost: Array, usage: dict[Span, Array]) -> None:
        usage = {span: amounts for span, amounts in usage.items() if amounts.any()}
        if u == w:
            self.costs[u] = np.minimum(self.costs[u] + np.diagonal(cost), FORBIDDEN)
            for span, amounts in usage.items():
                self.usage[u][span] = self.usage[u].get(span, 0) + np.diagonal(amounts)
            return
        key, edge = ((u, w), Edge(cost, usage)) if u < w else ((w, u), Edge(cost, usage).seen_from_second())
        before = self.edges.get(key)
        if before is not None:
            spans = {*before.usage, *edge.usage}
            sums = {span: before.usage.get(span, 0) + edge.usage.get(span, 0) for span in spans}
            edge = Edge(np.minimum(before.cost + edge.cost, FORBIDDEN), {span: np.asarray(amounts) for span, amounts in sums.items()})
        self.edges[key] = edge


def rows_of(problem: Problem) -> list[Row]:
    """What each row of the model stands for."""
    found = []
    for row in range(len(problem.limits)):
        first, second = ([_name(group) for group in peak] for peak in _two_peaks(problem, row))
        found += [(row, one, other) for one in first for other in second]
    return found


def _two_peaks(problem: Problem, row: int) -> list[list[Group]]:
    """The groups of a row's peaks; of a peak that it lacks one that takes nothing."""
    peaks = [_groups(peak) for peak in problem.peaks[row]]
    assert len(peaks) <= 2, "more than two peaks do not make ranges of rows"
    return [*peaks, [Group()], [Group()]][:2]


def _groups(peak: Sequence[Group]) -> list[Group]:
    """The groups of a peak, without those that are never larger than what another one always needs."""
    least = [sum(min(amounts) for _, amounts in group.nodes) for group in peak]
    most = [sum(max(amounts) for _, amounts in group.nodes) + sum(sum(amounts) for _, amounts in group.values) for group in peak]
    surest = max(range(len(peak)), key=lambda i: (least[i], -i), default=0)
    return [group for i, group in enumerate(peak) if i == surest or most[i] > least[surest]] or [Group()]


def _name(group: Group) -> Name:
    return tuple(u for u, _ in group.nodes), tuple(v for v, _ in group.values)


def known_costs(costs: Array) -> Array:
    """Costs without those that are forbidden."""
    return np.where(costs >= FORBIDDEN, 0, costs)


def price_of(costs: Array, labels: Array) -> Array:
    """`costs[:, label]` for each label, nothing for -1."""
    return np.where(labels >= 0, costs[:, labels], 0)


def _costs(matrix: Array) -> Array:
    array = np.array(matrix, dtype=np.int64)
    return np.where(array == NEVER, FORBIDDEN, array)
