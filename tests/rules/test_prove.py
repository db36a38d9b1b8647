"""The prover itself: wrong rows must not pass."""

from __future__ import annotations

import pytest
import torch

from autoplan.placement import Mesh, P, R, Shard
from autoplan.rules import Row
from autoplan.rules.prove import cut_global, example_call, join_local, prove
from autoplan.rules.row import make_strategy

MESH = Mesh(("x",), (2,))


def strategy_of(op: str, row: Row, *args: object):  # type: ignore[no-untyped-def]
    call, _ = example_call(op, *args)
    return call, make_strategy((row,), (False,), call.operands, call.outputs)


@pytest.mark.parametrize(
    ("op", "row", "args"),
    [
        ("aten.relu.default", Row((P,), (P,)), [torch.randn(4, 4)]),
        ("aten.linear.default", Row((Shard(1), Shard(1), R), (P,)), [torch.randn(4, 4), torch.randn(4, 4), torch.randn(4)]),
        ("aten.linear.default", Row((Shard(0), R), (Shard(1),)), [torch.randn(4, 4), torch.randn(4, 4)]),
        ("aten.softmax.int", Row((Shard(1),), (Shard(1),)), [torch.randn(4, 4), 1]),
        ("aten.mean.default", Row((Shard(0),), (P,)), [torch.randn(4, 4)]),
        ("aten.sum.default", Row((Shard(0),), (P,), inside=("all-reduce",)), [torch.randn(4, 4)]),
    ],
)
def test_a_wrong_row_is_refused_and_shown(op: str, row: Row, args: list[object]) -> None:
    call, strategy = strategy_of(op, row, *args)
    with pytest.raises(AssertionError, match=r"aten\..*2: .*->.*on x"):
        prove(call, strategy, MESH)


def test_a_wrong_gradient_is_refused() -> None:
    x, w = torch.randn(4, 4), torch.randn(4, 4)
    call, strategy = strategy_of("aten.linear.default", Row((Shard(0), R), (Shard(0),), whole=frozenset({1})), x, w)
    with pytest.raises(AssertionError, match="gradient of operand 1"):
        prove(call, strategy, MESH)


def test_a_wrong_dtype_is_refused_in_the_operands_own_dtype(monkeypatch: pytest.MonkeyPatch) -> None:
    """A weight as fp32 tensor widens the mean of halves; in fp64 nobody would see it."""
    monkeypatch.setattr("autoplan.rules.registry._LOCALS", {"mean": lambda call: call.args[0].float().mean() / 2})
    x = torch.randn(4, 4, dtype=torch.bfloat16)
    call, strategy = strategy_of("aten.mean.default", Row((Shard(0),), (P,), local="mean"), x)
    with pytest.raises(AssertionError, match=r"output 0 is torch\.float32, not torch\.bfloat16"):
        prove(call, strategy, MESH, lambda _: x, in_double=False)


def test_in_half_precision_a_wrong_factor_is_still_seen() -> None:
    x = torch.ones(4, 4, dtype=torch.bfloat16)
    call, strategy = strategy_of("aten.mean.default", Row((Shard(0),), (P,)), x)
    with pytest.raises(AssertionError, match="output 0 is off by 1"):
        prove(call, strategy, MESH, lambda _: x, in_double=False)


def test_joining_undoes_cutting() -> None:
    x, mesh = torch.randn(12, 12, dtype=torch.float64), Mesh(("x", "y"), (2, 3))
    for placements in [(Shard(0), Shard(0)), (Shard(0, 2), Shard(1)), (P, Shard(1, 2)), (R, P), (P, P), (Shard(1), R)]:
        torch.testing.assert_close(join_local(cut_global(x, placements, mesh), placements, mesh), x)
