"""How stored parameters become used ones: which of them travel together, and by which collectives. No torch.

The parameters of one copy of a repeated block are one group. Their transitions run in rounds, the first steps of all,
then the second: steps of one round that are the same collective over the same axes run as ONE collective (a *bucket*).
Gradients take their way back in the same manner, once all of the group are there.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

from autoplan.assignment.assignment import Assignment
from autoplan.assignment.keeps import is_kept
from autoplan.assignment.names import block_of
from autoplan.assignment.recompute import collectives_again, reads_all
from autoplan.assignment.redistributions import Counts, count_collectives, gradient_reaches, redistributions
from autoplan.graph.segments import Segment
from autoplan.placement import Placements, forward_of, gradient_of
from autoplan.redistribution import LOCAL_KINDS, Kind, Step, collectives, lower

BUCKETED = frozenset({"all-gather", "reduce-scatter", "all-reduce"})


@dataclass(frozen=True, slots=True)
class GatherMember:
    """A parameter in one state in which it is needed.

    `is_first` tells the one that runs the forward from those that only share its result; `saved` says that some op keeps
    the used parameter for its backward.
    """

    value: int
    fqn: str
    store: Placements
    state: Placements
    forward: tuple[Step, ...]
    backward: tuple[Step, ...]
    dtype: str
    is_first: bool
    saved: bool


@dataclass(frozen=True, slots=True)
class Bucket:
    """One step of several members, together where it is a collective that allows it."""

    kind: Kind
    axes: tuple[int, ...]
    members: tuple[int, ...]
    steps: tuple[Step, ...]

    @property
    def is_collective(self) -> bool:
        """Whether ranks talk to each other."""
        return self.kind not in LOCAL_KINDS


@dataclass(frozen=True, slots=True)
class GatherGroup:
    """Parameters that travel together: `name` is a block (`layers.3`) or one parameter's FQN, as the plan's `gather` says it.

    `again` is what backward runs to gather once more what forward has dropped: `forward`, without members that no
    backward needs unless a recomputed segment reads them; empty unless `regather`. `prefetch` is how many pieces of the program
    ahead of its readers it is issued; gradients are then reduced while backward goes on. Only blocks are.
    """

    name: str
    kind: str  # "block" or "parameter"
    members: tuple[GatherMember, ...]
    forward: tuple[Bucket, ...]
    backward: tuple[Bucket, ...]
    again: tuple[Bucket, ...]
    regather: bool
    prefetch: int


Regather = Callable[[str], bool]
"""Whether the group of this name drops what it gathered after the forward, to gather it again in backward."""


def regather_blocks(name: str, kind: str) -> bool:
    """The default: blocks do, single parameters (embedding, head) do not."""
    return kind == "block"


def gather_groups(
    assignment: Assignment,
    blocks: Collection[str],
    regather: Regather | None = None,
    recomputed: Collection[Segment] = (),
    prefetch: int = 0,
) -> tuple[GatherGroup, ...]:
    """All groups of parameters whose store and use differ, in the order of their first parameters.

    `blocks` are the prefixes of repeated blocks ("layers"). A parameter that is needed in one state joins its block's
    group; one needed in several, or outside of blocks, is a group of its own. A group that only one of the `recomputed`
    segments reads is gathered again whole, where it is dropped. Blocks whose parameters or gradients travel do so `prefetch`
    pieces ahead.
    """
    grouped: dict[tuple[str, str], list[GatherMember]] = {}
    for parameter in assignment.graph.parameters:
        members = _members(assignment, parameter.fqn, parameter.value)
        if not any(member.forward or member.backward for member in members):
            continue
        block = block_of(parameter.fqn, blocks) if len(members) == 1 else None
        key = (parameter.fqn, "parameter") if block is None else (block, "block")
        grouped.setdefault(key, []).extend(members)
    return tuple(
        _group(name, kind, tuple(members), regather, reads_all(assignment, recomputed, [member.value for member in members]), prefetch)
        for (name, kind), members in grouped.items()
    )


def _members(assignment: Assignment, fqn: str, value: int) -> list[GatherMember]:
    graph, mesh, store = assignment.graph, assignment.mesh, assignment.produced[value]
    seen: set[Placements] = set()
    members = []
    for need in assignment.needs[value]:
        placements = forward_of(need.state)
        is_first = placements not in seen
        seen.add(placements)
        forward = lower(forward_of(store), placements, mesh) if is_first else ()
        backward = lower(gradient_of(need.state), gradient_of(store), mesh) if gradient_reaches(assignment.graph, value, need) else ()
        saved = is_first and any(is_kept(graph, other) for other in assignment.needs[value] if forward_of(other.state) == placements)
        members.append(GatherMember(value, fqn, store, need.state, forward, backward, graph.values[value].dtype, is_first, saved))
    return members


def _group(
    name: str, kind: str, members: tuple[GatherMember, ...], regather: Regather | None, recomputed: bool, prefetch: int
) -> GatherGroup:
    forward = buckets(members, [member.forward for member in members])
    again = buckets(members, [member.forward if member.saved or recomputed else () for member in members])
    wanted = regather_blocks(name, kind) if regather is None else regather(name)
    drops = wanted and any(bucket.is_collective for bucket in again)
    backward = buckets(members, [member.backward for member in members])
    travels = kind == "block" and any(bucket.is_collective for bucket in (*forward, *backward))
    return GatherGroup(name, kind, members, forward, backward, again if drops else (), drops, prefetch if travels else 0)


def buckets(members: Sequence[GatherMember], steps: Sequence[tuple[Step, ...]]) -> tuple[Bucket, ...]:
    """The rounds of all members' steps, those alike in one bucket."""
    made: list[Bucket] = []
    for depth in range(max(map(len, steps), default=0)):
        alike: dict[tuple[object, ...], list[int]] = {}
        for index, own in enumerate(steps):
            if depth < len(own):
                step = own[depth]
                alone = None if step.kind in BUCKETED else index
                alike.setdefault((step.kind, step.axes, members[index].dtype, alone), []).append(index)
        for indices in alike.values():
            chosen = tuple(steps[index][depth] for index in indices)
            made.append(Bucket(chosen[0].kind, chosen[0].axes, tuple(indices), chosen))
    return tuple(made)


def step_collectives(assignment: Assignment, groups: Collection[GatherGroup], recomputed: Collection[Segment] = ()) -> Counts:
    """How often each (kind, axes) of collective runs in one step, forward and backward: activations, parameters, inside ops, and
    what `recomputed` segments run again (`groups` must have been made with the same)."""
    counts = count_collectives(steps for r in redistributions(assignment) for steps in (r.forward, r.backward))
    counts.update(collectives_again(assignment, recomputed))
    for group in groups:
        for rounds in (group.forward, group.again, group.backward):
            counts.update(collectives(rounds))  # type: ignore[arg-type]  # a bucket is named like a step
    for strategy in assignment.strategies:
        counts.update(strategy.inside())
    return counts
