"""Reductions and scans along dims: sum, mean, amax, softmax, cumsum, ..."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from torch import Tensor

from autoplan.placement import P, Shard
from autoplan.rules.execute import torch_op
from autoplan.rules.ops.dims import linear_row, normal_dims, same_dims, shards
from autoplan.rules.registry import LocalCall, local, rule
from autoplan.rules.row import Call, Row


def _other_dims(call: Call, reduced: Sequence[int]) -> Iterator[Row]:
    """Rows that cut a dim over which nothing is summed; its place in the output depends on keepdim."""
    x = call.operands[0]
    kept = [dim for dim in range(x.ndim) if dim not in reduced]
    for position, dim in enumerate(kept):
        there = dim if call.outputs[0].ndim == x.ndim else position
        for groups in shards((x, dim), *((y, there) for y in call.outputs)):
            yield Row((Shard(dim, groups),), tuple(Shard(there, groups) for _ in call.outputs))


def _reduced(call: Call) -> tuple[int, ...]:
    dims = call.arg(1, "dim")
    if isinstance(dims, bool):
        dims = None  # var.default and std.default take `unbiased` there
    return normal_dims(None if isinstance(dims, tuple | list) and not dims else dims, call.operands[0].ndim)


@rule("aten.sum")
def sum_rows(call: Call) -> Iterator[Row]:
    """x -> y, some dims (or all) summed

    x          y
    S(d,g)  -> S(e,g)    another dim; e is where it ends up
    S(c,g)  -> P         a summed dim
    P       -> P
    """
    yield from _sums(call, None)


@rule("aten.mean")
def mean(call: Call) -> Iterator[Row]:
    """x -> y, the mean over some dims (or all)

    x          y
    S(d,g)  -> S(e,g)    another dim; e is where it ends up
    S(c,g)  -> P         a summed dim: the local mean times the share of the elements (local implementation)
    P       -> P
    """
    yield from _sums(call, "mean")


@rule("aten.nansum")
def nansum(call: Call) -> Iterator[Row]:
    """x -> y, some dims (or all) summed without what is not a number

    x          y
    S(d,g)  -> S(e,g)    another dim; e is where it ends up
    S(c,g)  -> P         a summed dim

    Of partial sums, one term may be a number where the sum is none.
    """
    yield from (row for row in _sums(call, None) if row.ins != (P,))


def _sums(call: Call, implementation: str | None) -> Iterator[Row]:
    x, reduced = call.operands[0], _reduced(call)
    yield from _other_dims(call, reduced)
    for dim in reduced if 0 not in x.shape else ():
        for groups in shards((x, dim)):
            yield Row((Shard(dim, groups),), (P,), local=implementation)
    yield linear_row(call)


@local("mean")
def local_mean(call: LocalCall) -> Tensor:
    """The local mean, weighted by the share of the elements that this rank holds: no sum that overflows in half precision."""
    x, whole = call.arg(0, "self"), call.call.operands[0].shape
    share = 1.0
    for dim in _reduced(call.call):
        share *= x.shape[dim] / whole[dim]
    return torch_op(call.call.op)(*call.args, **call.kwargs) * share


@rule(
    "aten.amax", "aten.amin", "aten.prod.dim_int", "aten.logsumexp", "aten.argmax", "aten.argmin", "aten.any", "aten.all", "aten.var", "aten.std",
    "aten.max.dim", "aten.min.dim", "aten.max.default", "aten.min.default", "aten.median", "aten.var_mean", "aten.std_mean", "aten.prod.default",
    "aten.count_nonzero", "aten.nanmean",
)  # fmt: skip
def reduction(call: Call) -> Iterator[Row]:
    """x -> y, some dims (or all) reduced

    x          y
    S(d,g)  -> S(e,g)    a dim that is not reduced; e is where it ends up
    """
    yield from _other_dims(call, _reduced(call))


@rule("aten.kthvalue", "aten.mode", "aten.aminmax")
def one_of_each_line(call: Call) -> Iterator[Row]:
    """x -> values (and their indices, or minimum and maximum) along dim c

    x          y
    S(d,g)  -> S(e,g)    any other dim; e is where it ends up
    """
    if call.op.startswith("aten.kthvalue"):
        dim = call.arg(2, "dim", -1)
    else:
        dim = call.kwargs.get("dim") if call.op.startswith("aten.aminmax") else call.arg(1, "dim", -1)
    yield from _other_dims(call, normal_dims(dim, call.operands[0].ndim))


@rule("aten.linalg_vector_norm", "aten.norm")
def norm(call: Call) -> Iterator[Row]:
    """x -> y, the norm over some dims (or all)

    x          y
    S(d,g)  -> S(e,g)    a dim that is not reduced; e is where it ends up
    """
    x, dims = call.operands[0], call.arg(2, "dim")
    if call.op.startswith("aten.norm") and not isinstance(dims, tuple | list):
        dims = None
    yield from _other_dims(call, normal_dims(dims or None, x.ndim))


@rule(
    "aten.softmax", "aten.log_softmax", "aten._softmax", "aten._log_softmax", "aten.cumprod", "aten.logcumsumexp", "aten.cummax", "aten.cummin",
)  # fmt: skip
def along(call: Call) -> Iterator[Row]:
    """x -> y, each line along dim c for itself

    x          y
    S(d,g)  -> S(d,g)    any other dim
    """
    yield from _lines(call, int(call.arg(1, "dim", -1)))


@rule("aten.glu")
def glu(call: Call) -> Iterator[Row]:
    """x -> y, the first half of dim c times the sigmoid of the second

    x           y
    S(d,g)   -> S(d,g)    any other dim
    S(c,2g)  -> S(c,g)    each half cut alike
    """
    x, y = call.operands[0], call.outputs[0]
    dim = int(call.arg(1, "dim", -1)) % x.ndim
    yield from _lines(call, dim)
    for groups in sorted({*y.groups(dim), *(g // 2 for g in x.groups(dim) if g % 2 == 0)}):
        yield Row((Shard(dim, 2 * groups),), (Shard(dim, groups),))


@rule("aten.sort", "aten.argsort", "aten.topk")
def sort(call: Call) -> Iterator[Row]:
    """x -> values, indices of each line along dim c

    x          values    indices
    S(d,g)  -> S(d,g)    S(d,g)     any other dim
    """
    dim = call.kwargs.get("dim")
    if dim is None:
        position = 2 if call.op.startswith("aten.topk") or ".stable" in call.op else 1
        dim = call.arg(position, "dim", -1)
    yield from _lines(call, int(dim))


@rule("aten.cumsum")
def cumsum(call: Call) -> Iterator[Row]:
    """x -> y, running sums along dim c

    x          y
    S(d,g)  -> S(d,g)    any other dim
    P       -> P
    """
    yield from _lines(call, int(call.arg(1, "dim")))
    yield linear_row(call)


@rule("aten.diff")
def diff(call: Call) -> Iterator[Row]:
    """x, prepend, append -> y, differences of neighbours along dim c

    x         prepend     y
    S(d,g)    S(d,g)   -> S(d,g)    any other dim
    P         P        -> P
    """
    yield from _lines(call, int(call.arg(2, "dim", -1)))
    yield linear_row(call)


_FOURIER = ("fft", "ifft", "rfft", "irfft", "hfft", "ihfft")


@rule(*(f"aten.fft_{name}{form}" for name in _FOURIER for form in ("", "2", "n")), "aten.fft_fftshift", "aten.fft_ifftshift")
def fourier(call: Call) -> Iterator[Row]:
    """x -> y, transformed along some dims (or all)

    x          y
    S(d,g)  -> S(d,g)    any other dim
    P       -> P
    """
    ndim, name = call.operands[0].ndim, call.op.split(".")[1]
    dims = (
        call.arg(1, "dim")
        if name.endswith("shift")
        else call.arg(2, "dim", -1 if name.endswith("t") else (-2, -1) if name.endswith("2") else None)
    )
    transformed = normal_dims(dims, ndim)
    yield from same_dims(call, (dim for dim in range(ndim) if dim not in transformed))
    yield linear_row(call)


def _lines(call: Call, dim: int) -> Iterator[Row]:
    ndim = call.operands[0].ndim
    yield from same_dims(call, (other for other in range(ndim) if other != dim % ndim)) if ndim else ()


@rule("aten.histc")
def histc(call: Call) -> Iterator[Row]:
    """x -> y[bins], how many elements are in each

    x          y
    S(d,g)  -> P         any dim, where the range is given: each rank counts its own
    """
    x, low, high = call.operands[0], call.arg(2, "min", 0), call.arg(3, "max", 0)
    if low < high:
        for dim in range(x.ndim):
            for groups in shards((x, dim)):
                yield Row((Shard(dim, groups),), (P,))
