"""What one step of an assignment costs each device: seconds and bytes over the whole unfolded graph.

`prediction` answers in seconds and bytes, `predict` in the ms and GiB of the plan file.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from autoplan.assignment import Assignment
from autoplan.assignment.gathers import BUCKETED, Bucket, GatherGroup
from autoplan.assignment.names import block_of, kind_of_block
from autoplan.assignment.recompute import nodes_again
from autoplan.assignment.redistributions import redistributions, redistributions_of
from autoplan.cost.buckets import carried_seconds, start_seconds
from autoplan.cost.communication import step_seconds, steps_seconds
from autoplan.cost.hardware import GIB, Hardware
from autoplan.cost.memory import ParameterBytes
from autoplan.cost.moments import Moment, moments
from autoplan.cost.primitives import (
    extra_saved_bytes,
    fused_in,
    node_seconds,
    node_transient_bytes,
    parameter_state,
    repeats,
    savings_of,
    trains,
    used_copy_bytes,
)
from autoplan.cost.savings import HELD_ANYHOW, SavedMap, Savings, kept_bytes, local_bytes
from autoplan.cost.seconds import ComputeCost
from autoplan.graph.ir import Graph, Node
from autoplan.graph.segments import Segment, redistributed_inside
from autoplan.placement import Mesh, forward_of
from autoplan.plan.schema import CommunicationMs, MemoryGib, Options, Predicted
from autoplan.redistribution import Step, collectives
from autoplan.rules.row import calls_of

EAGER = Options()


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes on one device at the moment of the peak."""

    parameters: int = 0
    gradients: int = 0
    optimizer: int = 0
    activations: int = 0
    gathered: int = 0
    transient: int = 0

    @property
    def peak(self) -> int:
        """The sum of the parts."""
        return self.parameters + self.gradients + self.optimizer + self.activations + self.gathered + self.transient


@dataclass(frozen=True, slots=True)
class Prediction:
    """One step on one device: seconds by what takes them, and memory at its peak.

    `host_s` is the time in which the device waits for the host.
    """

    compute_s: float = 0.0
    recompute_s: float = 0.0
    optimizer_s: float = 0.0
    host_s: float = 0.0
    exposed_s: float = 0.0
    hidden_s: float = 0.0
    memory: Memory = field(default=Memory())

    @property
    def step_s(self) -> float:
        """All that a step waits for."""
        return self.compute_s + self.recompute_s + self.optimizer_s + self.host_s + self.exposed_s


def predict(
    assignment: Assignment,
    groups: Sequence[GatherGroup],
    hardware: Hardware,
    options: Options,
    segments: Sequence[Segment] = (),
    recomputed: Sequence[Segment] = (),
) -> Predicted:
    """The prediction as the plan file says it, in ms and GiB."""
    found = prediction(assignment, groups, hardware, options, segments, recomputed)
    memory = found.memory
    return Predicted(
        step_ms=1e3 * found.step_s,
        compute_ms=1e3 * found.compute_s,
        recompute_ms=1e3 * found.recompute_s,
        optimizer_ms=1e3 * found.optimizer_s,
        host_ms=1e3 * found.host_s,
        communication_ms=CommunicationMs(1e3 * found.exposed_s, 1e3 * found.hidden_s),
        memory_gib=MemoryGib(
            peak=memory.peak / GIB,
            parameters=memory.parameters / GIB,
            gradients=memory.gradients / GIB,
            optimizer=memory.optimizer / GIB,
            activations=memory.activations / GIB,
            gathered=memory.gathered / GIB,
            transient=memory.transient / GIB,
        ),
    )


