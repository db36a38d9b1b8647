"""The pieces of the cost that a planner adds up, one decision at a time, and that `predict` adds up for a whole assignment.

Seconds and bytes of one device and one step. Per node and strategy: `node_seconds`, `extra_saved_bytes`, `node_transient_bytes`.
Per value: `forward_seconds` for each distinct placement it is read in, `backward_seconds` for each distinct state, and
`savings.kept_bytes`. Per parameter: `parameter_state`, and for its transitions the `parameter_...` forms.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

from autoplan.cost.communication import steps_seconds
from autoplan.cost.compiled import compiled_transient_bytes
from autoplan.cost.compute import local_call, optimizer_seconds, strategy_seconds
from autoplan.cost.fusion import Fused, fused_nodes
from autoplan.cost.hardware import Hardware
from autoplan.cost.memory import ParameterBytes, saved, state_bytes, transient_bytes
from autoplan.cost.remat import compiled_saved, kept_when_compiled, repeated_when_compiled
from autoplan.cost.savings import Savings, local_bytes
from autoplan.cost.seconds import ComputeCost
from autoplan.graph.ir import Graph, Node, Value
from autoplan.placement import Mesh, Placements, forward_of, gradient_of, local_shape
from autoplan.plan.schema import Options
from autoplan.redistribution import lower
from autoplan.rules.row import Call, Strategy, calls_of


def trains(options: Options) -> bool:
    """Whether there is a backward pass."""
    return options.mode == "train"


def accumulated_operands(graph: Graph, node: Node) -> frozenset[int]:
    """Operands that a later node reads as well: in backward their gradient is there first, and this node's is added to it."""
    return frozenset(k for k, value in enumerate(node.inputs) if graph.values[value].needs_grad and _is_read_after(graph, node, k))


def _is_read_after(graph: Graph, node: Node, operand: int) -> bool:
    last, position = graph.consumers[node.inputs[operand]][-1]
    return (last.id, position) != (node.id, operand)


def fused_in(graph: Graph, node: Node, options: Options) -> Fused | None:
    """How a node takes part in a compiled piece; None in eager runs."""
    return fused_nodes(graph)[node.id] if options.compile else None


def repeats(graph: Graph, node: Node, options: Options) -> bool:
    """Whether a node's forward runs once more where its block recomputes, if it is among those that may (`nodes_again`)."""
    return not options.compile or node.id in repeated_when_compiled(graph)


def savings_of(graph: Graph, options: Options) -> Savings:
    """What the graph keeps for its backward, run as the options say."""
    return Savings(graph, kept_when_compiled(graph) if options.compile else None)


def node_seconds(graph: Graph, node: Node, strategy: Strategy, mesh: Mesh, hardware: Hardware, fused: Fused | None = None) -> ComputeCost:
    """What a node costs each device under `strategy`, with the collectives inside it and the adding up of gradients."""
    return strategy_seconds(calls_of(graph)[node.id], strategy, mesh, hardware, accumulated_operands(graph, node), fused)


def extra_saved_bytes(call: Call, strategy: Strategy, mesh: Mesh, *, compiled: bool = False) -> int:
    """Bytes that a call of GLOBAL shapes keeps on each device beside values of the graph: statistics, log-probabilities, masks."""
    local = local_call(call, strategy, mesh)
    return (compiled_saved(local) if compiled else saved(local)).extra_bytes


def node_transient_bytes(call: Call, strategy: Strategy, mesh: Mesh, fused: Fused | None = None) -> int:
    """Bytes of temporaries on each device at the worst moment of a call of GLOBAL shapes."""
    local = local_call(call, strategy, mesh)
    return transient_bytes(local) if fused is None else compiled_transient_bytes(local, fused)


def forward_seconds(value_bytes: float, produced: Placements, needed: Placements, mesh: Mesh, hardware: Hardware) -> float:
    """Seconds to bring a value of `value_bytes` (global) to the placements of `needed`: once for all states that share them."""
    return steps_seconds(lower(forward_of(produced), forward_of(needed), mesh), value_bytes, mesh, hardware)


def backward_seconds(gradient_bytes: float, produced: Placements, needed: Placements, mesh: Mesh, hardware: Hardware) -> float:
    """Seconds to bring the gradient back from state `needed` to state `produced`; a gradient has the bytes of its value."""
    return steps_seconds(lower(gradient_of(needed), gradient_of(produced), mesh), gradient_bytes, mesh, hardware)


@dataclass(frozen=True, slots=True)
class ParameterState:
    """What one parameter costs each device by the way it is stored."""

    bytes: ParameterBytes
    optimizer_s: float


def parameter_state(
    shape: tuple[int, ...], stored: Placements, mesh: Mesh, hardware: Hardware, options: Options, *, trainable: bool = True
) -> ParameterState:
    """Local bytes of parameter, gradient and optimizer states, and the seconds of the optimizer step over them."""
    held = state_bytes(
        prod(local_shape(shape, stored, mesh)), options.precision, options.optimizer, trainable=trainable and trains(options)
    )
    steps = options.optimizer != "none"
    return ParameterState(held, optimizer_seconds(held.parameter, held.gradient, held.optimizer, hardware) if steps else 0.0)


def parameter_gradient_bytes(parameter_bytes: int, options: Options) -> int:
    """Bytes of a parameter's gradient as it is reduced: of the parameter's dtype, but fp32 with a master."""
    return 2 * parameter_bytes if options.precision == "bf16-master" else parameter_bytes


def parameter_forward_seconds(
    parameter_bytes: int, stored: Placements, used: Placements, mesh: Mesh, hardware: Hardware, *, regather: bool, trains: bool
) -> float:
    """Seconds to gather a parameter of `parameter_bytes` (global, compute dtype) for its use; twice where it is gathered again in backward."""
    return (2 if regather and trains else 1) * forward_seconds(parameter_bytes, stored, used, mesh, hardware)


def parameter_backward_seconds(
    parameter_bytes: int, stored: Placements, used: Placements, mesh: Mesh, hardware: Hardware, options: Options
) -> float:
    """Seconds to bring a trainable parameter's gradient from its use to how it is stored."""
    return backward_seconds(parameter_gradient_bytes(parameter_bytes, options), stored, used, mesh, hardware)


def used_copy_bytes(value: Value, stored: Placements, used: Placements, mesh: Mesh, options: Options) -> int:
    """Bytes on each device of a parameter as it is used (`value` in compute dtype), where that is not the stored tensor itself.

    With fp32 masters it never is: the use is a bf16 copy.
    """
    if forward_of(stored) == forward_of(used) and options.precision != "bf16-master":
        return 0
    return local_bytes(value, forward_of(used), mesh)
