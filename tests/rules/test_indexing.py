"""Tables and indices."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

randn, randint = torch.randn, torch.randint
IDS = randint(0, 6, (6, 6))
CASES = {
    "embedding": ("aten.embedding.default", randn(12, 6), randint(0, 12, (6, 6))),
    "embedding with padding": ("aten.embedding.default", randn(6, 6), IDS, 4),
    "embedding scaled by frequency": ("aten.embedding.default", randn(6, 6), IDS, -1, True),
    "index": ("aten.index.Tensor", randn(6, 6), [IDS]),
    "index of two dims": ("aten.index.Tensor", randn(6, 6), [randint(0, 6, (6, 1, 1)), randint(0, 6, (1, 6))]),
    "index behind kept dims": ("aten.index.Tensor", randn(6, 4, 6), [None, randint(0, 4, (6,))]),
    "index of dims apart": ("aten.index.Tensor", randn(6, 4, 6), [randint(0, 6, (6,)), None, randint(0, 6, (6,))]),
    "index_select": ("aten.index_select.default", randn(6, 6), 1, randint(0, 6, (12,))),
    "gather": ("aten.gather.default", randn(6, 6), 1, IDS),
    "gather of fewer": ("aten.gather.default", randn(6, 6), 0, randint(0, 6, (6, 4))),
    "take_along_dim": ("aten.take_along_dim.default", randn(6, 6), IDS, 1),
    "one_hot": ("aten.one_hot.default", IDS, 6),
}


@pytest.mark.parametrize("case", CASES)
def test_indexing(prove_op: Callable[..., int], case: str) -> None:
    assert prove_op(*CASES[case]) > 0


@settings(max_examples=8, deadline=None)
@given(st.integers(1, 13), st.integers(1, 6), st.lists(st.integers(1, 6), min_size=1, max_size=3))
def test_embedding_of_any_shape(prove_op: Callable[..., int], vocabulary: int, dim: int, shape: list[int]) -> None:
    prove_op("aten.embedding.default", randn(vocabulary, dim), randint(0, vocabulary, shape), limit=25)
