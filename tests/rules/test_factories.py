"""Tensors made from nothing."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from autoplan.placement import Mesh, R, Shard
from autoplan.rules import localize, strategies_of
from autoplan.rules.prove import example_call

X = torch.randn(6, 6)
CASES = {
    "arange": ("aten.arange.default", 12),
    "arange from": ("aten.arange.start", 2, 14),
    "arange with steps": ("aten.arange.start_step", 0, 24, 2),
    "linspace": ("aten.linspace.default", 0.0, 1.0, 12),
    "eye": ("aten.eye.default", 6),
    "zeros": ("aten.zeros.default", [6, 6]),
    "ones": ("aten.ones.default", [6, 6]),
    "full": ("aten.full.default", [6, 6], 3),
    "full of bools": ("aten.full.default", [6, 6], True),
    "new_ones": ("aten.new_ones.default", X, [12]),
    "new_zeros": ("aten.new_zeros.default", X, [6, 2]),
    "new_full": ("aten.new_full.default", X, [6], 2.0),
    "zeros_like": ("aten.zeros_like.default", X),
    "ones_like": ("aten.ones_like.default", X > 0),
    "full_like": ("aten.full_like.default", X, 2.0),
}


DTYPES = {"new_ones": torch.bool, "linspace": torch.float64, "eye": torch.float64, "zeros": torch.float64, "ones": torch.float64}


@pytest.mark.parametrize("case", CASES)
def test_factories(prove_op: Callable[..., int], case: str) -> None:
    kwargs = {"dtype": DTYPES[case]} if case in DTYPES else {}
    assert prove_op(*CASES[case], **kwargs) > 0


EMPTY_CASES = {
    "empty": ("aten.empty.memory_format", [6, 6]),
    "empty_like": ("aten.empty_like.default", X),
    "new_empty": ("aten.new_empty.default", X, [6, 6]),
}


@pytest.mark.parametrize("case", EMPTY_CASES)
def test_what_is_empty_is_zero_on_every_rank(case: str) -> None:
    """What `empty` holds is anyone's guess: there are no values to compare."""
    mesh = Mesh(("x",), (3,))
    call, operands = example_call(*EMPTY_CASES[case])
    made = {s.makes[0]: localize(call, s, mesh).run(operands, group=None) for s in strategies_of(call, mesh)}  # type: ignore[arg-type]
    assert {place: y.shape for place, y in made.items()} == {(R,): (6, 6), (Shard(0),): (2, 6), (Shard(1),): (6, 2)}
    assert all(not y.any() for y in made.values())


def test_a_number_is_replicated(prove_op: Callable[..., int]) -> None:
    assert prove_op("aten.scalar_tensor.default", 2.0) == 0
