"""What moves between the ops of an assignment: every redistribution of an activation, as cost, plan and runtime see it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from autoplan.assignment.assignment import OUTPUT_READER, Assignment, Need
from autoplan.graph.ir import Graph
from autoplan.graph.once import once
from autoplan.placement import Placements, forward_of, gradient_of
from autoplan.redistribution import Step, collectives, lower

Counts = Counter[tuple[str, tuple[int, ...]]]
"""How often each (kind, axes) of collective runs in a step."""


@dataclass(frozen=True, slots=True)
class Redistribution:
    """One state in which a value is materialised for `readers`, where that takes any step or a gradient's.

    `shares` is an earlier state of the value with the same placements: what its forward made is used again, `forward` is
    empty, and only the gradient goes its own way.
    """

    value: int
    state: Placements
    readers: tuple[tuple[int, int], ...]
    forward: tuple[Step, ...]
    backward: tuple[Step, ...]
    shares: Placements | None = None


@once
def redistributions(assignment: Assignment) -> tuple[Redistribution, ...]:
    """Every redistribution of a value that is no parameter, in the order in which the forward runs them."""
    graph = assignment.graph
    found = [step for value in graph.values if value.kind != "parameter" for step in redistributions_of(assignment, value.id)]
    last = len(graph.nodes)
    return tuple(sorted(found, key=lambda r: (last if r.readers[0][0] < 0 else r.readers[0][0], r.value)))


def redistributions_of(assignment: Assignment, value: int) -> tuple[Redistribution, ...]:
    """Those of one value, the first to need a placement first."""
    produced, mesh = assignment.produced[value], assignment.mesh
    first: dict[Placements, Placements] = {forward_of(produced): produced}
    found = []
    for need in assignment.needs[value]:
        placements = forward_of(need.state)
        shares = first.get(placements)
        forward = lower(forward_of(produced), placements, mesh) if shares is None else ()
        flows = gradient_reaches(assignment.graph, value, need)
        backward = lower(gradient_of(need.state), gradient_of(produced), mesh) if flows else ()
        if shares is None:
            first[placements] = need.state
        if forward or backward or (shares is not None and need.state != shares):
            shared = None if shares is None or placements == forward_of(produced) else shares
            found.append(Redistribution(value, need.state, need.readers, forward, backward, shared))
    return tuple(found)


def gradient_reaches(graph: Graph, value: int, need: Need) -> bool:
    """Whether a gradient comes back from the readers of one state of a value."""
    if graph.loss is None or not graph.values[value].needs_grad:
        return False
    outputs = (graph.nodes[node].outputs for node, _ in need.readers if node >= 0)
    if any(output in graph.receiving for made in outputs for output in made):
        return True
    return value == graph.loss and any(node == OUTPUT_READER for node, _ in need.readers)


def count_collectives(steps: Iterable[tuple[Step, ...]]) -> Counts:
    """How many collectives of each (kind, axes) the steps run."""
    return Counter(key for run in steps for key in collectives(run))
