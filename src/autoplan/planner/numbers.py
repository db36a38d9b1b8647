"""How many copies of each block recompute: boxes of such numbers, and between which of them every amount changes evenly."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby, pairwise, product

from autoplan.graph.segments import Segment
from autoplan.planner.terms import Terms

Numbers = tuple[int, ...]
"""How many of the first copies of each prefix recompute."""


@dataclass(frozen=True, slots=True)
class Box:
    """All numbers from `least` to `most`."""

    least: Numbers
    most: Numbers

    @property
    def is_one(self) -> bool:
        """Whether there is but one choice of numbers."""
        return self.least == self.most

    @property
    def longest(self) -> int:
        """The position of the prefix whose number is least certain."""
        return max(range(len(self.least)), key=lambda k: self.most[k] - self.least[k])

    def halves(self) -> tuple[Box, ...]:
        """The box cut in its longest direction."""
        k = self.longest
        return self._cut(k, (self.least[k] + self.most[k]) // 2 + 1)

    def around(self, number: int) -> tuple[Box, ...]:
        """The box cut in its longest direction into what is below a number, at it and above; halves, where it lies outside."""
        k = self.longest
        return self._cut(k, number, number + 1) if self.least[k] <= number <= self.most[k] else self.halves()

    def _cut(self, k: int, *starts: int) -> tuple[Box, ...]:
        """The parts of the box that begin at these numbers in direction k, and the part before them."""
        ends = (self.least[k], *starts, self.most[k] + 1)
        return tuple(self.part(k, first, after - 1) for first, after in pairwise(ends) if first < after)

    def part(self, k: int, least: int, most: int) -> Box:
        """The box with other ends in direction k."""
        return Box(_with(self.least, k, least), _with(self.most, k, most))

    def at(self, share: float) -> Numbers:
        """The numbers at a share of the way from least to most."""
        return tuple(low + round(share * (high - low)) for low, high in zip(self.least, self.most, strict=True))


def _with(numbers: Numbers, position: int, number: int) -> Numbers:
    return (*numbers[:position], number, *numbers[position + 1 :])


class Copies:
    """The copies of every prefix, in order."""

    def __init__(self, terms: Terms) -> None:
        self._segments = terms.prices.segments
        self.by_prefix: dict[str, list[Segment]] = {}
        for segment in self._segments:
            self.by_prefix.setdefault(segment.prefix, []).append(segment)
        self._pieces = [list(_pieces(terms, copies)) for copies in self.by_prefix.values()]

    def segments(self, numbers: Numbers) -> tuple[Segment, ...]:
        """Those that recompute."""
        chosen = {s.name for copies, n in zip(self.by_prefix.values(), numbers, strict=True) for s in copies[:n]}
        return tuple(segment for segment in self._segments if segment.name in chosen)

    def pieces(self, box: Box) -> list[Box]:
        """The box cut into boxes in which every amount changes evenly with each number."""
        ranges = [
            [(max(low, least), min(high, most)) for low, high in pieces if max(low, least) <= min(high, most)]
            for pieces, least, most in zip(self._pieces, box.least, box.most, strict=True)
        ]
        return [Box(tuple(low for low, _ in ends), tuple(high for _, high in ends)) for ends in product(*ranges)]


def _pieces(terms: Terms, copies: list[Segment]) -> Iterator[tuple[int, int]]:
    """Ranges of how many copies recompute, cut where the last one of them is of another kind than the one before it.

    Two copies are of one kind if their nodes are of the same classes, and all values that they read or make are of the same
    terms: whatever one more of them adds, each adds the same.
    """
    node_class = terms.candidates.classes.node_class
    term_of = {value: number for number, value_terms in enumerate(terms.values) for value in value_terms.members}
    yield 0, 0
    kinds = []
    for copy in copies:
        made = [value for node in copy.nodes for value in terms.prices.graph.nodes[node].outputs]
        values = (*copy.own_inputs, *copy.shared_inputs, *made)
        kinds.append((tuple(node_class[node] for node in copy.nodes), tuple(term_of.get(value) for value in values)))
    for _, run in groupby(range(len(copies)), key=lambda i: kinds[i]):
        first, *rest = run
        yield first + 1, (rest[-1] if rest else first) + 1
