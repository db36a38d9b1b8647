"""The terms of a folded problem where copies of its blocks decide for themselves: nothing is priced again.

Classes become finer, what may be chosen in them stays: a class of a few copies chooses among what the class of all did, so that
every choice of the folded problem is one of the split problem.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace

from autoplan.assignment.names import block_of
from autoplan.graph.blocks import BlockRun, NodeClasses, classes
from autoplan.planner.candidates import Candidates
from autoplan.planner.problem import Reader
from autoplan.planner.terms import OpTerms, Readers, SourceTerms, Terms, ValueTerms, recosted

FINER = 256  # times: units of cost where copies decide for themselves


def split_candidates(candidates: Candidates, runs: Iterable[BlockRun]) -> Candidates:
    """The candidates where only copies of the same of `runs` decide alike; these are parts of the runs that are folded."""
    before = candidates.classes
    now = classes(candidates.graph, runs)
    assert all(len({before.node_class[node] for node in members}) == 1 for members in now.node_members), "classes become finer"
    of_node = [before.node_class[node] for node in now.node_representatives]
    return replace(
        candidates,
        classes=now,
        calls=tuple(candidates.calls[c] for c in of_node),
        strategies=tuple(candidates.strategies[c] for c in of_node),
        sources={
            c: candidates.sources[before.value_class[value]]
            for c, value in enumerate(now.value_representatives)
            if before.value_class[value] in candidates.sources
        },
        never_gathered=frozenset(
            c for c, value in enumerate(now.value_representatives) if before.value_class[value] in candidates.never_gathered
        ),
    )


def split_terms(terms: Terms, runs: Iterable[BlockRun]) -> Terms:
    """The terms where only copies of the same of `runs` decide alike; nothing may travel ahead yet. Their units are finer.

    There are as many terms more as there are copies, and each is rounded and has a preference among equals.
    """
    assert not terms.prefetch
    return _Splitter(terms, split_candidates(terms.candidates, runs)).terms()


def runs_of(run: BlockRun, *bounds: int) -> Iterator[BlockRun]:
    """The parts of a run that begin at 0 and at `bounds`, without those of one copy, which need no folding."""
    edges = (0, *bounds, run.count)
    for first, after in zip(edges, edges[1:], strict=False):
        if after - first > 1:
            yield BlockRun(run.prefix, run.indices[first:after], run.nodes[first:after], run.parameters[first:after])


def folded_nodes(folded: Terms, split: Terms) -> tuple[int, ...]:
    """By problem node of the split terms, the node of the folded ones that it is part of."""
    old, now = folded.candidates.classes, split.candidates.classes
    ops = (old.node_class[node] for node in now.node_representatives)
    sources = (folded.source_nodes[old.value_class[now.value_representatives[c]]] for c in split.source_nodes)
    return (*ops, *sources, *folded.output_nodes)


def folded_values(folded: Terms, split: Terms) -> Iterator[tuple[ValueTerms, ValueTerms]]:
    """The values of the split terms, each behind the folded one that it is part of."""
    of_member = {member: value for value in folded.values for member in value.members}
    return ((of_member[value.members[0]], value) for value in split.values)


class _Splitter:
    def __init__(self, terms: Terms, candidates: Candidates) -> None:
        self.before, self.candidates = terms, candidates
        self.unit_s = terms.unit_s / FINER
        self.graph, self.classes = candidates.graph, candidates.classes
        first = len(candidates.strategies)
        self.source_nodes = {c: first + position for position, c in enumerate(candidates.sources)}
        first += len(candidates.sources)
        self.outputs = tuple(range(first, first + len(candidates.outputs)))

    def terms(self) -> Terms:
        """Ops, sources and values of the finer classes."""
        old: NodeClasses = self.before.candidates.classes
        sources = dict(zip(self.before.candidates.sources, self.before.sources, strict=True))
        return replace(
            self.before,
            candidates=self.candidates,
            unit_s=self.unit_s,
            ops=tuple(self._op(self.before.ops[old.node_class[members[0]]], members) for members in self.classes.node_members),
            sources=tuple(self._source(sources[old.value_class[self.classes.value_members[c][0]]], c) for c in self.candidates.sources),
            values=tuple(part for value in self.before.values for part in self._values(value)),
            source_nodes=self.source_nodes,
            output_nodes=self.outputs,
        )

    def _op(self, op: OpTerms, members: tuple[int, ...]) -> OpTerms:
        made = tuple((tuple(self.graph.nodes[node].outputs[j] for node in members), nbytes) for j, (_, nbytes) in enumerate(op.made))
        return replace(op, name=self.graph.nodes[members[0]].address, members=members, made=made)

    def _source(self, source: SourceTerms, c: int) -> SourceTerms:
        members = self.classes.value_members[c]
        return replace(source, name=self.graph.values[members[0]].address, members=members)

    def _values(self, value: ValueTerms) -> Iterator[ValueTerms]:
        """The parts of what was one term: values whose producers and readers are still of the same classes."""
        needs = {reading: reader.needs for reading, reader in zip(value.reading, value.readers, strict=True)}
        parts: dict[tuple[int, Readers], list[int]] = {}
        of_reader: dict[tuple[int, int], tuple[int, int]] = {}
        for member in value.members:
            readers = dict(self._readers(member))
            of_reader.update(readers)
            parts.setdefault((self._producer(member), tuple(sorted(readers))), []).append(member)
        for (producer, reading), members in parts.items():
            address = self.graph.values[members[0]].address
            yield replace(
                value,
                name=address,
                members=tuple(members),
                producer=producer,
                reading=reading,
                readers=tuple(Reader(reader[0], needs[of_reader[reader]]) for reader in reading),
                forward=recosted(value.forward, value.forward_s * len(members), self.unit_s),
                backward=recosted(value.backward, value.backward_s * len(members), self.unit_s),
                block=block_of(address, self.before.prices.prefixes) if value.kind == "parameter" else None,
            )

    def _producer(self, member: int) -> int:
        if self.graph.values[member].kind == "op":
            return self.classes.node_class[self.graph.producers[member].id]
        return self.source_nodes[self.classes.value_class[member]]

    def _readers(self, member: int) -> Iterator[tuple[tuple[int, int], tuple[int, int]]]:
        """Everyone who reads a value: as (problem node, operand) now, and before."""
        graph, old = self.graph, self.before.candidates.classes
        for node, operand in graph.consumers[member]:
            yield (self.classes.node_class[node.id], operand), (old.node_class[node.id], operand)
        for position, out in enumerate(graph.outputs):
            if out == member:
                yield (self.outputs[position], -1), (self.before.output_nodes[position], -1)
        for fqn, new in graph.mutations.items():
            if new == member and graph.values[member].kind != "buffer":
                buffer = graph.buffers[fqn]
                now, before = self.classes.value_class[buffer], old.value_class[buffer]
                yield (self.source_nodes[now], -1), (self.before.source_nodes[before], -1)
