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

    `...` stands for labels of its own, aligned at the last. No rows for labels repeated within an operand.
    """
    left, arrow, output = str(call.args[0]).replace(" ", "").partition("->")
    sides = left.split(",")
    if any(len(set(side.replace(".", ""))) < len(side.replace(".", "")) for side in sides) or len(sides) != len(call.operands):
        return
    if not arrow:
        output = "..." * ("." in left) + "".join(sorted(label for label in set(left) - set(",.") if left.count(label) == 1))
    labels = [_spelled_out(side, spec.ndim) for side, spec in zip(sides, call.operands, strict=True)]
    y = _spelled_out(output, call.outputs[0].ndim)
    factors = {
        k: _unless_stretched(side, spec, y, call.outputs[0]) for k, (side, spec) in enumerate(zip(labels, call.operands, strict=True))
    }
    yield from product_rows(call, factors, y, {}, linear_in=range(len(sides)))


def _spelled_out(side: str, ndim: int) -> tuple[Hashable, ...]:
    """The label of each dim, those of `...` counted from the last: -1, -2, .."""
    before, _, behind = side.partition("...")
    return (*before, *range(len(before) + len(behind) - ndim, 0), *behind) if "..." in side else tuple(side)


def _unless_stretched(side: Labels, spec: TensorSpec, output: Labels, y: TensorSpec) -> Labels:
    """The labels, but None for a dim of `...` that broadcasting stretches."""
    sizes = dict(zip(output, y.shape, strict=True))
    return tuple(
        None if isinstance(label, int) and sizes.get(label, size) != size else label for label, size in zip(side, spec.shape, strict=True)
    )


@rule("aten.bilinear")
def bilinear(call: Call) -> Iterator[Row]:
    """x[.., I], z[.., J], w[N, I, J], b[N] -> y[.., N], the sum over i and j of x w z

    x          z          w         b          y
    S(d,g)     S(d,g)     R         R       -> S(d,g)     any leading dim
    R          R          S(0,g)    S(0,g)  -> S(-1,g)
    S(-1,g)    R          S(1,g)    P       -> P          each rank holds a partial sum; likewise over J
    P          R          R         P       -> P          linear in x; likewise in z
    """
    leading = tuple(range(call.operands[0].ndim - 1))
    factors: dict[int, Labels] = {0: (*leading, "i"), 1: (*leading, "j"), 2: ("n", "i", "j")}
    addends: dict[int, Labels] = {3: ("n",)} if len(call.operands) == 4 else {}
    yield from product_rows(call, factors, (*leading, "n"), addends, linear_in=(0, 1))


@rule("aten.tensordot")
def tensordot(call: Call) -> Iterator[Row]:
    """x, w, summed over pairs of their dims -> y[.. of x, .. of w]

    x          w          y
    S(d,g)     R       -> S(e,g)    a dim of x that is kept; likewise of w
    S(d,g)     S(e,g)  -> P         a pair that is summed over
    P          R       -> P         linear in x; likewise in w
    """
    x, w = call.operands
    pairs = zip((d % x.ndim for d in call.args[2]), (d % w.ndim for d in call.args[3]), strict=True)
    partner = {right: left for left, right in pairs}
    left = tuple(("x", dim) for dim in range(x.ndim))
    right = tuple(("x", partner[dim]) if dim in partner else ("w", dim) for dim in range(w.ndim))
    output = (*(label for label in left if label[1] not in partner.values()), *(label for label in right if label[0] == "w"))
    yield from product_rows(call, {0: left, 1: right}, output, {}, linear_in=(0, 1))


def _broadcast_labels(operand: TensorSpec, output: Labels, shape: tuple[int, ...]) -> Labels:
    return _broadcast_labels_of(operand.shape, output, shape)


def _broadcast_labels_of(own: tuple[int, ...], output: Labels, shape: tuple[int, ...]) -> tuple[Hashable, ...]:
    """The labels of an operand that broadcasts to dims `output` of sizes `shape`: None where it is stretched."""
    offset = len(output) - len(own)
    return tuple(output[offset + i] if size == shape[offset + i] else None for i, size in enumerate(own))
