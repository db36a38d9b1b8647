"""Tensors made from nothing: zeros, ones, full, arange, ..."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from autoplan.placement import Shard
from autoplan.rules.execute import torch_op
from autoplan.rules.ops.dims import index_tensor
from autoplan.rules.registry import LocalCall, Shapes, local, rule
from autoplan.rules.row import Call, Row

_FILLS = {
    "zeros": 0,
    "ones": 1,
    "new_zeros": 0,
    "new_ones": 1,
    "zeros_like": 0,
    "ones_like": 1,
    "empty": 0,
    "new_empty": 0,
    "empty_like": 0,
}


def _local_full(call: Call, shapes: Shapes) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Arguments of `new_full` for the forms with an operand, else of `full`; what `empty` holds is anyone's guess: 0."""
    name = call.op.split(".")[1]
    value = _FILLS.get(name)
    if value is None:
        value = call.arg(2 if name == "new_full" else 1, "fill_value")
    options = {"dtype": getattr(torch, call.outputs[0].dtype), "device": call.kwargs.get("device")}
    if call.operands:
        return (call.args[0], shapes[0], value), options
    return (shapes[0], value), options


def _rows(call: Call) -> Iterator[Row]:
    y = call.outputs[0]
    for dim in range(y.ndim):
        for groups in y.groups(dim):
            yield Row((None,) * len(call.operands), (Shard(dim, groups),))


@rule("aten.zeros", "aten.ones", "aten.full", "aten.empty", localize=_local_full, runs_as="aten.full.default")
def full(call: Call) -> Iterator[Row]:
    """A constant

       y
    -> S(d,g)    any dim
    """
    yield from _rows(call)


@rule(
    "aten.new_zeros", "aten.new_ones", "aten.new_full", "aten.new_empty", "aten.zeros_like", "aten.ones_like", "aten.full_like", "aten.empty_like",
    localize=_local_full,
    runs_as="aten.new_full.default",
)  # fmt: skip
def full_like(call: Call) -> Iterator[Row]:
    """A constant; the operand lends shape, dtype or device

    x     y
    -  -> S(d,g)    any dim
    -  -> R
    """
    yield from _rows(call)


@rule("aten.scalar_tensor")
def scalar_tensor(call: Call) -> Iterator[Row]:
    """A constant without dims: no rows but the all-R one"""
    yield from ()


@rule("aten.arange", "aten.linspace", "aten.eye", "aten.tril_indices", "aten.triu_indices")
def arange(call: Call) -> Iterator[Row]:
    """A pattern of known numbers

       y
    -> S(d,g)    any dim: each rank makes the whole and keeps its part (local implementation)
    """
    y = call.outputs[0]
    for dim in range(y.ndim):
        for groups in y.groups(dim):
            yield Row((), (Shard(dim, groups),), local="arange")


@local("arange")
def local_arange(call: LocalCall) -> Tensor:
    """This rank's part of the whole; simulated and real ranks agree with one device to the bit."""
    whole = torch_op(call.call.op)(*call.args, **call.kwargs)
    for dim in range(whole.ndim):
        whole = whole.index_select(dim, index_tensor(call.output_indices(0, dim), whole.device))
    return whole
