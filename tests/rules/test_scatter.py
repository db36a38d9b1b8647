"""Writing at indices."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from autoplan.placement import Mesh, Shard
from autoplan.rules import strategies_of
from autoplan.rules.prove import example_call

randn = torch.randn


def indices(size: int, *shape: int) -> torch.Tensor:
    """Indices below `size`, each at most once along dim 1, so that what is written does not depend on the order."""
    return torch.stack([torch.randperm(size)[: shape[1]] for _ in range(shape[0])])


MASK = torch.rand(6, 6) > 0.5
X = randn(6, 6, 4)
ROWS = torch.tensor([5, 0, 3, 1, 4, 2])
CASES = {
    "scatter": ("aten.scatter.src", randn(6, 8), 1, indices(8, 6, 6), randn(6, 6)),
    "scatter of a number": ("aten.scatter.value", randn(6, 8), 1, indices(8, 6, 6), 1.5),
    "scatter of nought": ("aten.scatter.value", randn(6, 8), 1, indices(8, 6, 6), 0),
    "scatter_add": ("aten.scatter_add.default", randn(6, 8), 1, torch.randint(0, 8, (6, 6)), randn(6, 6)),
    "scatter_reduce": ("aten.scatter_reduce.two", randn(6, 8), 1, torch.randint(0, 8, (6, 6)), randn(6, 6), "amax"),
    "index_add": ("aten.index_add.default", X, 1, torch.randint(0, 6, (12,)), randn(6, 12, 4)),
    "index_add, scaled": ("aten.index_add.default", X, 0, torch.randint(0, 6, (12,)), randn(12, 6, 4)),
    "index_copy": ("aten.index_copy.default", X, 1, torch.tensor([1, 4]), randn(6, 2, 4)),
    "index_fill": ("aten.index_fill.int_Scalar", X, 1, torch.tensor([1, 4]), 2.0),
    "index_fill with nought": ("aten.index_fill.int_Scalar", X, 1, torch.tensor([1, 4]), 0),
    "index_fill with a tensor": ("aten.index_fill.int_Tensor", X, 1, torch.tensor([1, 4]), torch.tensor(2.0)),
    "index_put of rows": ("aten.index_put.default", X, [ROWS[:4]], randn(4, 6, 4)),
    "index_put of one row": ("aten.index_put.default", X, [None, torch.tensor([1, 3])], randn(4)),
    "index_put at pairs": ("aten.index_put.default", X, [ROWS, ROWS.flip(0)], randn(6, 4)),
    "index_put around a kept dim": ("aten.index_put.default", X, [ROWS, None, torch.tensor([1])], randn(6, 6)),
    "index_put, accumulated": ("aten.index_put.default", X, [torch.randint(0, 6, (12,))], randn(12, 6, 4), True),
    "index_put, one value accumulated": ("aten.index_put.default", X, [None, torch.randint(0, 6, (6, 6))], randn(4), True),
    "index_put at a mask": ("aten.index_put.default", X, [MASK], torch.tensor(2.0)),
    "index_put at a mask of later dims": ("aten.index_put.default", randn(4, 6, 6), [None, MASK], torch.tensor(2.0)),
    "masked_scatter": ("aten.masked_scatter.default", randn(12, 4), torch.rand(12, 4) > 0.5, randn(60)),
    "diagonal": ("aten.diagonal.default", randn(6, 4, 4), 1, 1, 2),
    "diagonal of the first dims": ("aten.diagonal.default", randn(4, 4, 6)),
    "diag_embed": ("aten.diag_embed.default", randn(6, 6, 3)),
}


@pytest.mark.parametrize("case", CASES)
def test_scatter(prove_op: Callable[..., int], case: str) -> None:
    assert prove_op(*CASES[case], limit=40) > 0


def test_ranks_take_what_those_before_them_leave(prove_op: Callable[..., int]) -> None:
    mask = torch.zeros(12, 2, dtype=torch.bool)
    mask[1:3] = mask[11] = True
    assert prove_op("aten.masked_scatter.default", randn(12, 2), mask, randn(8), meshes=((2,), (3,), (2, 3), (2, 2, 3)), limit=100) > 0
    call, _ = example_call("aten.masked_scatter.default", randn(12, 2), mask, randn(8))
    nested = [s for s in strategies_of(call, Mesh(("x", "y"), (2, 3))) if s.makes[0] == (Shard(0), Shard(0))]
    assert nested, "two axes on one dim are among what was proved"


def test_many_values_at_a_mask_are_not_split() -> None:
    call, _ = example_call("aten.index_put.default", randn(6, 4), [torch.tensor([True, False] * 3)], randn(3, 4))
    assert all(strategy.rows[0].is_replicated for strategy in strategies_of(call, Mesh(("x",), (2,))))
