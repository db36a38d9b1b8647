"""Seconds and bytes of ops in compiled pieces: what `passes`, `compute` and `memory` say of eager ones. Shapes are LOCAL.

Ops with kernels of their own cost what they cost eager. Of those that fuse only what they move to or from memory counts, at the
same bytes per second; what lies between them costs nothing. The mask of a dropout is drawn by a kernel of its own. Two things are as
the profiles of compiled steps show them (benchmarks/runtime/h200x2-*.jsonl): cross-entropy takes the time of three reads of its logits
forward (4.2 GB in 3.1 ms, and in 3.0 ms split by classes), and split by classes its gradient lies in memory in fp32 before it is cast
(its scatter does not fuse).
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from math import prod

from autoplan.cost.families import is_view, mask_size, needs_backward, op_name, spec_bytes, splits_classes
from autoplan.cost.fusion import Fused
from autoplan.cost.hardware import Hardware
from autoplan.cost.memory import transient_bytes
from autoplan.cost.remat import compiled_saved
from autoplan.cost.seconds import ComputeCost
from autoplan.rules.row import Call, TensorSpec

_PASSED_ON = frozenset({"aten.add", "aten.sub", "aten.rsub"})
_MORE_READS = 2  # of the logits, beside the one of the stage they come in


def fused_cost(call: Call, fused: Fused, hardware: Hardware) -> ComputeCost:
    """What a call adds to the kernels of its stage."""
    if is_view(call):
        return ComputeCost()
    written, beside = _sum(call.outputs, fused.writes), compiled_saved(call).extra_bytes
    forward = _seconds(_sum(call.operands, fused.reads) + written + beside + _read_more(call, fused), bool(written), hardware)
    forward += hardware.mask_seconds(mask_size(call))
    again = _sum(call.operands, fused.again) + beside
    if not needs_backward(call):
        return ComputeCost(forward, again / hardware.compute.bytes_per_s)
    made = gradient_bytes(call, fused)
    wide = 2 * wide_gradient_bytes(call)
    arriving = 0 if op_name(call.op) in _PASSED_ON and not _has_inner(call, fused) else _sum(call.outputs, fused.arrives)
    return ComputeCost(forward, _seconds(again + arriving + made + wide, bool(made), hardware))


def gradient_bytes(call: Call, fused: Fused) -> int:
    """Bytes of the gradients that a fused call writes: of operands that lie in memory. Sums hand on the one they get."""
    made = [spec_bytes(spec) for spec, read in zip(call.operands, fused.reads, strict=True) if read and spec.needs_grad]
    if op_name(call.op) not in _PASSED_ON:
        return sum(made)
    whole = spec_bytes(call.outputs[0])
    broadcast = sum(nbytes for nbytes in made if nbytes < whole)
    return broadcast + (0 if all(fused.arrives) else max((nbytes for nbytes in made if nbytes == whole), default=0))


def wide_gradient_bytes(call: Call) -> int:
    """Bytes of the fp32 gradient of logits of which this rank has a part of the classes; 0 for other calls."""
    logits = call.operands[0]
    return 4 * prod(logits.shape) if splits_classes(call) and logits.needs_grad else 0


def compiled_transient_bytes(call: Call, fused: Fused) -> int:
    """Bytes of LOCAL temporaries at the call's worst moment, as `memory.transient_bytes`, without what never is in memory."""
    if is_view(call):
        return 0
    replaced = _sum(call.outputs, fused.made_in_place) if needs_backward(call) else 0
    if not fused.fuses:
        return transient_bytes(call) - replaced
    if not needs_backward(call):
        return _sum(call.operands, fused.reads) + _sum(call.outputs, fused.writes)
    elsewhere = tuple(read and not place for read, place in zip(fused.reads, fused.in_place, strict=True))
    return _sum(call.outputs, fused.arrives) + gradient_bytes(call, replace(fused, reads=elsewhere)) + wide_gradient_bytes(call)


def accumulation_bytes(call: Call, fused: Fused, accumulated: Collection[int]) -> tuple[float, float]:
    """Bytes that adding to gradients moves: by the kernel that goes on with the sum, one more read; else by one of its own, three."""
    grads = [(k, spec_bytes(call.operands[k])) for k in accumulated if call.operands[k].needs_grad]
    inside = sum(nbytes for k, nbytes in grads if fused.fuses or fused.made_fused[k])
    return inside, 3 * (sum(nbytes for _, nbytes in grads) - inside)


def _has_inner(call: Call, fused: Fused) -> bool:
    return any(spec.needs_grad and inner for spec, inner in zip(call.operands, fused.inside, strict=True))


def _read_more(call: Call, fused: Fused) -> int:
    if op_name(call.op) != "aten.cross_entropy_loss":
        return 0
    return _MORE_READS * prod(call.operands[0].shape) * fused.item_bytes[0]


def _sum(specs: Sequence[TensorSpec], counted: Sequence[bool]) -> int:
    return sum(spec_bytes(spec) for spec, counts in zip(specs, counted, strict=True) if counts)


def _seconds(nbytes: float, is_kernel: bool, hardware: Hardware) -> float:
    """A kernel ends where something is written, and takes no less than a launch."""
    return max(hardware.compute.launch_s if is_kernel else 0.0, nbytes / hardware.compute.bytes_per_s)
