"""Random ops: dropout, bernoulli, rand. Shards draw their own numbers, replicas the same ones."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from autoplan.placement import P, R, Shard
from autoplan.rules.execute import torch_op
from autoplan.rules.ops.dims import same_dims
from autoplan.rules.registry import LocalCall, local, rule
from autoplan.rules.row import Call, Row
from autoplan.rules.seeds import dropped, random_tensor


@rule("aten.dropout", "aten.native_dropout")
def dropout(call: Call) -> Iterator[Row]:
    """x -> x with a share p of its elements zero, the others divided by 1 - p (and the mask)

    x          y         mask
    S(d,g)  -> S(d,g)    S(d,g)    different numbers on each rank
    P       -> P         R         the same numbers on each rank

    With p > 0 in training every row, also the all-R one, runs the local implementation.
    """
    random = call.arg(1, "p") > 0 and call.arg(2, "train") is not False
    name = "dropout" if random else None
    x = call.operands[0]
    if random:
        yield Row((R,), tuple(R for _ in call.outputs), local=name)
    for row in same_dims(call, range(x.ndim)):
        yield Row(row.ins, row.outs, local=name)
    yield Row((P,), (P, R)[: len(call.outputs)], local=name)


@local("dropout")
def local_dropout(call: LocalCall) -> Tensor | tuple[Tensor, ...]:
    """Dropout with this shard's own mask."""
    y, keep = dropped(call.arg(0, "input"), call.arg(1, "p"), call.seed, call.shard)
    return (y, keep.bool()) if len(call.call.outputs) == 2 else y


@rule(
    "aten.rand", "aten.randn", "aten.randint", "aten.randperm", "aten.normal.float_float",
    "aten.rand_like", "aten.randn_like", "aten.randint_like",
)  # fmt: skip
def random_factory(call: Call) -> Iterator[Row]:
    """A tensor of random numbers; the operand of the `_like` forms lends its shape

    x          y
    -       -> S(d,g)    different numbers on each rank

    A permutation is drawn whole.
    """
    unread = (None,) * len(call.operands)
    yield Row(unread, (R,), local="random_factory")
    y = call.outputs[0]
    for dim in range(0 if call.op.startswith("aten.randperm") else y.ndim):
        for groups in y.groups(dim):
            yield Row(unread, (Shard(dim, groups),), local="random_factory")


@local("random_factory")
def local_random_factory(call: LocalCall) -> Tensor:
    """This shard's random numbers, drawn by the op with local sizes."""
    name = call.call.op.split(".")[1]
    device = torch.device(call.kwargs.get("device") or (call.args[0].device if name.endswith("_like") else "cpu"))
    dtype = getattr(torch, call.call.outputs[0].dtype)
    bounds: list[float] = []
    if name == "normal":
        bounds = [call.arg(0, "mean"), call.arg(1, "std")]
    elif name.startswith("randint"):
        *low, high = (arg for arg in call.args if isinstance(arg, int))
        bounds = [*(low or (0,)), high]
    return random_tensor(name.removesuffix("_like"), call.output_shape(0), bounds, dtype, device, call.seed, call.shard)


@rule("aten.bernoulli", "aten.rrelu", "aten.alpha_dropout", "aten.feature_dropout", "aten.multinomial", "aten.normal_functional")
def drawn(call: Call) -> Iterator[Row]:
    """An op that draws a number for each element of its operand

    x          y
    S(d,g)  -> S(d,g)    bernoulli, rrelu, normal_functional: different numbers on each rank
    """
    yield Row(tuple(R for _ in call.operands), tuple(R for _ in call.outputs), local="drawn")
    if call.op.split(".")[1] in ("bernoulli", "rrelu", "normal_functional") and len(call.operands) == 1:
        for row in same_dims(call, range(call.operands[0].ndim)):
            yield Row(row.ins, row.outs, local="drawn")


@local("drawn", by_default_generator=lambda call: True)
def local_drawn(call: LocalCall) -> Tensor:
    """The op itself."""
    return torch_op(call.call.op)(*call.args, **call.kwargs)
