"""Tensors cut into pieces along a dim, and put together again: split, chunk, slice, select, unbind, cat, stack, ...

Along the dim itself a cut survives as a grouped shard: of x[.., 3*D] with `S(d,3)` each rank holds a part of every third.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import gcd, prod
from typing import Any

from autoplan.placement import R, Shard
from autoplan.rules.ops.dims import linear_row, normal_dims, shards
from autoplan.rules.registry import Shapes, rule
from autoplan.rules.row import Call, Row, TensorSpec

Arguments = tuple[tuple[Any, ...], dict[str, Any]]


def _local_split(call: Call, shapes: Shapes) -> Arguments:
    dim = _split_dim(call)
    return (call.args[0], [shape[dim] for shape in shapes], dim), {}


@rule(
    "aten.split", "aten.split_with_sizes", "aten.chunk", "aten.tensor_split", "aten.unsafe_split", "aten.unsafe_chunk", "aten.unsafe_split_with_sizes",
    localize=_local_split,
    runs_as="aten.split_with_sizes.default",
)  # fmt: skip
def split(call: Call) -> Iterator[Row]:
    """x -> pieces y0, y1, .. along dim c

    x          y0        y1
    S(d,g)  -> S(d,g)    S(d,g)    any other dim
    S(c,g)  -> S(c,g0)   S(c,g1)   piece i consists of g_i of the g groups
    P       -> P         P
    """
    x, dim = call.operands[0], _split_dim(call)
    for other in range(x.ndim):
        if other != dim:
            yield from _everywhere(call, other)
    for whole, parts in _groupings(x, call.outputs, dim):
        yield Row((Shard(dim, whole),), tuple(Shard(dim, part) for part in parts))
    yield linear_row(call)


def _split_dim(call: Call) -> int:
    return int(call.arg(2, "dim", 0)) % call.operands[0].ndim


@rule("aten.cat", "aten.concat", "aten.concatenate")
def cat(call: Call) -> Iterator[Row]:
    """x0, x1, .. -> y, put one after another along dim c

    x0        x1          y
    S(d,g)    S(d,g)   -> S(d,g)    any other dim
    S(c,g0)   S(c,g1)  -> S(c,g)    piece i becomes g_i of the g groups
    P         P        -> P
    """
    y = call.outputs[0]
    if any(spec.ndim != y.ndim for spec in call.operands):
        return  # torch lets an empty vector stand for nothing
    dim = int(call.arg(1, "dim", 0)) % y.ndim
    for other in range(y.ndim):
        if other != dim:
            yield from _everywhere(call, other)
    for whole, parts in _groupings(y, call.operands, dim):
        yield Row(tuple(Shard(dim, part) for part in parts), (Shard(dim, whole),))
    yield linear_row(call)


def _everywhere(call: Call, dim: int) -> Iterator[Row]:
    specs = (*call.operands, *call.outputs)
    for groups in shards(*((spec, dim) for spec in specs)):
        yield Row(tuple(Shard(dim, groups) for _ in call.operands), tuple(Shard(dim, groups) for _ in call.outputs))


def _groupings(whole: TensorSpec, parts: Sequence[TensorSpec], dim: int) -> list[tuple[int, tuple[int, ...]]]:
    """Group counts of the whole with those of its parts: each part must consist of entire groups."""
    sizes, total = [part.shape[dim] for part in parts], whole.shape[dim]
    unit = gcd(*sizes)
    if unit == 0 or min(sizes) == 0:
        return []
    counts = {total // unit, *(g for g in whole.groups(dim) if g > 1)}
    for part, size in zip(parts, sizes, strict=True):
        counts.update(g * total // size for g in part.groups(dim) if g * total % size == 0)
    found = []
    for count in sorted(counts):
        if total % count == 0 and all(size % (total // count) == 0 for size in sizes):
            found.append((count, tuple(size // (total // count) for size in sizes)))
    return found


@rule("aten.stack")
def stack(call: Call) -> Iterator[Row]:
    """x0, x1, .. -> y with a new dim c

    x0        x1          y
    S(d,g)    S(d,g)   -> S(e,g)    e is d, or d + 1 from c on
    P         P        -> P
    """
    x, y = call.operands[0], call.outputs[0]
    dim = int(call.arg(1, "dim", 0)) % y.ndim
    for own in range(x.ndim):
        there = own + (own >= dim)
        for groups in shards((y, there), *((spec, own) for spec in call.operands)):
            yield Row(tuple(Shard(own, groups) for _ in call.operands), (Shard(there, groups),))
    yield linear_row(call)


@rule("aten.select", "aten.unbind")
def select(call: Call) -> Iterator[Row]:
    """x -> y without dim c: one index of it, or each

    x          y
    S(d,g)  -> S(e,g)    any other dim; e is d, or d - 1 behind c
    P       -> P
    """
    x = call.operands[0]
    dim = int(call.arg(1, "dim", 0)) % x.ndim
    for own in range(x.ndim):
        if own != dim:
            there = own - (own > dim)
            for groups in shards((x, own), *((spec, there) for spec in call.outputs)):
                yield Row((Shard(own, groups),), tuple(Shard(there, groups) for _ in call.outputs))
    yield linear_row(call)


def _local_slice(call: Call, shapes: Shapes) -> Arguments:
    """A slice of entire groups starts at the same fraction of the local tensor."""
    dim, start, step = _window(call, call.operands[0].shape)
    length, local = call.outputs[0].shape[dim], shapes[0][dim]
    if step == 1 and length:
        start = start * local // length
    length = local
    return (call.args[0], dim, start, start + (length - 1) * step + 1 if length else start, step), {}


@rule("aten.slice.Tensor", "aten.narrow.default", localize=_local_slice, runs_as="aten.slice.Tensor")
def slice_rows(call: Call) -> Iterator[Row]:
    """x -> y, a window of dim c

    x          y
    S(d,g)  -> S(d,g)    any other dim
    S(c,g)  -> S(c,h)    the window begins and ends between groups and has h of them; the whole dim: h = g
    S(c,g)  -> S(c,g)    every so manieth of the whole dim
    P       -> P
    """
    x, y = call.operands[0], call.outputs[0]
    dim, start, step = _window(call, call.uncut_shape(0))
    for other in range(x.ndim):
        if other != dim:
            yield from _everywhere(call, other)
    size, length, uncut = x.shape[dim], y.shape[dim], call.uncut_shape(0)[dim]
    if step == 1 and length and start * size % uncut == 0:
        start = start * size // uncut  # earlier axes have cut the window along
        unit = gcd(size, start, length)
        counts = {size // unit, *x.groups(dim), *(g * size // length for g in y.groups(dim) if g * size % length == 0)}
        for count in sorted(counts):
            part = size // count
            if size % count == 0 and start % part == 0 and length % part == 0:
                yield Row((Shard(dim, count),), (Shard(dim, length // part),))
    elif start < step and length * step == size:
        for groups in shards((x, dim), (y, dim)):
            if length % (groups * call.axis_size) == 0:
                yield Row((Shard(dim, groups),), (Shard(dim, groups),))
    yield linear_row(call)


def _window(call: Call, shape: tuple[int, ...]) -> tuple[int, int, int]:
    """(dim, start, step) of a slice of a tensor of global `shape`, start counted from the front."""
    dim = int(call.arg(1, "dim", 0)) % len(shape)
    start = call.arg(2, "start")
    start = 0 if start is None else int(start)
    size = shape[dim]
    start = max(start + size, 0) if start < 0 else min(start, size)
    step = 1 if call.op.startswith("aten.narrow") else int(call.arg(4, "step", 1))
    return dim, start, step


@rule("aten.pad", "aten.constant_pad_nd")
def pad(call: Call) -> Iterator[Row]:
    """x -> y, longer in some dims

    x          y
    S(d,g)  -> S(d,g)    dims that keep their size
    P       -> P         padding with zeros, or with copies
    """
    amounts = call.arg(1, "pad")
    ndim = call.operands[0].ndim
    padded = {ndim - 1 - i // 2 for i, amount in enumerate(amounts) if amount}
    for dim in range(ndim):
        if dim not in padded:
            yield from _everywhere(call, dim)
    if call.op.startswith("aten.constant_pad_nd"):
        value = call.arg(2, "value", 0)
    else:
        value = call.arg(3, "value") if call.arg(2, "mode", "constant") == "constant" else 0
    if not value:
        yield linear_row(call)


@rule("aten.roll", "aten.flip")
def reorder(call: Call) -> Iterator[Row]:
    """x -> y, some dims rotated or reversed

    x          y
    S(d,g)  -> S(d,g)    the other dims
    P       -> P
    """
    ndim = call.operands[0].ndim
    dims = call.arg(2, "dims") if call.op.startswith("aten.roll") else call.arg(1, "dims")
    moved = set(normal_dims(dims or None, ndim))
    for dim in range(ndim):
        if dim not in moved:
            yield from _everywhere(call, dim)
    yield linear_row(call)


@rule("aten.repeat", "aten.tile")
def repeat(call: Call) -> Iterator[Row]:
    """x -> y, r copies of dim d one after another, new dims in front

    x          y
    S(d,g)  -> S(e,r*g)    e is where broadcasting puts d: every copy is cut
    P       -> P
    """
    x, y = call.operands[0], call.outputs[0]
    repeats = call.arg(1, "dims" if call.op.startswith("aten.tile") else "repeats")
    for dim, copies in enumerate((1,) * (y.ndim - len(repeats)) + tuple(repeats)):
        own = dim - (y.ndim - x.ndim)
        if own >= 0 and copies:
            counts = {*x.groups(own), *(g // copies for g in y.groups(dim) if g % copies == 0)}
            for groups in sorted(counts):
                yield Row((Shard(own, groups),), (Shard(dim, copies * groups),))
    yield linear_row(call)


@rule("aten.meshgrid")
def meshgrid(call: Call) -> Iterator[Row]:
    """vectors x0[A], x1[B], .. -> y0[A, B, ..], y1[A, B, ..], .., each varying along its own dim alone

    x0        x1        y0        y1
    S(0,g)    R      -> S(0,g)    S(0,g)    likewise for any other vector; `xy` swaps the first two dims
    P         P      -> P         P
    """
    order = list(range(len(call.operands)))
    if call.arg(1, "indexing", "ij") == "xy":
        order[:2] = order[1::-1]
    for k, there in enumerate(order[: len(call.operands)]):
        for groups in shards((call.operands[k], 0), *((y, there) for y in call.outputs)) if call.operands[k].ndim else ():
            ins = tuple(Shard(0, groups) if j == k else R for j in range(len(call.operands)))
            yield Row(ins, tuple(Shard(there, groups) for _ in call.outputs))
    yield linear_row(call)


@rule("aten.repeat_interleave.self_int")
def repeat_interleave(call: Call) -> Iterator[Row]:
    """x -> y, every index of dim c r times in a row; without c, of all elements as one dim

    x          y
    S(d,g)  -> S(d,g)    any dim, c too
    S(d,g)  -> S(0,h)    without c: h is g times the product of the sizes before d
    P       -> P
    """
    x, y = call.operands[0], call.outputs[0]
    flat = call.arg(2, "dim") is None
    for dim in range(x.ndim if prod(x.shape) else 0):
        there, before = (0, prod(x.shape[:dim])) if flat else (dim, 1)
        for groups in sorted({*x.groups(dim), *(g // before for g in y.groups(there) if g % before == 0)}):
            yield Row((Shard(dim, groups),), (Shard(there, before * groups),))
    yield linear_row(call)


@rule("aten.tril", "aten.triu")
def triangle(call: Call) -> Iterator[Row]:
    """x[.., M, N] -> y, zero beyond a diagonal

    x          y
    S(d,g)  -> S(d,g)    leading dims
    P       -> P
    """
    for dim in range(call.operands[0].ndim - 2):
        yield from _everywhere(call, dim)
    yield linear_row(call)


@rule("aten.slice_scatter", "aten.select_scatter")
def scatter_window(call: Call) -> Iterator[Row]:
    """x, part -> x with a window (or one index) of dim c overwritten

    x          part         y
    S(d,g)     S(e,g)    -> S(d,g)    any other dim; e is d, or d - 1 behind a selected c
    P          P         -> P
    """
    x, part = call.operands
    dim = int(call.arg(2, "dim", 0)) % x.ndim
    for own in range(x.ndim):
        if own != dim:
            there = own - (own > dim and part.ndim < x.ndim)
            for groups in shards((x, own), (part, there)):
                yield Row((Shard(own, groups), Shard(there, groups)), (Shard(own, groups),))
    yield linear_row(call)
