"""Matrix products: which calls are one, and the seconds it takes by its shape. Shapes are LOCAL."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import prod

from autoplan.cost.families import GROUPED_PRODUCTS, needs_backward, op_name, spec_bytes
from autoplan.cost.hardware import Hardware
from autoplan.cost.seconds import ComputeCost
from autoplan.graph.ir import ITEM_BYTES
from autoplan.rules.row import Call


@dataclass(frozen=True, slots=True)
class Product:
    """`batch` products [m, k] @ [k, n] that read operands `left` and `right` of a call; `rows` are the lengths of its matrices' rows."""

    batch: int
    m: int
    n: int
    k: int
    left: int
    right: int
    rows: tuple[int, ...] = ()

    @property
    def flops(self) -> int:
        """Two for each multiply-add."""
        return 2 * self.batch * self.m * self.n * self.k


def matmul_seconds(product: Product, dtype: str, hardware: Hardware, *, padded: bool = False) -> float:
    """Seconds of a matrix product: its flops at the efficiency its shape reaches, beside which the bytes of its three matrices move.

    Rows of 16-bit numbers that are no multiple of 16 bytes keep the best kernels away, unless they are `padded`, as torch.compile does.
    """
    fit, compute = hardware.compute.matmul, hardware.compute
    if not product.flops:
        return 0.0
    speed = compute.peak(dtype) * fit.efficiency
    if not padded and ITEM_BYTES[dtype] == 2:
        speed *= min((fit.aligned(length * ITEM_BYTES[dtype]) for length in product.rows), default=1.0)
    slow = (1 + fit.half_depth / product.k) * (1 + fit.half_tile / (product.batch * product.m * product.n))
    moved = product.batch * (product.m * product.k + product.k * product.n + product.m * product.n) * ITEM_BYTES[dtype]
    return max(compute.launch_s, product.flops / speed * slow, moved / compute.bytes_per_s)


def product_of(call: Call) -> Product | None:
    """The matrix product that a call is; None for other ops."""
    reader = _PRODUCTS.get(op_name(call.op))
    return reader(call) if reader else None


def matmul_cost(call: Call, product: Product, hardware: Hardware, *, padded: bool = False) -> ComputeCost:
    dtype = call.operands[product.left].dtype
    forward = matmul_seconds(product, dtype, hardware, padded=padded)
    if not needs_backward(call):
        return ComputeCost(forward, forward_flops=product.flops)
    backward = backward_flops = 0.0
    m, n, k = product.m, product.n, product.k
    for operand, gradient in ((product.left, (m, k, n)), (product.right, (k, n, m))):
        if call.operands[operand].needs_grad:
            backward += matmul_seconds(Product(product.batch, *gradient, 0, 0, product.rows), dtype, hardware, padded=padded)
            backward_flops += product.flops
    for index, spec in enumerate(call.operands):
        if spec.needs_grad and index not in (product.left, product.right):  # a bias: the sum of the gradient's rows
            backward += hardware.copy_seconds(spec_bytes(call.outputs[0]) + spec_bytes(spec))
    return ComputeCost(forward, backward, product.flops, backward_flops)


def operands_at(call: Call, *positions: tuple[int, str]) -> list[int]:
    """The operands that the arguments at these (position, name) are."""
    found = [call.operand(position, name) for position, name in positions]
    assert None not in found, call.op
    return [index for index in found if index is not None]


def _linear(call: Call) -> Product:
    left, right = operands_at(call, (0, "input"), (1, "weight"))
    x, w = call.operands[left].shape, call.operands[right].shape
    n = w[0] if len(w) > 1 else 1
    return Product(1, prod(x[:-1]), n, x[-1], left, right, (x[-1], n))


def _addmm(call: Call) -> Product:
    left, right = operands_at(call, (1, "mat1"), (2, "mat2"))
    return _of_matrices(call, left, right)


def _baddbmm(call: Call) -> Product:
    left, right = operands_at(call, (1, "batch1"), (2, "batch2"))
    return _of_matrices(call, left, right)


def _mm(call: Call) -> Product:
    left, right = operands_at(call, (0, "self"), (1, "mat2"))
    return _of_matrices(call, left, right)


def _matmul_any(call: Call) -> Product:
    left, right = operands_at(call, (0, "self"), (1, "other"))
    return _of_matrices(call, left, right)


def _of_matrices(call: Call, left: int, right: int) -> Product:
    a, b, out = call.operands[left].shape, call.operands[right].shape, call.outputs[0].shape
    k = a[-1] if a else 1
    m = a[-2] if len(a) > 1 else 1
    n = b[-1] if len(b) > 1 else 1
    return Product(max(1, prod(out) // max(1, m * n)), m, n, k, left, right, (k, n))


def _grouped(call: Call) -> Product:
    """As many products as there are experts, each with its share of the rows."""
    left, right = operands_at(call, (0, "self"), (1, "mat2"))
    (n, k), (experts, _, m) = call.operands[left].shape, call.operands[right].shape
    return Product(experts, max(1, n // experts), m, k, left, right)


def _convolution(call: Call) -> Product:
    """im2col: rows are output positions, columns output channels, depth is input channels of a group times the kernel."""
    if op_name(call.op) == "aten.convolution" and call.arg(6, "transposed"):
        return _transposed_convolution(call)
    left, right = operands_at(call, (0, "input"), (1, "weight"))
    w, out = call.operands[right].shape, call.outputs[0].shape
    return Product(1, out[0] * prod(out[2:]), out[1], prod(w[1:]), left, right)


def _transposed_convolution(call: Call) -> Product:
    """col2im: rows are input positions, columns output channels of a group times the kernel, depth is input channels."""
    left, right = operands_at(call, (0, "input"), (1, "weight"))
    x, w = call.operands[left].shape, call.operands[right].shape
    return Product(1, x[0] * prod(x[2:]), prod(w[1:]), x[1], left, right)


_PRODUCTS: dict[str, Callable[[Call], Product]] = {
    "aten.linear": _linear,
    "aten.addmm": _addmm,
    "aten.baddbmm": _baddbmm,
    "aten.mm": _mm,
    "aten.bmm": _mm,
    "aten.matmul": _matmul_any,
    **dict.fromkeys(GROUPED_PRODUCTS, _grouped),
    "aten.conv1d": _convolution,
    "aten.conv2d": _convolution,
    "aten.conv3d": _convolution,
    "aten.convolution": _convolution,
    **dict.fromkeys((f"aten.conv_transpose{n}d" for n in (1, 2, 3)), _transposed_convolution),
}
