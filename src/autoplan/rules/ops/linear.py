"""Matrix products: linear, addmm, mm, bmm, baddbmm, matmul, einsum."""

from __future__ import annotations

from collections.abc import Hashable, Iterator

from autoplan.rules.ops.dims import Labels, product_rows
from autoplan.rules.registry import rule
from autoplan.rules.row import Call, Row, TensorSpec


@rule("aten.linear")
def linear(call: Call) -> Iterator[Row]:
    """x[.., K] @ w[N, K].T + b[N] -> y[.., N]

    x          w         b          y
    S(d,g)     R         R       -> S(d,g)     any leading dim: data or sequence parallel
    R          S(0,g)    S(0,g)  -> S(-1,g)    column parallel
    S(-1,g)    S(1,g)    P       -> P          row parallel: each rank holds a partial sum
    P          R         P       -> P          linear in x
    """
    leading = tuple(range(call.operands[0].ndim - 1))
    factors: dict[int, Labels] = {0: (*leading, "k"), 1: ("n", "k") if call.operands[1].ndim == 2 else ("k",)}
    output = (*leading, "n") if call.operands[1].ndim == 2 else leading
    addends: dict[int, Labels] = {2: output[-1:]} if len(call.operands) == 3 else {}
    yield from product_rows(call, factors, output, addends, linear_in=(0,))


@rule("aten.addmm", "aten.baddbmm")
def addmm(call: Call) -> Iterator[Row]:
    """beta * b[.., M, N] + alpha * x[.., M, K] @ w[.., K, N] -> y[.., M, N]; b may be stretched by broadcasting

    b          x         w          y
    S(0,g)     S(0,g)    S(0,g)  -> S(0,g)     the batch of baddbmm
    S(-2,g)    S(-2,g)   R       -> S(-2,g)    R where b has no such dim: data or sequence parallel
    S(-1,g)    R         S(-1,g) -> S(-1,g)    column parallel
    P          S(-1,g)   S(-2,g) -> P          row parallel
    P          P         R       -> P          linear in x
    P          R         P       -> P          linear in w
    """
    batch = ("b",) if call.op.startswith("aten.baddbmm") else ()
    output = (*batch, "m", "n")
    bias = _broadcast_labels(call.operands[0], output, call.outputs[0].shape)
    yield from product_rows(call, {1: (*batch, "m", "k"), 2: (*batch, "k", "n")}, output, {0: bias}, linear_in=(1, 2))


@rule("aten.mm", "aten.bmm", "aten.matmul", "aten.mv", "aten.dot", "aten.outer")
def matmul(call: Call) -> Iterator[Row]:
    """x[.., M, K] @ w[.., K, N] -> y[.., M, N]; leading dims broadcast, M or N are missing for vectors

    x          w          y
    S(d,g)     S(d,g)  -> S(d,g)     leading dims; R where one is stretched
    S(-2,g)    R       -> S(-2,g)    rows of x
    R          S(-1,g) -> S(-1,g)    columns of w
    S(-1,g)    S(-2,g) -> P          the dim that is summed over
    P          R       -> P          linear in x
    R          P       -> P          linear in w
    """
    x, w = call.operands
    if call.op.startswith("aten.outer"):
        yield from product_rows(call, {0: ("m",), 1: ("n",)}, ("m", "n"), {}, linear_in=(0, 1))
        return
    leading = tuple(range(max(x.ndim, w.ndim) - 2))
    output = (*leading, *(("m",) if x.ndim > 1 else ()), *(("n",) if w.ndim > 1 else ()))
    shape = call.outputs[0].shape
    left = (*_broadcast_labels_of(x.shape[:-2], leading, shape), *(("m", "k") if x.ndim > 1 else ("k",)))
    right = (*_broadcast_labels_of(w.shape[:-2], leading, shape), *(("k", "n") if w.ndim > 1 else ("k",)))
    yield from product_rows(call, {0: left, 1: right}, output, {}, linear_in=(0, 1))


@rule("aten.einsum")
def einsum(call: Call) -> Iterator[Row]:
    """A sum of products over labelled dims

    x         w          y
    S(d,g)    S(e,g)  -> S(f,g)    a label of the output, cut in every operand that has it; R where one has it not
    S(d,g)    S(e,g)  -> P         a label that is summed over, cut in every operand that has it
    P         R       -> P         linear in each operand

    No rows for `...` and for labels repeated within an operand.
    """
    equation = str(call.args[0]).replace(" ", "")
    left, arrow, output = equation.partition("->")
    sides = left.split(",")
    if "." in equation or any(len(set(side)) < len(side) for side in sides) or len(sides) != len(call.operands):
        return
    if not arrow:
        output = "".join(sorted(label for label in set(left) - {","} if left.count(label) == 1))
    yield from product_rows(call, dict(enumerate(map(tuple, sides))), tuple(output), {}, linear_in=range(len(sides)))


def _broadcast_labels(operand: TensorSpec, output: Labels, shape: tuple[int, ...]) -> Labels:
    return _broadcast_labels_of(operand.shape, output, shape)


def _broadcast_labels_of(own: tuple[int, ...], output: Labels, shape: tuple[int, ...]) -> tuple[Hashable, ...]:
    """The labels of an operand that broadcasts to dims `output` of sizes `shape`: None where it is stretched."""
    offset = len(output) - len(own)
    return tuple(output[offset + i] if size == shape[offset + i] else None for i, size in enumerate(own))
