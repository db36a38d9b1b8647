"""What the choices of one planning run cost: the cost model's primitives, asked for one hardware, mesh and set of options."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from autoplan.assignment.gathers import regather_blocks
from autoplan.assignment.keeps import node_keeps
from autoplan.assignment.names import block_of
from autoplan.cost.buckets import start_seconds
from autoplan.cost.compute import local_call, strategy_seconds
from autoplan.cost.hardware import Hardware
from autoplan.cost.moments import Moment
from autoplan.cost.primitives import (
    accumulated_operands,
    extra_saved_bytes,
    fused_in,
    node_transient_bytes,
    parameter_gradient_bytes,
    parameter_state,
    repeats,
    savings_of,
)
from autoplan.cost.savings import SavedMap, Savings, local_bytes
from autoplan.cost.seconds import ComputeCost
from autoplan.cost.transitions import Moves, Start, TransitionTable
from autoplan.graph.blocks import find_blocks, foldable_prefixes
from autoplan.graph.ir import Graph, Node, Value
from autoplan.graph.segments import Segment, find_segments
from autoplan.placement import Mesh, Placements, R, forward_of
from autoplan.plan.schema import Options
from autoplan.rules.row import Call, Strategy

Array = np.ndarray
EVENLY = 0.1  # of a start: what all that are in it pay as much of
Part = Callable[[Start], float]
"""Of the start of a collective that parameters of a block may be in together, the part that one of them pays for."""


def paid_part(nbytes: int, of_all: Sequence[int]) -> float:
    """The part that one of several parameters pays of a start: mostly by bytes, but what is small joins nobody for nothing."""
    return (1 - EVENLY) * nbytes / sum(of_all) + EVENLY / len(of_all)


@dataclass(frozen=True)
class Prices:
    """Seconds and bytes per device and step, for the choices in one graph."""

    graph: Graph
    mesh: Mesh
    hardware: Hardware
    options: Options

    @cached_property
    def trains(self) -> bool:
        """Whether there is a backward pass."""
        return self.options.mode == "train"

    @cached_property
    def savings(self) -> Savings:
        """Which values are kept for backward, and by whom."""
        return savings_of(self.graph, self.options)

    @cached_property
    def saved(self) -> SavedMap:
        """The same where nothing is recomputed."""
        return self.savings.at(Moment(len(self.graph.nodes), ()))

    @cached_property
    def segments(self) -> tuple[Segment, ...]:
        """The copies of blocks that may recompute; none without a backward pass."""
        return find_segments(self.graph, self.prefixes) if self.trains else ()

    @cached_property
    def blocks(self) -> Mapping[str | None, tuple[Value, ...]]:
        """The parameters of each block, which may travel together."""
        found: dict[str | None, list[Value]] = {}
        for parameter in self.graph.parameters:
            found.setdefault(block_of(parameter.fqn, self.prefixes), []).append(self.graph.values[parameter.value])
        return {block: tuple(values) for block, values in found.items()}

    def read_again(self, value: Value) -> bool:
        """Whether backward needs a parameter's values."""
        return self.trains and any(node_keeps(self.graph, node, operand) for node, operand in self.graph.consumers[value.id])

    @property
    def hides(self) -> bool:
        """Whether parameters of blocks may travel while blocks compute."""
        return bool(self.trains and self.hardware.hides and self.prefixes)

    @cached_property
    def prefixes(self) -> frozenset[str]:
        """Of the repeated blocks."""
        return foldable_prefixes(find_blocks(self.graph))

    def alike(self, call: Call, strategies: Sequence[Strategy]) -> tuple[list[Strategy], Array]:
        """Examples of strategies that cost and take the same, and by strategy which of them it is like.

        Whichever axes cut a call, what counts is what is left of it to one device and the collectives inside it.
        """
        kinds: dict[tuple[object, ...], int] = {}
        examples: list[Strategy] = []
        numbers = []
        for strategy in strategies:
            local = local_call(call, strategy, self.mesh)
            shapes = tuple(spec.shape for spec in (*local.operands, *local.outputs))
            inside = tuple((row.inside, row.inside_backward) for row in strategy.rows)
            number = kinds.setdefault((shapes, inside), len(examples))
            if number == len(examples):
                examples.append(strategy)
            numbers.append(number)
        return examples, np.array(numbers)

    def strategy_costs(self, node: Node, call: Call, strategies: Sequence[Strategy]) -> list[ComputeCost]:
        """What one op costs by each strategy, forward and backward, with the collectives inside it."""
        accumulated = accumulated_operands(self.graph, node)
        fused = fused_in(self.graph, node, self.options)
        return [strategy_seconds(call, strategy, self.mesh, self.hardware, accumulated, fused) for strategy in strategies]

    def repeats(self, node: Node) -> bool:
        """Whether an op runs once more where its block recomputes."""
        return repeats(self.graph, node, self.options)

    def kept_by_op_bytes(self, call: Call, strategy: Strategy) -> int:
        """Bytes that an op keeps beside values of the graph: statistics and masks."""
        return extra_saved_bytes(call, strategy, self.mesh, compiled=self.options.compile) if self.trains else 0

    def made_bytes(self, value: int, state: Placements) -> int:
        """Bytes of a value as it was made."""
        return local_bytes(self.graph.values[value], forward_of(state), self.mesh)

    def transient_bytes(self, node: Node, call: Call, strategy: Strategy) -> int:
        """Bytes that an op needs for a moment."""
        return node_transient_bytes(call, strategy, self.mesh, fused_in(self.graph, node, self.options))

    def stored_s(self, value: Value, state: Placements) -> float:
        """Seconds of the optimizer step over a parameter stored in `state`; nothing for other values."""
        return self._state(value, state).optimizer_s if value.kind == "parameter" else 0.0

    def stored_bytes(self, value: Value, state: Placements) -> tuple[int, int]:
        """Bytes of a parameter with its optimizer states, and of its gradient; or of a buffer. Inputs count as activations."""
        if value.kind == "parameter":
            held = self._state(value, state).bytes
            return held.parameter + held.optimizer, held.gradient
        return (0 if value.kind == "input" else local_bytes(value, state, self.mesh)), 0

    def _state(self, value: Value, state: Placements):  # type: ignore[no-untyped-def]  # ParameterState
        return parameter_state(value.shape, state, self.mesh, self.hardware, self.options, trainable=value.needs_grad)

    def of_value(self, value: Value, block: str | None) -> ValuePrices:
        """The prices of what happens to one value; a parameter of a repeated block travels with the others of it."""
        together = () if block is None else self.blocks[block]
        alike = [other for other in together if other.dtype == value.dtype]
        again = [other.bytes for other in alike if self.read_again(other)]
        return ValuePrices(
            self,
            value,
            block,
            sum(other.bytes for other in together),
            paid_part(value.bytes, [other.bytes for other in alike]) if alike else 1.0,
            paid_part(value.bytes, again) if self.read_again(value) and again else 0.0,
        )

    @cached_property
    def transitions(self) -> TransitionTable:
        """What redistributions cost on this mesh."""
        return TransitionTable(self.mesh, self.hardware)


