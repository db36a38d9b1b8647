"""Attention: flops and seconds of `scaled_dot_product_attention`. Shapes are LOCAL."""

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
    forward = max(_attention_seconds(call, work, compute.attention_forward, hardware), hardware.copy_seconds(moved))
    if not needs_backward(call):
        return ComputeCost(forward, forward_flops=work)
    again = _BACKWARD_FLOPS * work
    backward = max(_attention_seconds(call, again, compute.attention_backward, hardware), hardware.copy_seconds(2 * moved))
    return ComputeCost(forward, backward, work, again)


def _attention_seconds(call: Call, work: float, fit: Attention, hardware: Hardware) -> float:
    if not work:
        return 0.0
    q, v = (call.operands[index] for index in operands_at(call, (0, "query"), (2, "value")))
    reached = fit.efficiency((q.shape[-1] + v.shape[-1]) / 2) * min(1.0, work / fit.at_flops) ** fit.exponent
    return work / (hardware.compute.peak(q.dtype) * reached)


def attention_flops(call: Call) -> int:
    """Two products of [queries, keys] for each head; a causal mask leaves half of a square.

    Where queries are split over ranks there are fewer queries than keys: the last rank, for which the others wait, sees all
    keys, and the runtime hands the kernel an explicit mask, under which nothing is skipped.
    """
    q, k, v = (call.operands[index].shape for index in operands_at(call, (0, "query"), (1, "key"), (2, "value")))
    queries, keys = q[-2], k[-2]
    work = 2 * prod(q[:-2]) * queries * keys * (q[-1] + v[-1])
    return work // 2 if call.arg(5, "is_causal", False) and queries >= keys else work
