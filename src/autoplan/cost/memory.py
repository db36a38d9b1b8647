"""Bytes on one device: what ops save for their backward, what they need for a moment, and the states of parameters.

The table of saved tensors is what torch saves (tests/cost/test_saved.py checks it with saved_tensors_hooks), of its CUDA
kernels where they differ from the CPU's: `rms_norm` is one fused op there (the CPU composes it and saves x / rms(x) too, and in
bf16 an fp32 copy of x), statistics are fp32, and `dropout` keeps a mask of bools (the CPU one in the dtype of its input).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import prod

from autoplan.cost.families import (
    ATTENTION,
    CASTS,
    DROPOUTS,
    GROUPED_PRODUCTS,
    LINEAR,
    LOOKUPS,
    NORMS,
    OUTPUT_SAVED,
    is_view,
    needs_backward,
    op_name,
    spec_bytes,
)
from autoplan.graph.routed_experts import ROUTED_EXPERTS, body_of
from autoplan.rules.ops.experts import body_calls, operand_kinds
from autoplan.rules.row import Call

_NONE: frozenset[int] = frozenset()


@dataclass(frozen=True, slots=True)
class Saved:
    """What one call keeps until its backward: operands and outputs by number, and bytes that no value of the graph holds."""

    operands: frozenset[int] = _NONE
    outputs: frozenset[int] = _NONE
    extra_bytes: int = 0


@dataclass(frozen=True, slots=True)
class ParameterBytes:
    """Bytes of a parameter, or of parameters, between steps and in the optimizer step."""

    parameter: int
    gradient: int
    optimizer: int


def saved(call: Call) -> Saved:
    """What the call saves for its backward; nothing where no gradient flows. Of an unknown op: all operands."""
    if not needs_backward(call) or is_view(call):
        return Saved()
    name = op_name(call.op)
    if name in LINEAR or name in CASTS:
        return Saved()
    if name in OUTPUT_SAVED:
        return Saved(outputs=frozenset({0}))
    return _SAVED.get(name, _all_operands)(call)


def _all_operands(call: Call) -> Saved:
    return Saved(frozenset(range(len(call.operands))))


def _factors(call: Call) -> Saved:
    """Products: each factor, if another needs a gradient (a bias is no factor)."""
    factors = _factor_operands(call)
    return Saved(frozenset(k for k in factors if any(call.operands[j].needs_grad for j in factors if j != k)))


def _factor_operands(call: Call) -> tuple[int, ...]:
    positions = {"aten.linear": (0, 1), "aten.addmm": (1, 2), "aten.baddbmm": (1, 2)}.get(op_name(call.op), (0, 1))
    return tuple(k for k in (call.operand(position) for position in positions) if k is not None) or tuple(range(len(call.operands)))


def _quotient(call: Call) -> Saved:
    if len(call.operands) < 2:
        return Saved()
    return Saved(frozenset({0, 1}) if call.operands[1].needs_grad else frozenset({1}))


def _conditions(call: Call) -> Saved:
    """where, masked_fill: the condition alone."""
    return Saved(frozenset(k for k, spec in enumerate(call.operands) if spec.dtype == "bool"))


def _indices(call: Call) -> Saved:
    return Saved(frozenset(k for k, spec in enumerate(call.operands) if k and "int" in spec.dtype))


def _attention(call: Call) -> Saved:
    """q, k, v, the mask, the output, and the log-sum-exp of each query in fp32; with split queries also a causal mask of bools."""
    queries, keys = call.operands[0].shape[-2], call.operands[1].shape[-2]
    mask = queries * keys if call.arg(5, "is_causal", False) and queries < keys else 0
    return Saved(frozenset(range(len(call.operands))), frozenset({0}), 4 * prod(call.operands[0].shape[:-1]) + mask)


def _norm(call: Call) -> Saved:
    """The input, the weight, and for each row its mean and 1 / deviation in fp32 (rms_norm: no mean)."""
    statistics = 1 if "rms_norm" in call.op else 2
    width = _normalized_width(call)
    return Saved(frozenset(range(len(call.operands))), _NONE, 4 * statistics * (prod(call.operands[0].shape) // max(1, width)))


def _normalized_width(call: Call) -> int:
    """How many elements share one mean: the normalized dims, or those of one group or channel."""
    shape, name = call.operands[0].shape, op_name(call.op)
    if "group_norm" in name:
        position, word = (6, "group") if "native" in name else (1, "num_groups")
        return prod(shape[2:]) * call.uncut_shape(0)[1] // int(call.arg(position, word, 1))
    if "instance_norm" in name:
        return prod(shape[2:])
    if "batch_norm" in name:
        return prod(shape) // shape[1]
    normalized = call.arg(1, "normalized_shape", ())
    dims = len(normalized) if isinstance(normalized, list | tuple) else 1
    return prod(shape[len(shape) - dims :])


def _cross_entropy(call: Call) -> Saved:
    """log_softmax of the logits, in their dtype, the targets, and the weights' sum."""
    return Saved(frozenset(range(1, len(call.operands))), _NONE, spec_bytes(call.operands[0]))