@dataclass(frozen=True, slots=True)
class ValuePrices:
    """What it costs to move and to keep one value.

    The parameters of its block have `block_bytes`. Of what starting their collectives takes it pays for `part` while nothing is known of
    who is in them, and for `part_again` where what backward needs is gathered.
    """

    prices: Prices
    value: Value
    block: str | None
    block_bytes: int = 0
    part: float = 1.0
    part_again: float = 0.0

    @property
    def is_parameter(self) -> bool:
        """Whether the value is a parameter."""
        return self.value.kind == "parameter"

    @property
    def regathers(self) -> bool:
        """Whether the parameter is dropped after forward, to be gathered once more if backward needs it."""
        return self.block is not None and self.prices.trains and regather_blocks(self.block, "block")

    @property
    def gathers_again(self) -> bool:
        """Whether the parameter is gathered once more in backward even where nothing recomputes."""
        return self.regathers and self.prices.read_again(self.value)

    @property
    def home_is_free(self) -> bool:
        """Whether reading the value as it was made takes no copy: a parameter as stored, an output its producer keeps or a view."""
        if self.is_parameter:
            return self.prices.options.precision != "bf16-master"
        return self.value.id in self.prices.saved.made or self.value.id in self.prices.saved.alias_of

    @property
    def has_gradient(self) -> bool:
        """Whether there is a gradient to bring back."""
        return self.prices.trains and self.value.needs_grad

    def forward_s(self, moves: Moves) -> Array:
        """[source, target]: seconds to bring the value to other placements once, of a block's parameter without starts."""
        return self._moves_s(self.value.bytes, self.block_bytes, moves)

    def backward_s(self, moves: Moves) -> Array:
        """[source, target]: seconds to bring the gradient back, likewise."""
        if not self.is_parameter:
            return self._moves_s(self.value.bytes, 0, moves)
        options = self.prices.options
        return self._moves_s(
            parameter_gradient_bytes(self.value.bytes, options), parameter_gradient_bytes(self.block_bytes, options), moves
        )

    def _moves_s(self, nbytes: int, block_bytes: int, moves: Moves) -> Array:
        table = self.prices.transitions
        return table.seconds(nbytes, moves) if self.block is None else table.carried_seconds(nbytes, block_bytes, moves)

    def starts_s(self, moves: Moves, part: Part) -> Array:
        """[source, target]: seconds of starts of collectives, of each so large a part."""
        if self.block is None:
            return np.zeros((len(moves.sources), len(moves.targets)))
        mesh, hardware = self.prices.mesh, self.prices.hardware
        return self.prices.transitions.starts(moves, lambda start: part(start) * start_seconds(start.kind, start.axes, mesh, hardware))

    def host_s(self, moves: Moves, part: Part) -> Array:
        """[source, target]: seconds that the host is busy to bring the value or its gradient to other placements once.

        Of a block's collectives so large a part, as they are started once for all parameters.
        """
        host, table = self.prices.hardware.host, self.prices.transitions
        collectives = table.collectives(moves)
        steps_s = collectives * host.redistribution_s + (table.steps(moves) - collectives) * host.one_way_s
        if self.block is None:
            return steps_s
        return steps_s - host.redistribution_s * table.starts(moves, lambda start: 1 - part(start))

    def kept_bytes(self, used: Placements) -> int:
        """Bytes of a copy in placements `used` that lasts until backward; of a parameter that is not gathered again, if an op keeps it."""
        if self.value.kind in ("buffer", "constant"):
            return 0
        if self.is_parameter and self.prices.trains and (self.regathers or not self.prices.saved.keepers.get(self.value.id)):
            return 0
        return local_bytes(self.value, used, self.prices.mesh)

    def in_flight_bytes(self, used: Placements) -> int:
        """Bytes that only the block at work needs: its gathered parameters and their gradients."""
        if not self.prices.trains:
            return 0
        size = local_bytes(self.value, used, self.prices.mesh)
        return size * self.regathers + size * self.value.needs_grad

    def unreduced_bytes(self, stored: Placements) -> int:
        """Bytes of the gradient before it is reduced, which only the block at work needs, of a parameter read as it is stored.

        It is partial wherever ranks hold the same part of the parameter, unless they all compute the same (as norms may).
        """
        is_shared = any(placement == R and size > 1 for placement, size in zip(stored, self.prices.mesh.shape, strict=True))
        if not (self.has_gradient and self.home_is_free and is_shared):
            return 0
        return local_bytes(self.value, stored, self.prices.mesh)