def prediction(
    assignment: Assignment,
    groups: Sequence[GatherGroup],
    hardware: Hardware,
    options: Options,
    segments: Sequence[Segment] = (),
    recomputed: Sequence[Segment] = (),
) -> Prediction:
    """What a step of `assignment` costs each device, parameters travelling in `groups` (see `assignment.gathers`).

    Of the graph's `segments` the `recomputed` run their forward once more in backward; `groups` must have been made for these.
    """
    costs = _node_costs(assignment, hardware, options)
    compute_s = sum(cost.forward_s + cost.backward_s for cost in costs)
    recompute_s, moved_again_s = recompute_seconds(assignment, hardware, options, recomputed)
    moved_s = activation_seconds(assignment, hardware) + moved_again_s + parameter_seconds(assignment, groups, hardware, options)
    hidden_s = hidden_seconds(assignment, groups, hardware, options, costs, recomputed)
    exposed_s = sum(cost.inside_s for cost in costs) + moved_s - hidden_s
    optimizer_s = sum(optimizer for _, optimizer in _parameter_states(assignment, hardware, options))
    host_s = host_seconds(assignment, groups, hardware, options, recomputed)
    return Prediction(
        compute_s=compute_s,
        recompute_s=recompute_s,
        optimizer_s=optimizer_s,
        host_s=max(0.0, host_s - (compute_s + recompute_s + exposed_s + optimizer_s)),
        exposed_s=exposed_s,
        hidden_s=hidden_s,
        memory=peak_moment(assignment, groups, hardware, options, segments, recomputed)[1],
    )


def _node_costs(assignment: Assignment, hardware: Hardware, options: Options) -> list[ComputeCost]:
    graph, mesh = assignment.graph, assignment.mesh
    pairs = zip(graph.nodes, assignment.strategies, strict=True)
    return [node_seconds(graph, node, strategy, mesh, hardware, fused_in(graph, node, options)) for node, strategy in pairs]


def recompute_seconds(assignment: Assignment, hardware: Hardware, options: Options, recomputed: Sequence[Segment]) -> tuple[float, float]:
    """Seconds of computing, and of the communication of activations, that running the forward of segments again adds."""
    graph, mesh = assignment.graph, assignment.mesh
    compute_s = moved_s = 0.0
    for segment in recomputed:
        again = nodes_again(graph, segment)
        for node in graph.nodes[again.start : again.stop]:
            if not repeats(graph, node, options):
                continue
            cost = node_seconds(graph, node, assignment.strategies[node.id], mesh, hardware, fused_in(graph, node, options))
            compute_s += cost.forward_s
            moved_s += cost.inside_forward_s
        for value in redistributed_inside(graph, segment):
            steps = [r.forward for r in redistributions_of(assignment, value) if r.readers[0][0] in again]
            moved_s += sum(steps_seconds(forward, graph.values[value].bytes, mesh, hardware) for forward in steps)
    return compute_s, moved_s


def activation_seconds(assignment: Assignment, hardware: Hardware) -> float:
    """Seconds of redistributing activations, forward and backward."""
    graph, mesh = assignment.graph, assignment.mesh
    return sum(steps_seconds(r.forward + r.backward, graph.values[r.value].bytes, mesh, hardware) for r in redistributions(assignment))


def parameter_seconds(
    assignment: Assignment, groups: Sequence[GatherGroup], hardware: Hardware, options: Options, *, talking: bool = False
) -> float:
    """Seconds of gathering parameters (again in backward where the group says so) and of reducing their gradients.

    Where only those count whose ranks are `talking`, what a rank merely cuts out of what it holds is left out.
    """
    graph, mesh = assignment.graph, assignment.mesh
    wide = 2 if options.precision == "bf16-master" else 1  # gradients are reduced in fp32
    seconds = 0.0
    for group in groups:
        whole = block_bytes(graph, group.name) if group.kind == "block" else 0
        ways = [member.forward for member in group.members], [member.backward for member in group.members]
        for buckets, steps, factor in (
            (group.forward, ways[0], 1),
            (group.again if trains(options) else (), ways[0], 1),
            (group.backward, ways[1], wide),
        ):
            counted = [b for b in buckets if not talking or any(collectives(steps[member]) for member in b.members)]
            seconds += sum(_bucket_seconds(bucket, group, whole, factor, graph, mesh, hardware) for bucket in counted)
    return seconds


