"""Reductions and scans."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

randn = torch.randn
X = randn(6, 6, 4)
CASES = {
    "sum": ("aten.sum.default", X),
    "sum of a dim": ("aten.sum.dim_IntList", X, [1]),
    "sum, dim kept": ("aten.sum.dim_IntList", X, [0, -1], True),
    "mean": ("aten.mean.default", X),
    "mean of a dim": ("aten.mean.dim", X, [-1], True),
    "mean of two dims": ("aten.mean.dim", X, [0, 1]),
    "amax": ("aten.amax.default", X, [1]),
    "amin": ("aten.amin.default", X, [1], True),
    "max of a dim": ("aten.max.dim", X, 1),
    "prod": ("aten.prod.dim_int", X, 1),
    "logsumexp": ("aten.logsumexp.default", X, [2]),
    "argmax": ("aten.argmax.default", X, -1),
    "var": ("aten.var.correction", X, [1]),
    "any": ("aten.any.dim", X > 1, 1),
    "norm": ("aten.linalg_vector_norm.default", X, 2, [1]),
    "softmax": ("aten.softmax.int", X, 1),
    "log_softmax": ("aten.log_softmax.int", X, -1),
    "cumsum": ("aten.cumsum.default", X, 1),
    "cumsum of a bool": ("aten.cumsum.default", X > 0, 1),
    "diff": ("aten.diff.default", X, 1, 1),
    "diff with prepend": ("aten.diff.default", X, 1, 1, randn(6, 1, 4)),
    "sort": ("aten.sort.default", X, 1),
    "topk": ("aten.topk.default", X, 2, 1),
    "argsort": ("aten.argsort.default", X, 1),
    "histc": ("aten.histc.default", X, 5, -1, 2),
    "glu": ("aten.glu.default", X, 2),
    "nansum": ("aten.nansum.default", X.masked_fill(X > 1, float("nan")), [1]),
    "kthvalue": ("aten.kthvalue.default", X, 2, 1),
    "mode": ("aten.mode.default", X, 1),
    "logcumsumexp": ("aten.logcumsumexp.default", X, 1),
    "fft": ("aten.fft_fft.default", X, None, 1),
    "fft of two dims": ("aten.fft_fft2.default", X),
    "fft of real numbers": ("aten.fft_rfft.default", X),
    "fft of chosen dims": ("aten.fft_fftn.default", X, None, [0, 2]),
}


@pytest.mark.parametrize("case", CASES)
def test_reductions(prove_op: Callable[..., int], case: str) -> None:
    assert prove_op(*CASES[case], limit=40) > 0


@pytest.mark.parametrize("args", [("aten.max.default", X), ("aten.std.default", X, False), ("aten.all.default", X > 0)])
def test_what_is_reduced_to_one_number_and_is_no_sum_is_replicated(prove_op: Callable[..., int], args: tuple[Any, ...]) -> None:
    assert prove_op(*args) == 0
