"""Seconds of one op on one device, forward and backward: a roofline with measured efficiencies. Shapes are LOCAL.

Matmuls and attention by their flops, everything else by the bytes it moves, nothing faster than a launch, views free.
Backward counts only gradients of operands that need one. The planner asks thousands of times: arithmetic only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from math import prod

from autoplan.cost.communication import collective_seconds
from autoplan.cost.families import (
    ATTENTION,
    CASTS,
    CUTS,
    DROPOUTS,
    EXPANSIONS,
    LOOKUPS,
    NORMS,
    PIECES,
    SOFTMAXES,
    is_view,
    needs_backward,
    op_name,
    spec_bytes,
)
from autoplan.cost.hardware import Attention, Hardware
from autoplan.graph.ir import ITEM_BYTES
from autoplan.placement import Mesh
from autoplan.rules.combine import cut_call
from autoplan.rules.row import Call, Strategy, TensorSpec


@dataclass(frozen=True, slots=True)
class ComputeCost:
    """Seconds and flops of one call on one device; `inside_s` are the collectives inside its local implementation."""

    forward_s: float = 0.0
    backward_s: float = 0.0
    forward_flops: float = 0.0
    backward_flops: float = 0.0
    inside_s: float = 0.0

    @property
    def seconds(self) -> float:
        """Everything together."""
        return self.forward_s + self.backward_s + self.inside_s


@dataclass(frozen=True, slots=True)
class Product:
    """`batch` products [m, k] @ [k, n] that read operands `left` and `right` of a call."""

    batch: int
    m: int
    n: int
    k: int
    left: int
    right: int

    @property
    def flops(self) -> int:
        """Two for each multiply-add."""
        return 2 * self.batch * self.m * self.n * self.k


def call_seconds(call: Call, hardware: Hardware, accumulated: frozenset[int] = frozenset()) -> ComputeCost:
    """What a call of LOCAL shapes costs on one device, forward and backward.

    `accumulated` are operands with another reader whose gradient is there already: adding to it is one more kernel
    (see `primitives.accumulated_operands`).
    """
    cost = _cost(call, hardware)
    extra = sum(hardware.copy_seconds(3 * spec_bytes(call.operands[k])) for k in accumulated if call.operands[k].needs_grad)
    if not extra or not needs_backward(call):
        return cost
    return ComputeCost(cost.forward_s, cost.backward_s + extra, cost.forward_flops, cost.backward_flops)


def flops(call: Call) -> int:
    """Forward flops of matmul-like calls; 0 for others. Causal attention counts the visible half."""
    if op_name(call.op) == ATTENTION:
        return _attention_flops(call)
    product = product_of(call)
    return product.flops if product else 0


def local_call(call: Call, strategy: Strategy, mesh: Mesh) -> Call:
    """The call that one device runs under `strategy`."""
    for row, n in zip(strategy.rows, mesh.shape, strict=True):
        call = cut_call(call if call.axis_size == n else _on_axis(call, n), row, n)
    return call


def strategy_seconds(
    call: Call, strategy: Strategy, mesh: Mesh, hardware: Hardware, accumulated: frozenset[int] = frozenset()
) -> ComputeCost:
    """What a call of GLOBAL shapes costs each device under `strategy`, with the collectives inside its local implementation.

    These exchange statistics, one fp32 number for each row of the first operand (cross-entropy: maximum, sum, picked logit;
    norms: the mean square), all local rows at once.
    """
    local = local_call(call, strategy, mesh)
    cost = call_seconds(local, hardware, accumulated)
    inside = strategy.inside()
    if not inside:
        return cost
    statistics = inside_bytes(local)
    inside_s = sum(collective_seconds(kind, axes, statistics, mesh, hardware) for kind, axes in inside)
    return ComputeCost(cost.forward_s, cost.backward_s, cost.forward_flops, cost.backward_flops, inside_s)


def inside_bytes(local: Call) -> int:
    """Bytes that one collective inside a local implementation moves: 4 for each row of the first operand."""
    if not local.operands or not local.operands[0].shape:
        return 4
    return 4 * prod(local.operands[0].shape[:-1])


def optimizer_seconds(parameter_bytes: float, gradient_bytes: float, optimizer_bytes: float, hardware: Hardware) -> float:
    """Seconds of an optimizer step over LOCAL bytes: parameters and states are read and written, gradients read; one fused kernel."""
    if not gradient_bytes:
        return 0.0
    return (2 * parameter_bytes + gradient_bytes + 2 * optimizer_bytes) / hardware.compute.bytes_per_s


def _on_axis(call: Call, n: int) -> Call:
    return Call(call.op, call.args, call.kwargs, call.operands, call.outputs, n)


def _cost(call: Call, hardware: Hardware) -> ComputeCost:
    name = op_name(call.op)
    if is_view(call):
        return ComputeCost(backward_s=_view_backward(name, call, hardware)) if needs_backward(call) else ComputeCost()
    if name == ATTENTION:
        return _attention(call, hardware)
    product = product_of(call)
    if product:
        return _matmul(call, product, hardware)
    forward, backward = _PASSES.get(name, _pointwise)(call)
    seconds = hardware.copy_seconds
    return ComputeCost(sum(map(seconds, forward)), sum(map(seconds, backward)) if needs_backward(call) else 0.0)


# --- matmuls ---------------------------------------------------------------------------------------------------------


def matmul_seconds(product: Product, dtype: str, hardware: Hardware) -> float:
    """Seconds of a matrix product: flops at the efficiency its shape reaches, plus the bytes of its three matrices."""
    fit, compute = hardware.compute.matmul, hardware.compute
    if not product.flops:
        return 0.0
    speed = compute.peak(dtype) * fit.efficiency
    slow = (1 + fit.half_depth / product.k) * (1 + fit.half_tile / (product.batch * product.m * product.n))
    moved = product.batch * (product.m * product.k + product.k * product.n + product.m * product.n) * ITEM_BYTES[dtype]
    return max(compute.launch_s, product.flops / speed * slow + moved / compute.bytes_per_s)


def product_of(call: Call) -> Product | None:
    """The matrix product that a call is; None for other ops."""
    reader = _PRODUCTS.get(op_name(call.op))
    return reader(call) if reader else None


def _matmul(call: Call, product: Product, hardware: Hardware) -> ComputeCost:
    dtype = call.operands[product.left].dtype
    forward = matmul_seconds(product, dtype, hardware)
    if not needs_backward(call):
        return ComputeCost(forward, forward_flops=product.flops)
    backward = backward_flops = 0.0
    m, n, k = product.m, product.n, product.k
    for operand, gradient in ((product.left, (m, k, n)), (product.right, (k, n, m))):
        if call.operands[operand].needs_grad:
            backward += matmul_seconds(Product(product.batch, *gradient, 0, 0), dtype, hardware)
            backward_flops += product.flops
    for index, spec in enumerate(call.operands):
        if spec.needs_grad and index not in (product.left, product.right):  # a bias: the sum of the gradient's rows
            backward += hardware.copy_seconds(spec_bytes(call.outputs[0]) + spec_bytes(spec))
    return ComputeCost(forward, backward, product.flops, backward_flops)


def _operands(call: Call, *positions: tuple[int, str]) -> list[int]:
    found = [call.operand(position, name) for position, name in positions]
    assert None not in found, call.op
    return [index for index in found if index is not None]


def _linear(call: Call) -> Product:
    left, right = _operands(call, (0, "input"), (1, "weight"))
    x, w = call.operands[left].shape, call.operands[right].shape
    return Product(1, prod(x[:-1]), w[0] if len(w) > 1 else 1, x[-1], left, right)


def _addmm(call: Call) -> Product:
    left, right = _operands(call, (1, "mat1"), (2, "mat2"))
    return _of_matrices(call, left, right)


def _baddbmm(call: Call) -> Product:
    left, right = _operands(call, (1, "batch1"), (2, "batch2"))
    return _of_matrices(call, left, right)


def _mm(call: Call) -> Product:
    left, right = _operands(call, (0, "self"), (1, "mat2"))
    return _of_matrices(call, left, right)


def _matmul_any(call: Call) -> Product:
    left, right = _operands(call, (0, "self"), (1, "other"))
    return _of_matrices(call, left, right)


def _of_matrices(call: Call, left: int, right: int) -> Product:
    a, b, out = call.operands[left].shape, call.operands[right].shape, call.outputs[0].shape
    k = a[-1] if a else 1
    m = a[-2] if len(a) > 1 else 1
    n = b[-1] if len(b) > 1 else 1
    return Product(max(1, prod(out) // max(1, m * n)), m, n, k, left, right)


def _convolution(call: Call) -> Product:
    """im2col: rows are output positions, columns output channels, depth is input channels of a group times the kernel."""
    left, right = _operands(call, (0, "input"), (1, "weight"))
    w, out = call.operands[right].shape, call.outputs[0].shape
    return Product(1, out[0] * prod(out[2:]), out[1], prod(w[1:]), left, right)


_PRODUCTS: dict[str, Callable[[Call], Product]] = {
    "aten.linear": _linear,
    "aten.addmm": _addmm,
    "aten.baddbmm": _baddbmm,
    "aten.mm": _mm,
    "aten.bmm": _mm,
    "aten.matmul": _matmul_any,
    "aten.conv1d": _convolution,
    "aten.conv2d": _convolution,
    "aten.conv3d": _convolution,
    "aten.convolution": _convolution,
}


# --- attention -------------------------------------------------------------------------------------------------------

_BACKWARD_FLOPS = 2.5  # FlashAttention-2 (Dao 2023), section 4.1: five products backward for two forward


def _attention(call: Call, hardware: Hardware) -> ComputeCost:
    compute, dtype = hardware.compute, call.operands[0].dtype
    work = _attention_flops(call)
    moved = sum(map(spec_bytes, (*call.operands, *call.outputs)))
    forward = max(_attention_seconds(work, dtype, compute.attention_forward, hardware), hardware.copy_seconds(moved))
    if not needs_backward(call):
        return ComputeCost(forward, forward_flops=work)
    again = _BACKWARD_FLOPS * work
    backward = max(_attention_seconds(again, dtype, compute.attention_backward, hardware), hardware.copy_seconds(2 * moved))
    return ComputeCost(forward, backward, work, again)


def _attention_seconds(work: float, dtype: str, fit: Attention, hardware: Hardware) -> float:
    if not work:
        return 0.0
    return work / (hardware.compute.peak(dtype) * fit.efficiency * min(1.0, work / fit.at_flops) ** fit.exponent)


def _attention_flops(call: Call) -> int:
    """Two products of [queries, keys] for each head; a causal mask leaves half of a square.

    Where queries are split over ranks there are fewer queries than keys: the last rank, for which the others wait, sees all
    keys, and the runtime hands the kernel an explicit mask, under which nothing is skipped.
    """
    q, k, v = (call.operands[index].shape for index in _operands(call, (0, "query"), (1, "key"), (2, "value")))
    queries, keys = q[-2], k[-2]
    work = 2 * prod(q[:-2]) * queries * keys * (q[-1] + v[-1])
    return work // 2 if call.arg(5, "is_causal", False) and queries >= keys else work


# --- everything else: bytes of each kernel, forward and backward -------------------------------------------------------

Passes = tuple[Sequence[float], Sequence[float]]


def _view_backward(name: str, call: Call, hardware: Hardware) -> float:
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
    """log_softmax (two reads, one write) and the picking of one number per row; backward zeros, then two reads of two, one write."""
    logits = spec_bytes(call.operands[0])
    return [3 * logits, 8 * inside_bytes(call)], [logits, 5 * logits]


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
    **dict.fromkeys((*CASTS, "aten.clone", "aten.contiguous", "aten.neg", "aten.repeat", "aten.lift_fresh_copy"), _copying),
    **dict.fromkeys(("aten.cat", "aten.stack"), _concatenating),
    **dict.fromkeys(NORMS, _normalizing),
    **dict.fromkeys(SOFTMAXES, _softmax),
    "aten.cross_entropy_loss": _cross_entropy,
    "aten.embedding": _embedding,
    **dict.fromkeys(LOOKUPS, _looking_up),
    **dict.fromkeys(DROPOUTS, _dropping),
}
