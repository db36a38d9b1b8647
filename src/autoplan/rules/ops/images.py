"""Resampling and rearranging of images: upsampling, padding by copies, pixel shuffle, patches."""

from __future__ import annotations

from collections.abc import Iterator

from autoplan.placement import P, R, Shard
from autoplan.rules.ops.dims import groups_of, linear_row, same_dims, shards
from autoplan.rules.registry import rule
from autoplan.rules.row import Call, Row

_MODES = ("nearest1d", "nearest2d", "nearest3d", "linear1d", "bilinear2d", "bicubic2d", "trilinear3d")


@rule(*(f"aten.upsample_{mode}" for mode in _MODES), *(f"aten._upsample_{mode}" for mode in ("nearest_exact1d", "nearest_exact2d", "nearest_exact3d", "bilinear2d_aa", "bicubic2d_aa")))  # fmt: skip
def upsample(call: Call) -> Iterator[Row]:
    """x[N, C, positions] -> y[N, C, other positions]

    x          y
    S(d,g)  -> S(d,g)    samples and channels
    P       -> P
    """
    yield from same_dims(call, (0, 1))
    yield linear_row(call)


@rule(*(f"aten.{kind}_pad{n}d" for kind in ("reflection", "replication") for n in (1, 2, 3)))
def pad_by_copies(call: Call) -> Iterator[Row]:
    """x[.., positions] -> y, longer in its last one, two or three dims

    x          y
    S(d,g)  -> S(d,g)    samples and channels
    P       -> P
    """
    yield from same_dims(call, range(call.operands[0].ndim - len(call.arg(1, "padding")) // 2))
    yield linear_row(call)


@rule("aten.pixel_shuffle", "aten.pixel_unshuffle")
def pixel_shuffle(call: Call) -> Iterator[Row]:
    """x[.., C * r * r, H, W] -> y[.., C, H * r, W * r], or back

    x          y
    S(d,g)  -> S(d,g)    any dim: a part of the channels or positions becomes a part of them
    P       -> P
    """
    yield from same_dims(call, range(call.operands[0].ndim))
    yield linear_row(call)


@rule("aten.channel_shuffle")
def channel_shuffle(call: Call) -> Iterator[Row]:
    """x[N, C, ..] -> y with channels in another order: [groups, C / groups] turned

    x             y
    S(d,g)     -> S(d,g)    samples and positions
    S(1,G*g)   -> S(1,g)    channels, a part of each of the G groups, as `cat` makes them
    P          -> P
    """
    x, y = call.operands[0], call.outputs[0]
    yield from same_dims(call, (dim for dim in range(x.ndim) if dim != 1))
    count = int(call.arg(1, "groups"))
    for groups in sorted({*y.groups(1), *(g // count for g in x.groups(1) if g % count == 0)}) if x.shape[1] > 1 else ():
        yield Row((Shard(1, count * groups),), (Shard(1, groups),))
    yield linear_row(call)


@rule("aten.im2col", "aten.col2im")
def patches(call: Call) -> Iterator[Row]:
    """x[N, C, positions] -> y[N, C * kernel, patches], or back

    x          y
    S(d,g)  -> S(d,g)    samples and channels
    P       -> P
    """
    yield from same_dims(call, range(min(call.operands[0].ndim, call.outputs[0].ndim) - 1))
    yield linear_row(call)


@rule("aten.unfold")
def unfold(call: Call) -> Iterator[Row]:
    """x -> y[.., window]: windows of dim c, their elements in a new last dim

    x          y
    S(d,g)  -> S(d,g)    any other dim
    P       -> P
    """
    x = call.operands[0]
    dim = int(call.arg(1, "dimension")) % max(x.ndim, 1)
    yield from same_dims(call, (other for other in range(x.ndim) if other != dim))
    yield linear_row(call)


@rule("aten.grid_sampler", "aten.grid_sampler_2d", "aten.grid_sampler_3d")
def grid_sample(call: Call) -> Iterator[Row]:
    """x[N, C, positions], grid[N, other positions, coordinates] -> y[N, C, other positions]

    x          grid          y
    S(0,g)     S(0,g)     -> S(0,g)    samples
    S(1,g)     R          -> S(1,g)    channels
    R          S(d,g)     -> S(e,g)    positions; e is d + 1
    P          R          -> P         linear in x
    """
    x, grid, y = *call.operands, call.outputs[0]
    for groups in shards((x, 0), (grid, 0), (y, 0)):
        yield Row((Shard(0, groups), Shard(0, groups)), (Shard(0, groups),))
    for groups in shards((x, 1), (y, 1)):
        yield Row((Shard(1, groups), R), (Shard(1, groups),))
    for dim in range(1, grid.ndim - 1):
        for groups in groups_of((grid, dim), (y, dim + 1)):
            yield Row((R, Shard(dim, groups)), (Shard(dim + 1, groups),))
    yield Row((P, R), (P,))
