"""Normalisations: over trailing dims, over groups of channels, over the batch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from autoplan.graph.ops import bind
from autoplan.placement import P, Placement, R, Shard
from autoplan.rules.combine import replicated_row
from autoplan.rules.execute import run_functional, torch_op
from autoplan.rules.ops.dims import shards
from autoplan.rules.ops.statistics import synchronised_batch_norm
from autoplan.rules.registry import LocalCall, Shapes, local, rule
from autoplan.rules.row import Call, Row, TensorSpec

CHANNELS = 1


@rule("aten.layer_norm", "aten.rms_norm", "aten.native_layer_norm", "aten._fused_rms_norm")
def norm(call: Call) -> Iterator[Row]:
    """x[.., normalised dims], weight, bias -> y (and the statistics of each row)

    x         weight   bias       y
    S(d,g)    R        R       -> S(d,g)    any dim that is not normalised
    """
    x = call.operands[0]
    for dim in range(x.ndim - len(call.args[1])):
        for groups in shards((x, dim), (call.outputs[0], dim)):
            shard = Shard(dim, groups)
            yield Row((shard, *(R for _ in call.operands[1:])), tuple(shard for _ in call.outputs))


def _local_group_norm(call: Call, shapes: Shapes) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """As many groups as this rank's channels hold."""
    groups = _share(call.args[1], shapes[0][CHANNELS], call.outputs[0].shape[CHANNELS])
    return (call.args[0], groups, *call.args[2:]), call.kwargs


def _share(groups: int, channels: int, all_channels: int) -> int:
    """The count of groups in some of the channels; all of them where there are no channels at all."""
    return groups * channels // all_channels if all_channels else groups


@rule("aten.group_norm", localize=_local_group_norm)
def group_norm(call: Call) -> Iterator[Row]:
    """x[N, C, ..], weight[C], bias[C] -> y, statistics of each sample and group of channels

    x         weight    bias        y
    S(0,g)    R         R        -> S(0,g)    samples
    S(1,g)    S(0,g)    S(0,g)   -> S(1,g)    channels, in whole groups
    """
    x = call.operands[0]
    for groups in shards((x, 0), (call.outputs[0], 0)):
        yield Row((Shard(0, groups), *(R for _ in call.operands[1:])), (Shard(0, groups),))
    left = _share(call.args[1], x.shape[CHANNELS], call.uncut_shape(0)[CHANNELS])
    yield from (row for row, groups in _channel_rows(call) if left % (groups * call.axis_size) == 0)


def _channel_rows(call: Call) -> Iterator[tuple[Row, int]]:
    """Rows that cut the channels of x and y and all else, which has one number per channel; with the count of groups."""
    x, (y, *statistics) = call.operands[0], call.outputs
    per_channel = [*call.operands[1:], *(spec for spec in statistics if spec.shape != (0,))]
    for groups in shards((x, CHANNELS), (y, CHANNELS), *((spec, 0) for spec in per_channel)):
        ins = (Shard(CHANNELS, groups), *(Shard(0, groups) for _ in call.operands[1:]))
        yield Row(ins, (Shard(CHANNELS, groups), *(_statistic(spec, groups) for spec in statistics))), groups


def _statistic(spec: TensorSpec, groups: int) -> Placement:
    """How one number per channel is placed where channels are cut; native ops return an empty tensor where there is none."""
    return R if spec.shape == (0,) else Shard(0, groups)


@rule(
    "aten.batch_norm", "aten.native_batch_norm", "aten._native_batch_norm_legit", "aten._native_batch_norm_legit_functional",
)  # fmt: skip
def batch_norm(call: Call) -> Iterator[Row]:
    """x[N, C, ..], weight[C], bias[C], running mean[C], running variance[C] -> y, new running mean, new running variance

    x         the others      y          statistics
    S(1,g)    S(0,g)       -> S(1,g)     S(0,g)        channels
    S(d,g)    R            -> S(d,g)     R             samples or positions, with the statistics of all ranks: an all-gather of
                                                       each rank's mean and variance, in backward an all-reduce of two sums
                                                       (local implementation)

    In eval mode, where each element is normalised for itself (a and b are weight / deviation and bias - a * mean):

    x         the others      y
    S(d,g)    R            -> S(d,g)     samples or positions
    P         R, bias and running mean P -> P, the running mean too       a * x + b

    Where weight and statistics differ in dtype, which no kernel takes, every row runs the local implementation.
    """
    trains = _bound(call.op, call.args, call.kwargs)["training"]
    plain = _unless_mixed(call, "batch_norm")
    if plain:
        yield replace(replicated_row(call), local=plain)
    yield from (replace(row, local=plain) for row, _ in _channel_rows(call))
    if not trains:
        yield from _by_given_statistics(call, plain)
        return
    if 0 in call.operands[0].shape:
        return  # nothing has no statistics
    backward = ("all-reduce",) if call.operands[0].needs_grad else ()
    for row in _samples_and_positions(call):
        yield replace(row, local="batch_norm", inside=("all-gather", *backward), inside_backward=len(backward))


