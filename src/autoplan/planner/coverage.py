"""Which ops a model uses, which of them have a rule, and where those are that have none."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from autoplan.graph import Graph, Node, find_blocks, foldable_prefixes
from autoplan.placement import Mesh
from autoplan.plan.patterns import collapse
from autoplan.rules.combine import rows_of
from autoplan.rules.describe import family_of
from autoplan.rules.hints import group_hints
from autoplan.rules.registry import rule_of
from autoplan.rules.row import call_of

_TWO_RANKS = Mesh(("x",), (2,))


@dataclass(frozen=True, slots=True)
class Place:
    """Where an op is: its address, or the pattern of `count` addresses in repeated blocks, and its line of the model."""

    address: str
    count: int
    source: str

    def to_json(self) -> dict[str, Any]:
        """As one JSON-ready object."""
        return {"address": self.address, "count": self.count, "source": self.source}


@dataclass(frozen=True, slots=True)
class UsedOp:
    """An op of a model: how many calls, how many of them two ranks can share, the file of its rule (None: it has none)."""

    op: str
    count: int
    splittable: int
    rule: str | None
    places: tuple[Place, ...]

    def to_json(self) -> dict[str, Any]:
        """As one JSON-ready object."""
        places = [place.to_json() for place in self.places]
        return {"op": self.op, "count": self.count, "splittable": self.splittable, "rule": self.rule, "places": places}


def used_ops(graph: Graph) -> tuple[UsedOp, ...]:
    """The ops of `graph`, those without a rule first, then by name."""
    prefixes = foldable_prefixes(find_blocks(graph))
    existing = [node.address for node in graph.nodes]
    hints = group_hints(graph, _TWO_RANKS)
    calls: dict[str, list[Node]] = {}
    for node in graph.nodes:
        calls.setdefault(node.op, []).append(node)
    found = []
    for op, nodes in calls.items():
        rule = rule_of(op)
        splittable = sum(len(rows_of(call_of(graph, node, hints, axis_size=2))) > 1 for node in nodes)
        found.append(UsedOp(op, len(nodes), splittable, family_of(rule) if rule else None, places_of(nodes, prefixes, existing)))
    return tuple(sorted(found, key=lambda used: (used.rule is not None, used.op)))


def places_of(nodes: Sequence[Node], prefixes: Collection[str], existing: Sequence[str]) -> tuple[Place, ...]:
    """Where `nodes` are, repeated blocks folded."""
    folds = collapse({node.address: node.source for node in nodes}, prefixes, existing=existing, execution_order=True)
    return tuple(Place(pattern, fold.count, fold.content) for pattern, fold in folds.items())
