"""The layouts that one usually writes by hand, of any model: what each leaves to be decided.

    ddp      the batch split over all axes, parameters whole on every device
    fsdp     the same, parameters stored in pieces of dim 0 over all axes that divide it (as FSDP2 does) and whole where they are used
    fsdp+tp  the batch split over all axes but the last; over the last one the weights of repeated blocks are, by columns or rows as is
             cheapest, and activations between them as is cheapest too (Megatron's, with its sequence parallelism), but never by the batch;
             over the others parameters are stored in pieces. On meshes of two axes and more
    tp       the same on a mesh of one axis: the batch is whole, parameters are used as they are stored

*The batch* is dim 0 of the first input that has one, and of every other input of the same size there: labels are, and masks by sample; tables of
positions and scalars are not, and stay whole. (A model that takes the sequence first has it as its batch here.)

Where the batch is split, every op does on these axes as it does in data parallelism: it reads values as they come from the ops before it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from math import prod

from autoplan.assignment.names import block_of
from autoplan.graph.blocks import find_blocks, foldable_prefixes
from autoplan.graph.ir import Graph, Value
from autoplan.placement import Mesh, Placement, Placements, R, S, Shard, forward_of
from autoplan.planner.candidates import Candidates
from autoplan.rules.row import Strategy

Data = Sequence[Strategy]
"""Data parallelism, by node class."""


@dataclass(frozen=True, slots=True)
class Layout:
    """The axes over which the batch is split, that over which weights of blocks are, if any, and whether parameters are stored whole."""

    name: str
    batch: tuple[int, ...]
    tensor: int | None = None
    stored_whole: bool = False

    @property
    def data(self) -> Layout:
        """Data parallelism over the same axes; over that of the weights, if the batch is whole."""
        return Layout("data", self.batch or (() if self.tensor is None else (self.tensor,)), stored_whole=True)


def layouts_of(mesh: Mesh) -> tuple[Layout, ...]:
    """Those that one writes for such a mesh; none for a single device."""
    axes = tuple(axis for axis, size in enumerate(mesh.shape) if size > 1)
    if not axes:
        return ()
    *others, last = axes
    split = Layout("fsdp+tp", tuple(others), last) if others else Layout("tp", (), last)
    return Layout("ddp", axes, stored_whole=True), Layout("fsdp", axes), split


def misfit(layout: Layout, graph: Graph, mesh: Mesh) -> str | None:
    """Why the batch cannot be split so, in a few words; None where it can."""
    devices = prod(mesh.shape[axis] for axis in layout.batch)
    batch = _batch(graph)
    if devices == 1 or (batch and batch % devices == 0):
        return None
    return f"batch {batch} does not divide over {devices} devices" if batch else "no input has a batch"


def data_parallel(layout: Layout, candidates: Candidates) -> Candidates:
    """What `ddp` or `fsdp` leave: every op does alike on all axes over which the batch is split, and uses whole parameters."""
    others = [axis for axis in range(candidates.mesh.ndim) if axis not in layout.batch]

    def keeps(c: int, strategy: Strategy) -> bool:
        is_alike = len({(strategy.rows[axis], strategy.partial[axis]) for axis in layout.batch}) == 1
        is_whole = all(strategy.rows[axis].is_replicated and not strategy.partial[axis] for axis in others)
        return is_alike and is_whole and all(placement == R for _, use in _uses(candidates, c, strategy) for placement in use)

    left = _restricted(layout, candidates, keeps)
    return replace(left, strategies=_as_they_come(left, layout.batch[0]))


def _as_they_come(candidates: Candidates, axis: int) -> tuple[tuple[Strategy, ...], ...]:
    """Of each node class the strategies that read values as they come on an axis; else those that so read what is split, cutting what is whole
    (masks of positions) and adding up partial sums; else whole.

    Were it only about time, small models would gather the batch and compute all of it everywhere.
    """
    graph, classes = candidates.graph, candidates.classes
    come: dict[int, Placement] = dict.fromkeys(candidates.sources, R)
    come |= {classes.value_class[value]: candidates.sources[classes.value_class[value]][0][axis] for value in graph.inputs}
    left = []
    for c, strategies in enumerate(candidates.strategies):
        node = graph.nodes[classes.node_members[c][0]]
        states = [come[classes.value_class[value]] for value in node.inputs]
        whole = [strategy for strategy in strategies if strategy.rows[axis].is_replicated]
        kept = (
            _reading(strategies, axis, states) or _reading(strategies, axis, [s if isinstance(s, Shard) else None for s in states]) or whole
        )
        like = next((strategy for strategy in kept if strategy in whole), kept[0])
        made = [state[axis] for state in map(forward_of, like.makes)]
        left.append(tuple(strategy for strategy in kept if [state[axis] for state in map(forward_of, strategy.makes)] == made))
        come |= {classes.value_class[value]: state for value, state in zip(node.outputs, made, strict=True)}
    return tuple(left)


def _reading(strategies: Sequence[Strategy], axis: int, states: Sequence[Placement | None]) -> list[Strategy]:
    """Those that read their operands in these states on an axis, None being any."""

    def reads(strategy: Strategy) -> bool:
        needs = zip(strategy.needs, states, strict=True)
        return all(need is None or state is None or forward_of(need)[axis] == state for need, state in needs)

    return [strategy for strategy in strategies if reads(strategy)]


def tensor_parallel(layout: Layout, candidates: Candidates, data: Data | None) -> Candidates:
    """What `fsdp+tp` or `tp` leave: each op splits as many weights of blocks as it can. `data` is `layout.data`, None where that cannot be."""
    tensor = layout.tensor
    assert tensor is not None

    def keeps(c: int, strategy: Strategy) -> bool:
        if data is None:
            return True
        axis = layout.data.batch[0]
        row, partial = data[c].rows[axis], data[c].partial[axis]
        is_alike = all((strategy.rows[other], strategy.partial[other]) == (row, partial) for other in layout.batch)
        return is_alike and (row.is_replicated or strategy.rows[tensor] != row)

    kept = _restricted(layout, candidates, keeps)
    if not layout.batch:
        kept = replace(kept, never_gathered=frozenset(kept.classes.parameter_class.values()))
    prefixes = foldable_prefixes(find_blocks(kept.graph))
    return replace(kept, strategies=tuple(_splitting_most(kept, c, tensor, prefixes) for c in range(len(kept.strategies))))


def _restricted(layout: Layout, candidates: Candidates, keeps: Callable[[int, Strategy], bool]) -> Candidates:
    """Inputs and parameters as the layout has them, and of each node class the strategies that it `keeps`."""
    graph, mesh, examples = candidates.graph, candidates.mesh, candidates.classes.value_representatives
    sources = {c: _states(layout, graph, mesh, graph.values[examples[c]], states) for c, states in candidates.sources.items()}
    strategies = tuple(tuple(strategy for strategy in found if keeps(c, strategy)) for c, found in enumerate(candidates.strategies))
    assert all(strategies), "every op can run whole"
    return replace(candidates, sources=sources, strategies=strategies)


def _states(layout: Layout, graph: Graph, mesh: Mesh, value: Value, states: tuple[Placements, ...]) -> tuple[Placements, ...]:
    """Of the states of a source those that the layout has."""
    if value.kind == "input":
        is_batch = value.shape[:1] == (_batch(graph),)
        return (tuple(S(0) if is_batch and axis in layout.batch else R for axis in range(mesh.ndim)),)
    if value.kind != "parameter":
        return states
    if layout.stored_whole:
        return ((R,) * mesh.ndim,)
    if layout.tensor is None:
        states = tuple(state for state in states if {*state} <= {R, S(0)})
    pieces = [prod(mesh.shape[axis] for axis in layout.batch if isinstance(state[axis], Shard)) for state in states]
    return tuple(state for state, count in zip(states, pieces, strict=True) if count == max(pieces))


def _batch(graph: Graph) -> int:
    """The size of the batch, 0 where no input has one."""
    return next((graph.values[value].shape[0] for value in graph.inputs if graph.values[value].shape), 0)


def _splitting_most(candidates: Candidates, c: int, tensor: int, prefixes: Collection[str]) -> tuple[Strategy, ...]:
    """Of a node class the strategies that split the most weights of blocks over an axis: those of two dims and more, no scales or biases."""
    counts = [
        sum(
            len(value.shape) > 1 and isinstance(use[tensor], Shard) and block_of(value.address, prefixes) is not None for value, use in uses
        )
        for uses in (_uses(candidates, c, strategy) for strategy in candidates.strategies[c])
    ]
    return tuple(strategy for strategy, count in zip(candidates.strategies[c], counts, strict=True) if count == max(counts))


def _uses(candidates: Candidates, c: int, strategy: Strategy) -> Iterator[tuple[Value, Placements]]:
    """The parameters that a node class reads, and how it uses them."""
    graph = candidates.graph
    operands = graph.nodes[candidates.classes.node_members[c][0]].inputs
    for value, state in zip(operands, strategy.needs, strict=True):
        if state is not None and graph.values[value].kind == "parameter":
            yield graph.values[value], forward_of(state)
