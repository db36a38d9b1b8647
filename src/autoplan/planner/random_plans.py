"""Random legal plans: proof that the runtime is right wherever the rules are, not only where plans are optimal."""

from __future__ import annotations

from random import Random

from autoplan.assignment.assignment import Assignment
from autoplan.graph import NodeClasses, classes, find_blocks
from autoplan.graph.ir import Graph
from autoplan.placement import Mesh
from autoplan.planner.candidates import Candidates, enumerate_candidates


def random_assignment(graph: Graph, mesh: Mesh, seed: int, *, candidates: Candidates | None = None) -> Assignment:
    """A strategy drawn for each class of nodes and a state for each class of sources, equally likely each."""
    candidates = candidates or enumerate_candidates(graph, mesh, fold(graph))
    random = Random(seed)
    node_class, value_class = candidates.classes.node_class, candidates.classes.value_class
    strategies = [random.choice(options) for options in candidates.strategies]
    sources = {c: random.choice(states) for c, states in candidates.sources.items()}
    outputs = tuple(random.choice(states) for states in candidates.outputs)
    return Assignment(
        graph,
        mesh,
        tuple(strategies[c] for c in node_class),
        {value.id: sources[value_class[value.id]] for value in graph.values if value.kind != "op"},
        outputs,
    )


def fold(graph: Graph) -> NodeClasses:
    """The classes of a graph with its repeated blocks folded."""
    return classes(graph, find_blocks(graph))