def hidden_seconds(
    assignment: Assignment,
    groups: Sequence[GatherGroup],
    hardware: Hardware,
    options: Options,
    costs: Sequence[ComputeCost],
    recomputed: Sequence[Segment] = (),
) -> float:
    """Seconds in which parameters and gradients of blocks travel while blocks compute, and nobody waits for them.

    Of what travels ahead (`prefetch`) a part is gained (`hardware.hides`), as long as blocks of the kind compute: what is left
    of each kind is max((1 - hides) communication, communication - compute). `costs` are those of the nodes.
    """
    graph = assignment.graph
    traveling: dict[str, list[GatherGroup]] = {}
    for group in groups:
        if group.prefetch:
            traveling.setdefault(kind_of_block(group.name), []).append(group)
    computing: dict[str, float] = dict.fromkeys(traveling, 0.0)
    again = {node for segment in recomputed for node in nodes_again(graph, segment)} if traveling else set()
    for node, cost in zip(graph.nodes, costs, strict=True) if traveling else ():
        block = block_of(node.address, traveling)
        if block is not None:
            times = 1 + (node.id in again and repeats(graph, node, options))
            computing[kind_of_block(block)] += cost.forward_s * times + cost.backward_s
    moving = {kind: parameter_seconds(assignment, found, hardware, options, talking=True) for kind, found in traveling.items()}
    return sum(min(hardware.hides * moving[kind], computing[kind]) for kind in traveling)


def _bucket_seconds(
    bucket: Bucket, group: GatherGroup, block_bytes: float, factor: int, graph: Graph, mesh: Mesh, hardware: Hardware
) -> float:
    """Of a block's parameters one start, and what each adds; several states of one parameter are one tensor more to the collective each."""
    sizes = [factor * graph.values[group.members[index].value].bytes for index in bucket.members]
    moves = list(zip(bucket.steps, sizes, strict=True))
    if bucket.kind not in BUCKETED or (group.kind != "block" and len(sizes) == 1):
        return sum(step_seconds(step, size, mesh, hardware) for step, size in moves)
    whole = factor * block_bytes if group.kind == "block" else sum(sizes)
    carried = sum(carried_seconds(step, size, whole, mesh, hardware) for step, size in moves)
    return start_seconds(bucket.kind, bucket.axes, mesh, hardware) + carried


def block_bytes(graph: Graph, block: str) -> int:
    """Bytes of all parameters of a block, whether they travel or not."""
    return sum(graph.values[parameter.value].bytes for parameter in graph.parameters if parameter.fqn.startswith(f"{block}."))


def _parameter_states(assignment: Assignment, hardware: Hardware, options: Options) -> list[tuple[ParameterBytes, float]]:
    graph, mesh = assignment.graph, assignment.mesh
    states = [
        parameter_state(graph.values[p.value].shape, assignment.produced[p.value], mesh, hardware, options, trainable=p.trainable)
        for p in graph.parameters
    ]
    return [(state.bytes, state.optimizer_s) for state in states]


def host_seconds(
    assignment: Assignment, groups: Sequence[GatherGroup], hardware: Hardware, options: Options, recomputed: Sequence[Segment] = ()
) -> float:
    """Seconds the host is busy in an eager step: by op, by step of redistributions and by bucket of parameters.

    A compiled step is taken to keep it as busy: the smallest that was measured, hand-written, took 18.9 ms where the eager one took 17.4.
    """
    host = hardware.host
    moves: list[Step | Bucket] = [step for r in redistributions(assignment) for step in (*r.forward, *r.backward)]
    moves += [bucket for group in groups for bucket in (*group.forward, *group.backward, *group.again)]
    again = sum(len(nodes_again(assignment.graph, segment)) for segment in recomputed)
    ops_s = len(assignment.graph.nodes) * (host.op_s if trains(options) else host.one_way_s) + again * host.one_way_s
    return ops_s + sum(host.redistribution_s if move.is_collective else host.one_way_s for move in moves)


def peak_moment(
    assignment: Assignment,
    groups: Sequence[GatherGroup],
    hardware: Hardware,
    options: Options,
    segments: Sequence[Segment] = (),
    recomputed: Sequence[Segment] = (),
) -> tuple[Moment | None, Memory]:
    """Where memory peaks, None for the optimizer step, and what is there then. In inference: the largest op with the parameters."""
    return max(memory_by_moment(assignment, groups, hardware, options, segments, recomputed), key=lambda peak: peak[1].peak)


