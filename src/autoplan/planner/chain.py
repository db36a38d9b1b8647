"""A graph with repeated blocks as pieces that are linked by few nodes: one copy of each block, and all the rest.

A copy is linked to the one before it by one node, whose output it reads. All copies but the first are alike, so that what they
cost, given the strategies at their borders, is one table; a walk through it is a chain of copies that each decide for themselves.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from autoplan.graph.blocks import BlockRun, state_under
from autoplan.graph.ir import Graph
from autoplan.planner.build import Built
from autoplan.planner.prices import Array
from autoplan.planner.problem import FORBIDDEN, Problem, ProblemNode, ProblemValue, Reader
from autoplan.planner.split import runs_of

FIRST, SECOND, LATER = 0, 1, 2  # of the copies of a run: parts of it that decide for themselves
Place = tuple[int, int] | None
"""Where a node of the problem belongs: (run, part), None outside of all runs."""


class NotAChain(Exception):
    """Copies are linked in another way than each to the one before it, by one node."""


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of a problem as a problem of its own: `nodes[k]` is the number in the whole of its node k.

    `readers` has, by the name of a value, which of its readers are in the part. Of a copy, `entry` is the node of the copy before that
    it reads, `exit` its own such node; of the rest, `links` are by run that node of the first copy and that of the last. `shared`
    are the nodes that only stand for what all copies read.
    """

    problem: Problem
    nodes: tuple[int, ...]
    readers: Mapping[str, tuple[int, ...]]
    entry: int = -1
    exit: int = -1
    links: tuple[tuple[int, int], ...] = ()
    shared: frozenset[int] = frozenset()


@dataclass(frozen=True, slots=True)
class Chain:
    """The rest, with the first copy of every run, and by run a later copy and how often there is one."""

    rest: Piece
    copies: tuple[Piece, ...]
    counts: tuple[int, ...]


def nodes_of(built: Built, run: BlockRun, k: int) -> list[int]:
    """The problem nodes of copy k of a run, aligned with those of its other copies."""
    graph, classes = built.candidates.graph, built.candidates.classes
    sources = [built.terms.source_nodes[classes.value_class[value]] for value in state_under(graph, run, k)]
    return [*(classes.node_class[node] for node in run.nodes[k]), *sources]


def whole(built: Built) -> Chain:
    """A problem in one piece, without copies."""
    problem = built.problem
    nodes = tuple(replace(node, memory=()) for node in problem.nodes)
    values = tuple(replace(value, keepers=(), kept=()) for value in problem.values if not value.in_transit)
    readers = {value.name: tuple(range(len(value.readers))) for value in values}
    free = replace(problem, nodes=nodes, values=values, limits=(), peaks=())
    return Chain(Piece(free, tuple(range(len(nodes))), readers), (), ())


def parted(runs: Sequence[BlockRun]) -> list[BlockRun]:
    """The runs in parts: the first copy, the second, all later ones."""
    return [part for run in runs for part in runs_of(run, FIRST + 1, SECOND + 1)]


def chain_of(built: Built, runs: Sequence[BlockRun]) -> Chain:
    """The pieces of a problem of `parted(runs)`; raises NotAChain. Together they never cost more than the whole, whatever each copy does."""
    graph = built.candidates.graph
    for run in runs:
        _check(graph, run)
    return _Cutter(built, runs).chain()


def _check(graph: Graph, run: BlockRun) -> None:
    """Every copy reads and is read as the second one."""
    reading = [_reading(graph, run, k) for k in range(1, run.count)]
    inside = {node for copy in run.nodes for node in copy}
    before_last = [value for copy in run.nodes[:-1] for node in copy for value in graph.nodes[node].outputs]
    leaving = {*graph.outputs}
    escapes = any(value in leaving or any(reader.id not in inside for reader, _ in graph.consumers[value]) for value in before_last)
    if escapes or any(other != reading[0] for other in reading[1:]):
        raise NotAChain


