"""Attention: flops and seconds of `scaled_dot_product_attention`, and of the weights that it drops. Shapes are LOCAL."""

from __future__ import annotations

from math import prod

from autoplan.cost.families import needs_backward, spec_bytes
from autoplan.cost.hardware import Attention, Hardware
from autoplan.cost.matmul import operands_at
from autoplan.cost.seconds import ComputeCost
from autoplan.rules.row import Call

_BACKWARD_FLOPS = 2.5  # FlashAttention-2 (Dao 2023), section 4.1: five products backward for two forward


def attention_cost(call: Call, hardware: Hardware) -> ComputeCost:
    compute = hardware.compute
    work = attention_flops(call)
    moved = sum(map(spec_bytes, (*call.operands, *call.outputs)))
    drawn = _weights(call) if call.arg(4, "dropout_p", 0.0) else 0
    forward = max(_attention_seconds(call, work, compute.attention_forward, hardware), hardware.copy_seconds(moved))
    forward += drawn * compute.draws.attention_forward_s
    if not needs_backward(call):
        return ComputeCost(forward, forward_flops=work)
    again = _BACKWARD_FLOPS * work
    backward = max(_attention_seconds(call, again, compute.attention_backward, hardware), hardware.copy_seconds(2 * moved))
    backward += drawn * compute.draws.attention_backward_s
    return ComputeCost(forward, backward, work, again)


def _attention_seconds(call: Call, work: float, fit: Attention, hardware: Hardware) -> float:
    if not work:
        return 0.0
    q, v = (call.operands[index] for index in operands_at(call, (0, "query"), (2, "value")))
    reached = fit.efficiency((q.shape[-1] + v.shape[-1]) / 2) * min(1.0, work / fit.at_flops) ** fit.exponent
    return work / (hardware.compute.peak(q.dtype) * reached)


def attention_flops(call: Call) -> int:
    """Two products of [queries, keys] for each head."""
    q, v = (call.operands[index].shape for index in operands_at(call, (0, "query"), (2, "value")))
    return 2 * _weights(call) * (q[-1] + v[-1])


def _weights(call: Call) -> int:
    """How many weights [queries, keys] all heads have; a causal mask leaves half of a square.

    Where queries are split over ranks there are fewer queries than keys: the last rank, for which the others wait, sees all
    keys, and the runtime hands the kernel an explicit mask, under which nothing is skipped.
    """
    q, k = (call.operands[index].shape for index in operands_at(call, (0, "query"), (1, "key")))
    queries, keys = q[-2], k[-2]
    count = prod(q[:-2]) * queries * keys
    return count // 2 if call.arg(5, "is_causal", False) and queries >= keys else count
