"""Normalisations over trailing dims: each row of the input is normalised for itself."""

from __future__ import annotations

from collections.abc import Iterator

from autoplan.placement import R, Shard
from autoplan.rules.ops.dims import shards
from autoplan.rules.registry import rule
from autoplan.rules.row import Call, Row


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


@rule("aten.group_norm")
def group_norm(call: Call) -> Iterator[Row]:
    """x[N, C, ..], weight[C], bias[C] -> y, statistics of each sample and group of channels

    x         weight   bias       y
    S(0,g)    R        R       -> S(0,g)    samples
    """
    x = call.operands[0]
    for groups in shards((x, 0), (call.outputs[0], 0)):
        yield Row((Shard(0, groups), *(R for _ in call.operands[1:])), (Shard(0, groups),))
