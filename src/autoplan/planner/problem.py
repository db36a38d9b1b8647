"""The optimisation problem in integers: nothing here knows torch, placements or the solver.

Choose one strategy for each node. A strategy costs something by itself and takes memory in every row. Values tie nodes
together: the producer's strategy makes the value in one state, each reader's strategy needs it in one state, and the
value is brought into each state that is needed once, whoever needs it:

    cost of a value = sum over distinct forward classes f of the needed states   forward[made][f]
                    + sum over distinct needed states q                          backward[made][q]

Rows of memory are limited: for each row the sum over nodes, plus what values keep, plus for each of its peaks the largest
group, is at most the limit. A value keeps a copy in each forward class that one of its keepers needs. (A peak is memory that only one group at a time uses: the temporaries of one
op, the gathered parameters of one block.)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

FORBIDDEN = -1  # a transition that cannot be

Vector = tuple[int, ...]
Matrix = tuple[Vector, ...]
Array = np.ndarray


@dataclass(frozen=True, slots=True)
class ProblemNode:
    """A decision: `costs[s]` and `memory[row][s]` of each strategy s."""

    name: str
    costs: Vector
    memory: Matrix


@dataclass(frozen=True, slots=True)
class Reader:
    """A node that reads a value: `needs[s]` is the state its strategy s needs, None if s reads only the shape."""

    node: int
    needs: tuple[int | None, ...]


@dataclass(frozen=True, slots=True)
class ProblemValue:
    """A value in `len(forward_class)` possible needed states, from `made[s]` of its producer's strategies s.

    `forward[p][f]` and `backward[p][q]` are costs or FORBIDDEN. `kept[row][f]` is what a copy in forward class f takes if
    one of `keepers` (positions among `readers`) needs it; `free[p]` is the class in which a value made in p needs no copy.
    One that is `in_transit` stands beside the value itself for the copies while they are made: for memory alone, it costs nothing.
    """

    name: str
    producer: int
    made: Vector
    readers: tuple[Reader, ...]
    forward_class: Vector
    forward: Array
    backward: Array
    keepers: tuple[int, ...]
    kept: Matrix
    free: tuple[int | None, ...]
    in_transit: bool = False

    @property
    def classes(self) -> int:
        """The number of forward classes."""
        return max(self.forward_class) + 1


@dataclass(frozen=True, slots=True)
class Group:
    """Memory in use at one time: by strategies of nodes, `(node, amounts[s])`, and kept copies of values, `(value, amounts[f])`."""

    nodes: tuple[tuple[int, Vector], ...] = ()
    values: tuple[tuple[int, Vector], ...] = ()


@dataclass(frozen=True, slots=True)
class Problem:
    """Nodes, values and the limit of every memory row; `peaks[row]` is a tuple of peaks, each a tuple of groups.

    `unit_s` and `unit_bytes` are what one of cost and of memory stand for. Costs that differ by less than `tie` are equal
    but for preferences among equals.
    """

    nodes: tuple[ProblemNode, ...]
    values: tuple[ProblemValue, ...]
    limits: Vector
    peaks: tuple[tuple[tuple[Group, ...], ...], ...]
    unit_s: float
    unit_bytes: int
    tie: int = 1

    @property
    def strategies(self) -> int:
        """The number of strategies over all nodes."""
        return sum(len(node.costs) for node in self.nodes)


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What a choice costs; `cost` is None where it uses a forbidden transition. `memory[row]` includes the peaks."""

    cost: int | None
    memory: Vector


@dataclass(frozen=True, slots=True)
class Solution:
    """A choice of one strategy per node; none costs less than `bound`.

    `status` is `optimal` if that is proved but for the problem's `tie`, else `feasible`; `interrupted` tells whether the user cut it short.
    """

    choice: Vector
    cost: int
    bound: int
    status: str
    interrupted: bool = False

    @property
    def gap(self) -> float:
        """How much better, relative to the cost, a plan might still be."""
        return (self.cost - self.bound) / self.cost if self.status != "optimal" and self.cost > self.bound else 0.0


