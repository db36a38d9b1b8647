"""Seconds of one op on one device, forward and backward: a roofline with measured efficiencies. Shapes are LOCAL.

Matmuls and attention by their flops, everything else by the bytes it moves, nothing faster than a launch, views free.
Backward counts only gradients of operands that need one. The planner asks thousands of times: arithmetic only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from autoplan.cost.attention import attention_cost, attention_flops
from autoplan.cost.communication import collective_seconds
from autoplan.cost.compiled import accumulation_bytes, fused_cost
from autoplan.cost.families import ATTENTION, BATCH_NORMS, is_view, mask_size, needs_backward, op_name, spec_bytes
from autoplan.cost.fusion import Fused
from autoplan.cost.hardware import Hardware
from autoplan.cost.matmul import matmul_cost, product_of
from autoplan.cost.passes import channel_bytes, passes_of, row_bytes, view_backward_seconds
from autoplan.cost.seconds import ComputeCost
from autoplan.graph.routed_experts import ROUTED_EXPERTS
from autoplan.placement import Mesh
from autoplan.rules.combine import cut_call, on_axis
from autoplan.rules.ops.experts import body_calls, exchanges, operand_kinds, row_size
from autoplan.rules.row import Call, Strategy

IMBALANCE = 1.25
"""How much more the busiest rank of an expert-parallel axis has to do than the average: the capacity that Switch Transformer
(Fedus et al. 2022, section 2.2) leaves each expert. It depends on the data, so no plan can know it."""


def call_seconds(call: Call, hardware: Hardware, accumulated: frozenset[int] = frozenset(), fused: Fused | None = None) -> ComputeCost:
    """What a call of LOCAL shapes costs on one device, forward and backward.

    `accumulated` are operands with another reader whose gradient is there already: adding to it is one more kernel
    (see `primitives.accumulated_operands`). `fused` says how it takes part in a compiled piece; None for eager.
    """
    if fused is None:
        cost = _cost(call, hardware)
        extra = sum(hardware.copy_seconds(3 * spec_bytes(call.operands[k])) for k in accumulated if call.operands[k].needs_grad)
    else:
        cost = fused_cost(call, fused, hardware) if fused.fuses else _cost(call, hardware, compiled=True)
        inside, alone = accumulation_bytes(call, fused, accumulated)
        extra = inside / hardware.compute.bytes_per_s + hardware.copy_seconds(alone)
    if not extra or not needs_backward(call):
        return cost
    return ComputeCost(cost.forward_s, cost.backward_s + extra, cost.forward_flops, cost.backward_flops)


def flops(call: Call) -> int:
    """Forward flops of matmul-like calls; 0 for others. Causal attention counts the visible half."""
    if op_name(call.op) == ATTENTION:
        return attention_flops(call)
    if op_name(call.op) == ROUTED_EXPERTS:
        return sum(flops(step) for step, _, _ in body_calls(call))
    product = product_of(call)
    return product.flops if product else 0


def local_call(call: Call, strategy: Strategy, mesh: Mesh) -> Call:
    """The call that one device runs under `strategy`."""
    if strategy.part is not None:
        return strategy.part
    for row, n in zip(strategy.rows, mesh.shape, strict=True):
        call = cut_call(on_axis(call, n), row, n)
    return call


def strategy_seconds(
    call: Call,
    strategy: Strategy,
    mesh: Mesh,
    hardware: Hardware,
    accumulated: frozenset[int] = frozenset(),
    fused: Fused | None = None,
) -> ComputeCost:
    """What a call of GLOBAL shapes costs each device under `strategy`, with the collectives inside its local implementation.

    These exchange statistics: one fp32 number for each local row of the first operand (cross-entropy: maximum, sum, picked
    logit), or two for each channel (batch norm: mean and variance, gathered; two sums of gradients). Experts exchange the rows.
    """
    local = local_call(call, strategy, mesh)
    cost = call_seconds(local, hardware, accumulated, fused)
    inside = strategy.inside()
    if not inside:
        return cost
    if op_name(call.op) == ROUTED_EXPERTS:
        cost = cost.times(IMBALANCE)
    inside_s = [
        collective_seconds(kind, axes, amount, mesh, hardware)
        for (kind, axes), amount in zip(inside, _exchanged_bytes(local, inside, mesh), strict=True)
    ]
    return replace(cost, inside_s=sum(inside_s), inside_forward_s=_forward_part(inside_s, strategy))


def _forward_part(inside_s: Sequence[float], strategy: Strategy) -> float:
    """The seconds of the collectives that a forward runs, of those inside an op by axis."""
    seconds, start = 0.0, 0
    for row in strategy.rows:
        seconds += sum(inside_s[start : start + len(row.inside) - row.inside_backward])
        start += len(row.inside)
    return seconds


def _exchanged_bytes(local: Call, inside: Sequence[tuple[str, tuple[int, ...]]], mesh: Mesh) -> list[int]:
    """Bytes of each collective inside a local implementation; experts have the same ones on each of their axes."""
    if op_name(local.op) == ROUTED_EXPERTS:
        forward, backward = exchanges(local)
        amounts = forward + backward
        return [*amounts] * (len(inside) // len(amounts))
    statistics = channel_bytes(local) if op_name(local.op) in BATCH_NORMS else row_bytes(local)
    return [statistics * (mesh.group_size(axes) if kind == "all-gather" else 1) for kind, axes in inside]


def experts_cost(call: Call, hardware: Hardware) -> ComputeCost:
    """The steps of the body, each for itself, and the rows brought into the experts' order and back."""
    rows, ids, _ = operand_kinds(call)
    size = call.operands[ids].shape[0]
    moved = sum(2 * size * row_size(call.operands[k]) for k in rows) + 2 * spec_bytes(call.outputs[0])
    there = hardware.copy_seconds(moved)
    steps = [_cost(step, hardware) for step, _, _ in body_calls(call)]
    total = ComputeCost(there, there if needs_backward(call) else 0.0)
    for step in steps:
        total = total.plus(step)
    return total


def optimizer_seconds(parameter_bytes: float, gradient_bytes: float, optimizer_bytes: float, hardware: Hardware) -> float:
    """Seconds of an optimizer step over LOCAL bytes: parameters and states are read and written, gradients read; one fused kernel."""
    if not gradient_bytes:
        return 0.0
    return (2 * parameter_bytes + gradient_bytes + 2 * optimizer_bytes) / hardware.compute.optimizer_bytes_per_s


def _cost(call: Call, hardware: Hardware, *, compiled: bool = False) -> ComputeCost:
    name = op_name(call.op)
    if is_view(call):
        return ComputeCost(backward_s=view_backward_seconds(call, hardware)) if needs_backward(call) else ComputeCost()
    if name == ATTENTION:
        return attention_cost(call, hardware)
    if name == ROUTED_EXPERTS:
        return experts_cost(call, hardware)
    product = product_of(call)
    if product:
        return matmul_cost(call, product, hardware, padded=compiled)
    forward, backward = passes_of(call)
    seconds = hardware.copy_seconds
    forward_s = max(sum(map(seconds, forward)), hardware.mask_seconds(mask_size(call)))
    return ComputeCost(forward_s, sum(map(seconds, backward)) if needs_backward(call) else 0.0)
