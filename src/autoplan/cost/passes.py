"""Every op that is neither a product nor attention: the bytes that each of its kernels moves. Shapes are LOCAL."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from math import prod

from autoplan.cost.families import (
    CASTS,
    CUTS,
    DROPOUTS,
    EXPANSIONS,
    LOOKUPS,
    NORMS,
    PIECES,
    RESAMPLING,
    SOFTMAXES,
    op_name,
    spec_bytes,
    splits_classes,
)
from autoplan.cost.hardware import Hardware
from autoplan.rules.row import Call, TensorSpec

Passes = tuple[Sequence[float], Sequence[float]]
"""Bytes read and written by each kernel, forward and backward."""


def passes_of(call: Call) -> Passes:
    """The kernels of a call; of an unknown op, those of a pointwise one."""
    return _PASSES.get(op_name(call.op), _pointwise)(call)


def view_backward_seconds(call: Call, hardware: Hardware) -> float:
    """Seconds in which the gradient of a view becomes that of its base."""
    name = op_name(call.op)
    whole, parts = spec_bytes(call.operands[0]), sum(map(spec_bytes, call.outputs))
    if name in CUTS and parts < whole:
        return hardware.copy_seconds(whole) + hardware.copy_seconds(2 * parts)
    if name in PIECES:
        return hardware.copy_seconds(2 * whole)
    if name in EXPANSIONS and parts > whole:
        return hardware.copy_seconds(parts + whole)
    return 0.0


def _pointwise(call: Call) -> Passes:
    """One kernel forward; backward one for each operand that needs a gradient, reading the output's gradient and what was saved."""
    made = sum(map(spec_bytes, call.outputs))
    forward = [sum(map(spec_bytes, call.operands)) + made]
    gradient = spec_bytes(call.outputs[0]) if call.outputs else 0
    backward: list[float] = []
    for k, spec in enumerate(call.operands):
        if spec.needs_grad:
            others = [spec_bytes(other) for j, other in enumerate(call.operands) if j != k]
            backward.append(gradient + (sum(others) if others else spec_bytes(spec)) + max(spec_bytes(spec), gradient))
            backward.extend(_summed(spec, gradient))
    return forward, backward


def _summed(spec: TensorSpec, gradient: float) -> Iterator[float]:
    """The kernel that sums the gradient of a broadcast operand."""
    if spec_bytes(spec) < gradient:
        yield gradient + spec_bytes(spec)


def _additive(call: Call) -> Passes:
    """add, sub: the gradient is handed on as it is; summed where an operand was broadcast."""
    forward, _ = _pointwise(call)
    gradient = spec_bytes(call.outputs[0])
    return forward, [nbytes for spec in call.operands if spec.needs_grad for nbytes in _summed(spec, gradient)]


def _copying(call: Call) -> Passes:
    """Casts, copies, neg: read and written, both ways."""
    moved = sum(map(spec_bytes, call.operands[:1])) + sum(map(spec_bytes, call.outputs))
    return [moved], [moved]


def _concatenating(call: Call) -> Passes:
    """cat, stack: the gradient is handed on as views."""
    return [2 * sum(map(spec_bytes, call.outputs))], []


def _normalizing(call: Call) -> Passes:
    """Norms read their input twice and write once (our H200 rows of rms_norm: 3 passes within 27 %, 5 % at the middle size).

    Backward: input and gradient twice and the result once, and once more both for the gradients of weight and bias.
    """
    x = spec_bytes(call.operands[0])
    learned = any(spec.needs_grad for spec in call.operands[1:])
    return [3 * x], ([5 * x] if call.operands[0].needs_grad else []) + ([2 * x] if learned else [])


def _softmax(call: Call) -> Passes:
    x = spec_bytes(call.outputs[0])
    return [3 * x], [3 * x]


def _cross_entropy(call: Call) -> Passes:
    """log_softmax (two reads, one write) and the picking of one number per row; backward zeros, then two reads of two, one write.

    Classes that are split take the ops of `rules.ops.losses`, in fp32: maximum, difference, exp and sum; difference, exp and product.
    """
    logits = spec_bytes(call.operands[0])
    if splits_classes(call):
        wide = 4 * prod(call.operands[0].shape)
        cast = [logits + wide] if wide > logits else []
        return [*cast, wide, 2 * wide, 2 * wide, wide], [*cast, *[2 * wide] * 3, *cast]
    return [3 * logits, 8 * row_bytes(call)], [logits, 5 * logits]


def _embedding(call: Call) -> Passes:
    """Rows are read and written; the gradient fills a whole table with zeros and adds rows to it."""
    made = spec_bytes(call.outputs[0])
    table = spec_bytes(call.operands[0])
    return [2 * made], [table, 3 * made]


def _looking_up(call: Call) -> Passes:
    made = spec_bytes(call.outputs[0])
    return [2 * made], [spec_bytes(call.operands[0]), 3 * made]


def _dropping(call: Call) -> Passes:
    """Input, output and one byte of mask per element, each way."""
    x = spec_bytes(call.operands[0])
    mask = prod(call.operands[0].shape)
    return [2 * x + mask], [2 * x + mask]


_PASSES: dict[str, Callable[[Call], Passes]] = {
    **dict.fromkeys(("aten.add", "aten.sub", "aten.rsub"), _additive),
    **dict.fromkeys((*CASTS, *RESAMPLING, "aten.clone", "aten.contiguous", "aten.neg", "aten.repeat", "aten.lift_fresh_copy"), _copying),
    **dict.fromkeys(("aten.cat", "aten.stack"), _concatenating),
    **dict.fromkeys(NORMS, _normalizing),
    **dict.fromkeys(SOFTMAXES, _softmax),
    "aten.cross_entropy_loss": _cross_entropy,
    "aten.embedding": _embedding,
    **dict.fromkeys(LOOKUPS, _looking_up),
    **dict.fromkeys(DROPOUTS, _dropping),
}


def channel_bytes(call: Call) -> int:
    """Bytes of two fp32 numbers for each channel of the first operand."""
    return 8 * call.operands[0].shape[1]


def row_bytes(call: Call) -> int:
    """Bytes of one fp32 number for each row of the first operand."""
    if not call.operands or not call.operands[0].shape:
        return 4
    return 4 * prod(call.operands[0].shape[:-1])
