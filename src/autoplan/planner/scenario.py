"""What is kept, run again and there at each moment, where some segments recompute: the amounts that a problem's terms count."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

from autoplan.assignment.recompute import nodes_again
from autoplan.cost.moments import Moment, moments
from autoplan.cost.savings import SavedMap, Savings
from autoplan.graph.ir import Graph
from autoplan.graph.segments import Segment, redistributed_inside


@dataclass(frozen=True)
class Scenario:
    """One step in which the segments `recomputed` run their forward again in backward.

    Its moments are those of `cost.moments`, without the optimizer step; where backward reaches the last copy that
    recomputes, only for the `prefixes`.
    """

    graph: Graph
    savings: Savings
    segments: tuple[Segment, ...]
    recomputed: tuple[Segment, ...]
    prefixes: tuple[str, ...]

    @cached_property
    def moments(self) -> tuple[Moment, ...]:
        """The moments, one for each row of memory but the optimizer's."""
        found = moments(self.graph, self.segments, self.recomputed)
        always = 1 + 2 * len({segment.prefix for segment in self.segments})
        return (*found[:always], *(moment for moment in found[always:] if moment.prefix in self.prefixes))

    @cached_property
    def saved(self) -> tuple[SavedMap, ...]:
        """What is kept at each moment."""
        return tuple(self.savings.at(moment) for moment in self.moments)

    @cached_property
    def _run_again(self) -> frozenset[int]:
        return frozenset(node for segment in self.recomputed for node in nodes_again(self.graph, segment))

    def runs_again(self, nodes: Iterable[int]) -> int:
        """How many of the nodes run their forward again."""
        return sum(node in self._run_again for node in nodes)

    @cached_property
    def moves_again(self) -> Counter[int]:
        """How often each value is once more brought to the states in which it is read."""
        found: Counter[int] = Counter()
        for segment in self.recomputed:
            for value in redistributed_inside(self.graph, segment):
                found[value] += any(node.id in self._run_again and node.id in segment.nodes for node, _ in self.graph.consumers[value])
        return found

    def nodes_kept(self, nodes: Sequence[int]) -> list[int]:
        """By moment, of how many of the nodes is there what they keep beside values."""
        return [sum(moment.keeps(self.graph.nodes[node]) for node in nodes) for moment in self.moments]

    def values_kept_as_made(self, values: Sequence[int]) -> list[int]:
        """By moment, how many of the values are kept in the state they were made in, whoever reads them."""
        return [sum(value in kept.made and value not in kept.alias_of for value in values) for kept in self.saved]

    def values_kept_as_read(self, values: Sequence[int]) -> list[int]:
        """By moment, how many of the values are kept as one of their readers reads them."""
        return [sum(bool(kept.keepers.get(value)) for value in values) for kept in self.saved]

    def gradients(self, parameters: Sequence[int]) -> list[int]:
        """By moment, how many of the parameters have their gradients."""
        return [sum(moment.has_gradient(self.graph, parameter) for parameter in parameters) for moment in self.moments]

    def readers_to_come(self, values: Sequence[int]) -> list[int]:
        """By moment, how many of the values backward has still to come to."""
        return [sum(moment.is_to_come(self.graph, value) for value in values) for moment in self.moments]


@dataclass(frozen=True)
class Span:
    """All scenarios from `least` to `most`, which recomputes more of the same prefixes: what holds for each of them.

    An amount changes evenly from one to the other, so the smaller of the two bounds it.
    """

    least: Scenario
    most: Scenario

    def keepers(self, values: Sequence[int]) -> set[tuple[int, int]]:
        """The readers that keep one of the values, in every scenario."""
        return self._keepers(self.least, values) & self._keepers(self.most, values)

    @staticmethod
    def _keepers(scenario: Scenario, values: Sequence[int]) -> set[tuple[int, int]]:
        return {reader for kept in scenario.saved for value in values for reader in kept.keepers.get(value, ())}