def memory_by_moment(
    assignment: Assignment,
    groups: Sequence[GatherGroup],
    hardware: Hardware,
    options: Options,
    segments: Sequence[Segment] = (),
    recomputed: Sequence[Segment] = (),
) -> list[tuple[Moment | None, Memory]]:
    """What is there at each of the `moments` at which memory can peak, at last at the optimizer step (None)."""
    graph = assignment.graph
    held = [state for state, _ in _parameter_states(assignment, hardware, options)]
    parameters = sum(state.parameter for state in held) + _buffer_bytes(assignment)
    optimizer = sum(state.optimizer for state in held)
    values = [parameter.value for parameter in graph.parameters]
    savings = savings_of(graph, options)
    peaks: list[tuple[Moment | None, Memory]] = []
    for moment in moments(graph, segments if trains(options) else (), recomputed):
        here = Memory(
            parameters,
            sum(state.gradient for value, state in zip(values, held, strict=True) if moment.has_gradient(graph, value)),
            optimizer,
            sum(_kept_bytes(assignment, savings, moment, options).values()),
            gathered_bytes(assignment, groups, options, moment),
            max(transient_bytes_of(assignment, moment, options), _moving_bytes(assignment, savings.at(moment), moment, options)),
        )
        peaks.append((moment, here))
    return [*peaks, (None, Memory(parameters, sum(state.gradient for state in held), optimizer))]


def largest_holders(assignment: Assignment, hardware: Hardware, options: Options, moment: Moment | None) -> dict[str, int]:
    """Bytes at a moment by who holds them: a parameter (with gradient and optimizer states), or the op whose output is kept."""
    graph = assignment.graph
    found: dict[str, int] = {}
    for parameter, (state, _) in zip(graph.parameters, _parameter_states(assignment, hardware, options), strict=True):
        has_gradient = moment is None or moment.has_gradient(graph, parameter.value)
        found[parameter.fqn] = state.parameter + state.optimizer + (state.gradient if has_gradient else 0)
    if moment is None:
        return found
    return found | _kept_bytes(assignment, savings_of(graph, options), moment, options)


def activation_bytes(assignment: Assignment, moment: Moment | None = None, options: Options = EAGER) -> int:
    """Bytes kept from forward to backward: each tensor once, a redistributed copy as its own, and what ops keep beside.

    At a later moment of the backward, what is left of them.
    """
    graph = assignment.graph
    kept = _kept_bytes(assignment, savings_of(graph, options), moment or Moment(len(graph.nodes), ()), options)
    return sum(kept.values())


def _kept_bytes(assignment: Assignment, savings: Savings, moment: Moment, options: Options) -> dict[str, int]:
    """Bytes of activations at a moment, by the address of the value that is kept or of the op that keeps something beside."""
    graph, mesh = assignment.graph, assignment.mesh
    kept, found = savings.at(moment), Counter[str]()
    for value in graph.values:
        needs = [(need.state, need.readers) for need in assignment.needs[value.id]]
        found[value.address] += kept_bytes(graph, value.id, kept, assignment.produced[value.id], needs, mesh)
    for node in graph.nodes:
        if moment.keeps(node):
            beside = extra_saved_bytes(calls_of(graph)[node.id], assignment.strategies[node.id], mesh, compiled=options.compile)
            found[node.address] += beside
    return {address: nbytes for address, nbytes in found.items() if nbytes}