def _reading(graph: Graph, run: BlockRun, k: int) -> list[tuple[tuple[str | int, ...], ...]]:
    """What each node of copy k reads: made in the copy, in the one before it, a parameter of its own, or from elsewhere."""
    names: dict[int, tuple[str | int, ...]] = {}
    for label, copy in (("before", run.nodes[k - 1]), ("own", run.nodes[k])):
        for position, node in enumerate(copy):
            names.update({value: (label, position, j) for j, value in enumerate(graph.nodes[node].outputs)})
    names.update({value: ("state", position) for position, value in enumerate(state_under(graph, run, k))})
    return [tuple(names.get(value, ("outside", value)) for value in graph.nodes[node].inputs) for node in run.nodes[k]]


class _Cutter:
    """Where each node belongs, and by that which part of every cost a piece has.

    What all copies of a run read, and only they, each of them has for itself (a *cone*), at its part of the cost; what others read
    as well stays with the rest, and each reading copy pays its part of bringing it there.
    """

    def __init__(self, built: Built, runs: Sequence[BlockRun]) -> None:
        self.problem = replace(built.problem, values=tuple(value for value in built.problem.values if not value.in_transit))
        self.runs = runs
        self.places: list[Place] = [None] * len(built.problem.nodes)
        for r, run in enumerate(runs):
            for k in range(run.count):
                for node in nodes_of(built, run, k):
                    self.places[node] = r, min(k, LATER)
        self.cones = [self._cone(r) for r in range(len(runs))]
        self.of_cone = {node: r for r, cone in enumerate(self.cones) for node in cone}

    def chain(self) -> Chain:
        """All pieces."""
        borders = [self._border(r) for r in range(len(self.runs))]
        return Chain(
            self._rest(borders),
            tuple(self._copy(r, border) for r, border in enumerate(borders)),
            tuple(run.count - 1 for run in self.runs),
        )

    def _cone(self, r: int) -> set[int]:
        """The nodes outside of run r that only all its copies need, directly or not, such as those of tables of positions."""
        made: dict[int, list[ProblemValue]] = {}
        for value in self.problem.values:
            made.setdefault(value.producer, []).append(value)

        def serves(value: ProblemValue) -> bool:
            inner = {reader.node for reader in value.readers} - found
            return not inner or (all(self._run(node) == r for node in inner) and self._is_read(value, (r, SECOND)))

        found: set[int] = set()
        while True:
            more = {node for node, values in made.items() if self.places[node] is None and all(map(serves, values))}
            if more == found:
                return found
            found = more

    def _run(self, node: int) -> int | None:
        place = self.places[node]
        return None if place is None else place[0]

    def _border(self, r: int) -> _Border:
        """Where run r is cut."""
        crossing = [v for v in self.problem.values if self.places[v.producer] == (r, FIRST) and self._is_read(v, (r, SECOND))]
        entries = {value.producer for value in crossing}
        if len(entries) != 1 or any(self.places[reader.node] != (r, SECOND) for value in crossing for reader in value.readers):
            raise NotAChain
        entry = entries.pop()
        parts = [[node for node, place in enumerate(self.places) if place == (r, part)] for part in (FIRST, SECOND, LATER)]
        position = parts[FIRST].index(entry)
        last_part = parts[LATER] or parts[SECOND]
        last = last_part[position]
        leaving = {v.producer for v in self.problem.values if v.producer in last_part and any(self._run(w.node) != r for w in v.readers)}
        if leaving - {last}:
            raise NotAChain
        return _Border(entry, parts[SECOND][position], last)

    def _is_read(self, value: ProblemValue, place: Place) -> bool:
        return any(self.places[reader.node] == place for reader in value.readers)

    def _rest(self, borders: Sequence[_Border]) -> Piece:
        lasts = {border.last for border in borders}
        inside = [node for node, place in enumerate(self.places) if place is None or place[1] == FIRST or node in lasts]
        number = {node: position for position, node in enumerate(inside)}
        costs = [0 if node in lasts else 1 / self._sharers(node) for node in inside]
        piece = self._piece(inside, costs, ((value, self._part_of_rest(value)) for value in self.problem.values))
        links = tuple((number[border.entry], number[border.last]) for border in borders)
        return replace(piece, links=links, shared=frozenset(number[node] for node in self.of_cone))

    def _copy(self, r: int, border: _Border) -> Piece:
        place = r, SECOND
        own = {node for node, other in enumerate(self.places) if other == place} | self.cones[r]
        read = {value.producer for value in self.problem.values if self._is_read(value, place)}
        inside = sorted(own | read)
        costs = [1 / self._sharers(node) if node in own else 0 for node in inside]
        piece = self._piece(inside, costs, ((value, self._part_of_copy(value, r)) for value in self.problem.values))
        shared = frozenset(position for position, node in enumerate(inside) if self.places[node] != place and node != border.entry)
        return replace(piece, entry=inside.index(border.entry), exit=inside.index(border.exit), shared=shared)

    def _sharers(self, node: int) -> int:
        """Among how many copies the cost of a node is divided."""
        return self.runs[self.of_cone[node]].count if node in self.of_cone else 1

    def _parties(self, value: ProblemValue) -> dict[int | None, int]:
        """How many copies of each run read a value from outside of it, and as one more all that is in no run."""
        found: dict[int | None, int] = {}
        for place in {self.places[reader.node] for reader in value.readers}:
            if place is None:
                found[None] = 1
            else:
                run, part = place
                found[run] = found.get(run, 0) + (1 if part != LATER else self.runs[run].count - LATER)
        return found

    def _part_of_rest(self, value: ProblemValue) -> float:
        """The part of what a value costs that the rest pays: all but what later copies do."""
        place = self.places[value.producer]
        if value.producer in self.of_cone:
            return 1 / self._sharers(value.producer)
        if place is not None and place[1] == FIRST:
            return float(not self._is_read(value, (place[0], SECOND)))
        parties = self._parties(value)
        rest = sum(n if run is None else self._is_read(value, (run, FIRST)) for run, n in parties.items())
        return rest / sum(parties.values())

    def _part_of_copy(self, value: ProblemValue, r: int) -> float:
        """The part of what a value costs that each later copy of run r pays."""
        if value.producer in self.of_cone:
            return (self.of_cone[value.producer] == r) / self._sharers(value.producer)
        if not self._is_read(value, (r, SECOND)):
            return 0.0
        return 1.0 if self._run(value.producer) == r else 1 / sum(self._parties(value).values())

    def _piece(self, inside: Sequence[int], costs: Sequence[float], parts: Iterable[tuple[ProblemValue, float]]) -> Piece:
        """Some nodes, and parts of what values cost as far as these nodes read them, without memory."""
        number = {node: position for position, node in enumerate(inside)}
        nodes = tuple(
            ProblemNode(self.problem.nodes[node].name, tuple(_part(np.array(self.problem.nodes[node].costs), part).tolist()), ())
            for node, part in zip(inside, costs, strict=True)
        )
        values, positions = [], {}
        for value, part in parts:
            reading = tuple(position for position, reader in enumerate(value.readers) if reader.node in number)
            if part and reading and value.producer in number:
                positions[value.name] = reading
                readers = tuple(Reader(number[value.readers[k].node], value.readers[k].needs) for k in reading)
                forward, backward = _part(value.forward, part), _part(value.backward, part)
                values.append(
                    replace(
                        value, producer=number[value.producer], readers=readers, forward=forward, backward=backward, keepers=(), kept=()
                    )
                )
        return Piece(replace(self.problem, nodes=nodes, values=tuple(values), limits=(), peaks=()), tuple(inside), positions)


@dataclass(frozen=True, slots=True)
class _Border:
    """Where a run is cut: the node of the first copy that the second reads, and this node in the second and in the last copy."""

    entry: int
    exit: int
    last: int


def _part(costs: Array, part: float) -> Array:
    """Part of costs, rounded down; what is forbidden stays so."""
    return np.where(costs == FORBIDDEN, FORBIDDEN, np.floor(costs * part).astype(np.int64))