@dataclass(frozen=True, slots=True)
class NoneCheaper:
    """No choice cheaper than a cutoff was found; none costs less than `bound`. If that reaches the cutoff, there is none.

    `interrupted` as in Solution.
    """

    bound: int
    interrupted: bool = False


def evaluate(problem: Problem, choice: Sequence[int]) -> Evaluation:
    """The cost and memory of a choice, by the definition above."""
    rows = range(len(problem.limits))
    cost: int | None = sum(node.costs[s] for node, s in zip(problem.nodes, choice, strict=True))
    memory = [sum(node.memory[row][s] for node, s in zip(problem.nodes, choice, strict=True)) for row in rows]
    kept = [kept_classes(value, choice) for value in problem.values]
    for value, classes in zip(problem.values, kept, strict=True):
        made = value.made[choice[value.producer]]
        states = {q for reader in value.readers if (q := reader.needs[choice[reader.node]]) is not None}
        entries = [value.backward[made][q] for q in states]
        entries += [value.forward[made][f] for f in {value.forward_class[q] for q in states}]
        cost = None if cost is None or FORBIDDEN in entries else cost + int(sum(entries))
        for row in rows:
            memory[row] += sum(value.kept[row][f] for f in classes)
    for row in rows:
        memory[row] += sum(max((_group_memory(group, choice, kept) for group in peak), default=0) for peak in problem.peaks[row])
    return Evaluation(cost, tuple(memory))


def cost_of(problem: Problem, choice: Sequence[int]) -> int:
    """What a choice costs that uses no forbidden transition."""
    cost = evaluate(problem, choice).cost
    assert cost is not None
    return cost


def kept_classes(value: ProblemValue, choice: Sequence[int]) -> frozenset[int]:
    """The forward classes in which a value keeps a copy of its own."""
    states = (value.readers[keeper].needs[choice[value.readers[keeper].node]] for keeper in value.keepers)
    return frozenset(value.forward_class[q] for q in states if q is not None) - {value.free[value.made[choice[value.producer]]]}


def top_groups(problem: Problem, choice: Sequence[int]) -> tuple[tuple[int, ...], ...]:
    """For every row and peak the number of the group that is largest under a choice; 0 where a peak has none."""
    kept = [kept_classes(value, choice) for value in problem.values]
    sizes = [[[_group_memory(group, choice, kept) for group in peak] for peak in peaks] for peaks in problem.peaks]
    return tuple(tuple(peak.index(max(peak)) if peak else 0 for peak in peaks) for peaks in sizes)


def _group_memory(group: Group, choice: Sequence[int], kept: Sequence[frozenset[int]]) -> int:
    by_nodes = sum(amounts[choice[node]] for node, amounts in group.nodes)
    return by_nodes + sum(amounts[f] for value, amounts in group.values for f in kept[value])


def restricted(problem: Problem, kept: Sequence[Array]) -> Problem:
    """The problem with only the strategies `kept` of each node, renumbered in that order."""

    def chosen(node: int, amounts: Sequence[int]) -> Vector:
        return tuple(amounts[s] for s in kept[node])

    nodes = (
        ProblemNode(node.name, chosen(u, node.costs), tuple(chosen(u, row) for row in node.memory)) for u, node in enumerate(problem.nodes)
    )
    values = (
        replace(
            value,
            made=chosen(value.producer, value.made),
            readers=tuple(Reader(reader.node, tuple(reader.needs[s] for s in kept[reader.node])) for reader in value.readers),
        )
        for value in problem.values
    )
    peaks = tuple(
        tuple(tuple(Group(tuple((u, chosen(u, amounts)) for u, amounts in group.nodes), group.values) for group in peak) for peak in row)
        for row in problem.peaks
    )
    return replace(problem, nodes=tuple(nodes), values=tuple(values), peaks=peaks)


def is_feasible(problem: Problem, choice: Sequence[int]) -> bool:
    """Whether a choice uses no forbidden transition and keeps every limit."""
    result = evaluate(problem, choice)
    return result.cost is not None and all(used <= limit for used, limit in zip(result.memory, problem.limits, strict=True))