def _samples_and_positions(call: Call) -> Iterator[Row]:
    """Rows that cut any dim but the channels, all that has one number per channel being whole."""
    x, (y, *statistics) = call.operands[0], call.outputs
    for dim in range(x.ndim):
        for groups in shards((x, dim), (y, dim)) if dim != CHANNELS else ():
            shard = Shard(dim, groups)
            yield Row((shard, *(R for _ in call.operands[1:])), (shard, *(R for _ in statistics)))


def _by_given_statistics(call: Call, plain: str | None) -> Iterator[Row]:
    """Rows where no statistics are taken: each element for itself, and linear in x, bias and running mean together."""
    yield from (replace(row, local=plain) for row in _samples_and_positions(call))
    summed = {0, call.operand(2, "bias"), call.operand(3, "running_mean")}
    ins = tuple(P if k in summed else R for k in range(len(call.operands)))
    yield Row(ins, tuple(P if j in (0, _RUNNING_MEAN) else R for j in range(len(call.outputs))), local=plain)


_RUNNING_MEAN = 3  # the output of native ops that is the running mean, in eval mode as it was


def _unless_mixed(call: Call, implementation: str) -> str | None:
    """None, but `implementation` where the numbers per channel are of several dtypes: parameters in bf16, buffers in fp32."""
    return implementation if len({spec.dtype for spec in call.operands[1:]}) > 1 else None


def _bound(op: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    return bind(torch_op(op), args, kwargs)  # type: ignore[arg-type]  # an aten op


@local("batch_norm")
def local_batch_norm(call: LocalCall) -> Tensor | tuple[Tensor, ...]:
    """Batch norm of this rank's samples, positions and channels by the statistics over all samples and positions.

    The running variance takes the unbiased variance of the global batch.
    """
    named = _bound(call.call.op, call.args, call.kwargs)
    if not named["training"]:
        return run_functional(call.call.op, *_in_one_dtype(call))
    shape = call.call.operands[0].shape
    cut = sorted(axis for dim in range(len(shape)) if dim != CHANNELS for axis in call.axes(0, dim))
    y, mean, variance = synchronised_batch_norm(named["input"], named["weight"], named["bias"], named["eps"], tuple(cut), call.group)
    made = [y]
    if "native" in call.call.op:
        saved = getattr(torch, call.call.outputs[1].dtype)
        made += [mean.to(saved), (variance + named["eps"]).rsqrt().to(saved)]
    if (running_mean := named.get("running_mean")) is not None:
        momentum, count = named["momentum"], y.numel() // mean.numel() * call.mesh.group_size(cut)
        unbiased = variance * (count / max(count - 1, 1))
        made += [_updated(running_mean, mean, momentum), _updated(named["running_var"], unbiased, momentum)]
    return tuple(made) if len(made) > 1 else y


def _in_one_dtype(call: LocalCall) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments with the weight and the bias in the dtype of the running statistics."""
    named = _bound(call.call.op, call.args, call.kwargs)
    statistics = named["running_mean"].dtype
    for name in ("weight", "bias"):
        named[name] = None if named[name] is None else named[name].to(statistics)
    return tuple(named.values()), {}


def _updated(running: Tensor, new: Tensor, momentum: float) -> Tensor:
    return running * (1 - momentum) + new.to(running.dtype) * momentum


@rule("aten.instance_norm")
def instance_norm(call: Call) -> Iterator[Row]:
    """x[N, C, ..], weight[C], bias[C], running mean[C], running variance[C] -> y, new running mean, new running variance

    x         the others      y          statistics
    S(0,g)    R            -> S(0,g)     P             samples: running statistics are means over samples, of which each rank
                                                       gives its share (local implementation)
    S(1,g)    S(0,g)       -> S(1,g)     S(0,g)        channels

    With the running statistics in place of those of each sample, the rows of batch_norm in eval mode.
    """
    (y, *statistics), x = call.outputs, call.operands[0]
    plain = _unless_mixed(call, "instance_norm")
    if plain:
        yield replace(replicated_row(call), local=plain)
    yield from (replace(row, local=plain) for row, _ in _channel_rows(call))
    if not _bound(call.op, call.args, call.kwargs)["use_input_stats"]:
        yield from _by_given_statistics(call, plain)
        return
    for groups in shards((x, 0), (y, 0)):
        ins: tuple[Placement, ...] = (Shard(0, groups), *(R for _ in call.operands[1:]))
        yield Row(ins, (Shard(0, groups), *(P for _ in statistics)), local="instance_norm" if statistics else plain)


@local("instance_norm")
def local_instance_norm(call: LocalCall) -> Tensor | tuple[Tensor, ...]:
    """Instance norm of this rank's samples, and its share of the new running statistics."""
    made = run_functional(call.call.op, *_in_one_dtype(call))
    if isinstance(made, Tensor):
        return made
    y, *statistics = made
    share = y.shape[0] / call.call.operands[0].shape[0]
    return (y, *(statistic * share for statistic in statistics))
