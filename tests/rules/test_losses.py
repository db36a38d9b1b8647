"""Losses: means over split batches, classes that stay split."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from autoplan.placement import Mesh, P, R, Shard
from autoplan.rules import strategies_of
from autoplan.rules.prove import example_call

randn = torch.randn
CE = "aten.cross_entropy_loss.default"


def labels(*shape: int, classes: int = 12) -> torch.Tensor:
    """Labels of which the first are ignored, so that ranks count different numbers."""
    target = torch.randint(0, classes, shape)
    target.view(-1)[:3] = -100
    return target


SIGNS = torch.randn(6, 6).sign()
CASES = {
    "mean": (CE, randn(12, 12), labels(12)),
    "sum": (CE, randn(12, 12), labels(12), None, 2),
    "none": (CE, randn(12, 12), labels(12), None, 0),
    "another ignored index": (CE, randn(12, 12), torch.randint(0, 3, (12,)), None, 1, 1),
    "smoothing": (CE, randn(12, 12), labels(12), None, 1, -100, 0.1),
    "with positions": (CE, randn(6, 12, 6), labels(6, 6)),
    "with positions, none": (CE, randn(6, 12, 6), labels(6, 6), None, 0),
    "one sample": (CE, randn(12), torch.tensor(7)),
    "probabilities": (CE, randn(6, 12), torch.rand(6, 12)),
    "mse": ("aten.mse_loss.default", randn(6, 6), randn(6, 6)),
    "mse, sum": ("aten.mse_loss.default", randn(6, 6), randn(6, 6), 2),
    "mse, none": ("aten.mse_loss.default", randn(6, 6), randn(6, 6), 0),
    "l1": ("aten.l1_loss.default", randn(6, 6), randn(6, 6)),
    "bce": ("aten.binary_cross_entropy_with_logits.default", randn(6, 6), torch.rand(6, 6)),
    "kl": ("aten.kl_div.default", randn(6, 6), torch.rand(6, 6)),
    "kl, sum": ("aten.kl_div.default", randn(6, 6), torch.rand(6, 6), 2),
    "bce of probabilities": ("aten.binary_cross_entropy.default", torch.rand(6, 6), torch.rand(6, 6)),
    "bce, none": ("aten.binary_cross_entropy.default", torch.rand(6, 6), torch.rand(6, 6), None, 0),
    "nll": ("aten.nll_loss_nd.default", randn(12, 6), labels(12, classes=6)),
    "nll, sum": ("aten.nll_loss.default", randn(12, 6), labels(12, classes=6), None, 2),
    "nll, none": ("aten.nll_loss_nd.default", randn(12, 6), labels(12, classes=6), None, 0),
    "nll of positions": ("aten.nll_loss_nd.default", randn(6, 4, 6), labels(6, 6, classes=4)),
    "nll of images": ("aten.nll_loss2d.default", randn(6, 4, 6, 2), labels(6, 6, 2, classes=4)),
    "hinge": ("aten.hinge_embedding_loss.default", randn(6, 6), SIGNS),
    "margin ranking": ("aten.margin_ranking_loss.default", randn(6, 6), randn(6, 6), SIGNS, 0.5),
    "poisson": ("aten.poisson_nll_loss.default", randn(6, 6), torch.rand(6, 6), True, False, 1e-8, 1),
    "cosine": ("aten.cosine_embedding_loss.default", randn(6, 4), randn(6, 4), SIGNS[0]),
    "triplet": ("aten.triplet_margin_loss.default", randn(6, 4), randn(6, 4), randn(6, 4)),
    "triplet, none": ("aten.triplet_margin_loss.default", randn(6, 4), randn(6, 4), randn(6, 4), 1.0, 2.0, 1e-6, False, 0),
}


@pytest.mark.parametrize("case", CASES)
def test_losses(prove_op: Callable[..., int], case: str) -> None:
    assert prove_op(*CASES[case]) > 0


@pytest.mark.parametrize("reduction", [0, 1, 2])
def test_weighted_classes(prove_op: Callable[..., int], reduction: int) -> None:
    assert prove_op(CE, randn(6, 12), labels(6), torch.rand(12) + 0.5, reduction, frozen=(2,)) > 0


def test_signs_need_no_gradient(prove_op: Callable[..., int]) -> None:
    assert prove_op("aten.soft_margin_loss.default", randn(6, 6), SIGNS, frozen=(1,)) > 0


def test_weighted_log_probabilities(prove_op: Callable[..., int]) -> None:
    assert prove_op("aten.nll_loss_nd.default", randn(6, 12), labels(6), torch.rand(12) + 0.5, frozen=(2,)) > 0


def test_grouped_batches(prove_op: Callable[..., int]) -> None:
    assert prove_op(CE, randn(24, 12), labels(24), hints={0: {0: 4}, 1: {0: 4}}, meshes=((2,), (3,), (2, 2), (2, 3), (2, 2, 2))) > 0


def test_a_rank_without_valid_labels_adds_nothing(prove_op: Callable[..., int]) -> None:
    target = torch.randint(0, 6, (6,))
    target[:3] = -100
    assert prove_op(CE, randn(6, 6), target, meshes=((2,), (3,))) > 0


@settings(max_examples=8, deadline=None)
@given(st.integers(4, 13), st.integers(2, 13), st.integers(0, 2))
def test_cross_entropy_of_any_shape(prove_op: Callable[..., int], batch: int, classes: int, reduction: int) -> None:
    prove_op(CE, randn(batch, classes), labels(batch, classes=classes), None, reduction, limit=10)


def test_the_rows_say_which_collectives_run_inside() -> None:
    call, _ = example_call(CE, randn(12, 12), labels(12))
    inside = {s.makes[0]: s.inside() for s in strategies_of(call, Mesh(("x", "y"), (2, 2))) if s.needs[0] == (Shard(0), Shard(1))}
    assert inside == {(P, R): (("all-reduce", (0,)), *[("all-reduce", (1,))] * 3)}