def _experts(call: Call) -> Saved:
    """What the steps of the body save: weights as they are, and rows in the experts' order, each once; the order and its inverse.

    With the rows themselves go the ids that indexing saves: the order, once for each.
    """
    body = body_of(call.args[5])
    rows, ids, _ = operand_kinds(call)
    kept: dict[int, int] = {}
    weights: set[int] = set()
    extra = 8 * call.operands[ids].shape[0] * (len(rows) + 1)
    for step, reads, makes in body_calls(call):
        found = saved(step)
        extra += found.extra_bytes
        base = {reads[k]: step.operands[k] for k in found.operands} | {makes[k]: step.outputs[k] for k in found.outputs}
        weights |= {value for value in base if body.rows <= value < body.ids}
        kept |= {value: spec_bytes(spec) for value, spec in base.items() if not body.rows <= value < body.offsets + 1}
    return Saved(frozenset(value + 1 for value in weights), _NONE, extra + sum(kept.values()))


def _dropout(call: Call) -> Saved:
    return Saved(extra_bytes=prod(call.operands[0].shape))


def _native_dropout(call: Call) -> Saved:
    return Saved(outputs=frozenset({1}))


def _extremum(call: Call) -> Saved:
    return Saved(frozenset({0}), frozenset({0}))


_SAVED: dict[str, Callable[[Call], Saved]] = {
    **dict.fromkeys(("aten.linear", "aten.addmm", "aten.baddbmm", "aten.mm", "aten.bmm", "aten.matmul", "aten.mul"), _factors),
    **dict.fromkeys(GROUPED_PRODUCTS, _factors),
    **dict.fromkeys(("aten.conv1d", "aten.conv2d", "aten.conv3d", "aten.convolution"), _factors),
    **dict.fromkeys((f"aten.conv_transpose{n}d" for n in (1, 2, 3)), _factors),
    "aten.div": _quotient,
    **dict.fromkeys(("aten.where", "aten.masked_fill"), _conditions),
    **dict.fromkeys((*LOOKUPS - {"aten.gather"}, "aten.embedding"), _indices),
    ATTENTION: _attention,
    **dict.fromkeys(NORMS, _norm),
    "aten.cross_entropy_loss": _cross_entropy,
    ROUTED_EXPERTS: _experts,
    **dict.fromkeys(DROPOUTS, _dropout),
    "aten.native_dropout": _native_dropout,
    **dict.fromkeys(("aten.amax", "aten.amin"), _extremum),
}


def transient_bytes(call: Call) -> int:
    """Bytes of LOCAL temporaries at the call's worst moment, beside what is saved.

    Backward: the gradients of outputs and operands; cross-entropy first fills another tensor of the logits' size (the gradient
    of log_softmax). Forward (all there is in inference): operands and outputs.
    """
    if is_view(call):
        return 0
    made = sum(map(spec_bytes, call.outputs))
    if not needs_backward(call):
        return sum(map(spec_bytes, call.operands)) + made
    gradients = sum(spec_bytes(spec) for spec in call.operands if spec.needs_grad)
    inner = spec_bytes(call.operands[0]) if op_name(call.op) == "aten.cross_entropy_loss" else 0
    return made + gradients + inner


_ELEMENT_BYTES = {  # parameter, gradient, one state of the optimizer
    "fp32": (4, 4, 4),
    "bf16": (2, 2, 2),
    "bf16-master": (4, 4, 4),  # an fp32 master, gradients reduced in fp32; the bf16 copy that computes counts as gathered
}
_FROZEN_BYTES = {"fp32": 4, "bf16": 2, "bf16-master": 2}
_STATES = {"adamw": 2, "sgd": 0, "none": 0}


def state_bytes(numel: int, precision: str, optimizer: str, *, trainable: bool = True) -> ParameterBytes:
    """Bytes of `numel` parameter elements with their gradient and optimizer states. Frozen ones have neither, and no master.

    adamw keeps two states per element, sgd (without momentum) and none keep no state; `none` still makes gradients.
    """
    if not trainable:
        return ParameterBytes(numel * _FROZEN_BYTES[precision], 0, 0)
    parameter, gradient, state = _ELEMENT_BYTES[precision]
    return ParameterBytes(numel * parameter, numel * gradient, numel * state * _STATES[optimizer])
