"""Recurrent layers: samples."""

from __future__ import annotations

from collections.abc import Iterator

from autoplan.placement import Placement, R, Shard
from autoplan.rules.ops.dims import operand_numbers, shards
from autoplan.rules.registry import rule
from autoplan.rules.row import Call, Row


@rule("aten.lstm.input", "aten.gru.input", "aten.rnn_tanh.input", "aten.rnn_relu.input")
def recurrent(call: Call) -> Iterator[Row]:
    """x[T, N, C] or [N, T, C], states[L, N, D], parameters -> y, states

    x          states    parameters    y         states
    S(n,g)     S(1,g)    R          -> S(n,g)    S(1,g)    samples; not with dropout between layers

    Time is not cut: each step needs the one before.
    """
    x = call.operands[0]
    states = operand_numbers(call.args[1])
    if x.ndim != 3 or (call.args[5] > 0 and call.args[6]):
        return
    batch = 0 if call.args[8] else 1
    for groups in shards((x, batch), *((call.operands[k], 1) for k in states), *((spec, 1) for spec in call.outputs[1:])):
        ins: list[Placement] = [R for _ in call.operands]
        ins[0] = Shard(batch, groups)
        for k in states:
            ins[k] = Shard(1, groups)
        yield Row(tuple(ins), (Shard(batch, groups), *(Shard(1, groups) for _ in call.outputs[1:])))