def gathered_bytes(assignment: Assignment, groups: Sequence[GatherGroup], options: Options, moment: Moment | None = None) -> int:
    """Bytes of parameters as they are used: those kept for backward, and the largest group in flight with its gradients.

    At a later moment of the backward those that are still to be read; while a segment is at work, the group in flight is its own.
    With it are there as many more as are gathered ahead, and the gradients of one that are being reduced, taken to be of its size.
    """
    graph = assignment.graph
    moment = moment or Moment(len(graph.nodes), ())
    in_group = {member.value for group in groups for member in group.members}
    alone = sum(
        used_copy_bytes(graph.values[p.value], assignment.produced[p.value], need.state, assignment.mesh, options)
        for p in graph.parameters
        if p.value not in in_group and moment.is_to_come(graph, p.value)
        for need in assignment.needs[p.value]
    )
    sizes = [_group_bytes(assignment, group, options) for group in groups]
    if not trains(options):
        return alone + sum(used for used, _, _ in sizes)
    to_come = [any(moment.is_to_come(graph, member.value) for member in group.members) for group in groups]
    kept = sum(saved for group, (_, saved, _), later in zip(groups, sizes, to_come, strict=True) if later and not group.regather)
    flying = [
        gradients * (1 + min(group.prefetch, 1)) + used * (1 + group.prefetch if group.regather else 0)
        for group, (used, _, gradients) in zip(groups, sizes, strict=True)
        if any(moment.reads(graph, member.value) for member in group.members)
    ]
    return alone + kept + max(flying, default=0)


def _group_bytes(assignment: Assignment, group: GatherGroup, options: Options) -> tuple[int, int, int]:
    """Bytes of a group's used parameters, of those that ops keep for backward, and of their gradients before they are reduced.

    A parameter that is used in several states has one gradient of each, reduced as soon as it is there: the largest counts.
    """
    graph, mesh = assignment.graph, assignment.mesh
    trainable = {p.value for p in graph.parameters if p.trainable}
    used = kept = 0
    gradients: dict[int, int] = {}
    for member in group.members:
        value = graph.values[member.value]
        if member.is_first:
            nbytes = used_copy_bytes(value, member.store, member.state, mesh, options)
            used += nbytes
            kept += nbytes if member.saved else 0
        if member.value in trainable and member.backward:
            gradients[member.value] = max(gradients.get(member.value, 0), local_bytes(value, forward_of(member.state), mesh))
    return used, kept, sum(gradients.values())


def transient_bytes_of(assignment: Assignment, moment: Moment | None = None, options: Options = EAGER) -> int:
    """Bytes of the largest temporaries of any op, or of any that is at work at a moment."""
    graph, mesh = assignment.graph, assignment.mesh
    nodes = [node for node in graph.nodes if moment is None or moment.works(node.id)]
    calls, strategies = calls_of(graph), assignment.strategies
    return max(
        (node_transient_bytes(calls[node.id], strategies[node.id], mesh, fused_in(graph, node, options)) for node in nodes), default=0
    )


def _moving_bytes(assignment: Assignment, kept: SavedMap, moment: Moment, options: Options) -> int:
    """Bytes of the largest redistribution at a moment, beside the copy that is kept of what it gives.

    While a value moves it is there twice, as it was and as it becomes, and so is its gradient on the way back. Both are taken to be of the
    size of the kept copy, as they are of an all-to-all; what is sent and received in pieces is laid out anew, once more of that size.
    """
    if not trains(options):
        return 0
    graph, mesh = assignment.graph, assignment.mesh
    most = 0
    for value in graph.values:
        readers = kept.keepers.get(value.id, frozenset())
        if value.kind in HELD_ANYHOW or not any(moment.works(node) for node, _ in readers):
            continue
        needs = [forward_of(need.state) for need in assignment.needs[value.id] if not readers.isdisjoint(need.readers)]
        copies = set(needs) - {forward_of(assignment.produced[value.id])}
        most = max(most, sum(local_bytes(value, placements, mesh) for placements in copies))
    return most


def _buffer_bytes(assignment: Assignment) -> int:
    """Bytes of buffers and constants, in the states they are read in."""
    graph, mesh = assignment.graph, assignment.mesh
    return sum(
        local_bytes(value, forward_of(assignment.produced[value.id]), mesh)
        for value in graph.values
        if value.kind in ("buffer", "constant")
    )


def fallback_seconds(assignment: Assignment, node: Node, hardware: Hardware, options: Options = EAGER) -> float:
    """Seconds that an op without a rule adds to a step by running on every device instead of being split evenly."""
    fused = fused_in(assignment.graph, node, options)
    cost = node_seconds(assignment.graph, node, assignment.strategies[node.id], assignment.mesh, hardware, fused)
    return cost.seconds * (1 - 1 / assignment.mesh.size)


__all__ = ["Memory", "Prediction", "fallback_seconds", "predict", "prediction"]
