"""Mixtures of experts: grouped products, and whole mixtures whose rows travel."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from autoplan.graph.ir import Ref
from autoplan.graph.routed_experts import Body, Step, routed_experts
from autoplan.placement import P, R, Shard
from autoplan.rules import rows_of
from autoplan.rules.prove import example_call

EXPERTS, DIM, HIDDEN = 6, 6, 12
randn = torch.randn
# rows: tokens, scores; weights: up (gate and up side by side), down; then ids, offsets, and what the steps make
GATED = Body(
    2,
    2,
    (
        Step("autoplan.grouped_mm.default", (Ref(0), Ref(2), Ref(5)), {}, 1),
        Step("aten.chunk.default", (Ref(6), 2, -1), {}, 2),
        Step("aten.silu.default", (Ref(7),), {}, 1),
        Step("aten.mul.Tensor", (Ref(9), Ref(8)), {}, 1),
        Step("autoplan.grouped_mm.default", (Ref(10), Ref(3), Ref(5)), {}, 1),
        Step("aten.unsqueeze.default", (Ref(1), -1), {}, 1),
        Step("aten.mul.Tensor", (Ref(11), Ref(12)), {}, 1),
    ),
)
BIASED = Body(
    1,
    3,
    (
        Step("autoplan.grouped_mm.default", (Ref(0), Ref(1), Ref(5)), {}, 1),
        Step("aten.index.Tensor", (Ref(2), (Ref(4),)), {}, 1),
        Step("aten.add.Tensor", (Ref(6), Ref(7)), {}, 1),
        Step("aten.mul.Tensor", (Ref(8), Ref(3)), {}, 1),
    ),
)
ROUTINGS = {
    "random": torch.randint(0, EXPERTS, (24,), generator=torch.Generator().manual_seed(3)),
    "all to the last": torch.full((24,), EXPERTS - 1),
    "some to nobody": torch.arange(24) % 2 * 3,
}


def gated(ids: torch.Tensor) -> tuple[Any, ...]:
    rows = (randn(ids.shape[0] // 2, DIM), randn(ids.shape[0]))
    weights = (randn(EXPERTS, DIM, 2 * HIDDEN), randn(EXPERTS, HIDDEN, DIM))
    return "autoplan.routed_experts.default", rows, ids, weights, (2, 1), EXPERTS, GATED.text()


def biased(ids: torch.Tensor) -> tuple[Any, ...]:
    weights = (randn(EXPERTS, DIM, DIM), randn(EXPERTS, DIM), randn(DIM))
    return "autoplan.routed_experts.default", (randn(ids.shape[0], DIM),), ids, weights, (1,), EXPERTS, BIASED.text()


def test_grouped_products(prove_op: Callable[..., int]) -> None:
    ends = torch.tensor([5, 5, 17, 20, 24, 24], dtype=torch.int32)
    assert prove_op("autoplan.grouped_mm.default", randn(24, DIM), randn(EXPERTS, DIM, HIDDEN), ends) > 0


@pytest.mark.parametrize("case", ROUTINGS)
def test_mixtures(prove_op: Callable[..., int], case: str) -> None:
    assert prove_op(*gated(ROUTINGS[case]), hints={3: {2: 2}}, limit=40) > 0


def test_a_mixture_with_biases_by_expert_and_a_shared_scale(prove_op: Callable[..., int]) -> None:
    assert prove_op(*biased(ROUTINGS["random"]), limit=40) > 0


def test_data_parallel_expert_parallel_and_tensor_parallel_rows() -> None:
    call, _ = example_call(*gated(ROUTINGS["random"]))
    rows = {row.ins: row for row in rows_of(replace(call, axis_size=2))}
    data, experts = (Shard(0), Shard(0), Shard(0), R, R), (Shard(0),) * 5
    assert rows[data].outs == rows[experts].outs == (Shard(0),)
    # counts, ids, tokens, scores and results forward; results, tokens and scores backward
    assert rows[experts].inside == ("all-to-all",) * 8
    assert not rows[data].inside
    assert rows[R, R, R, Shard(2, 2), Shard(1)].outs == (P,)


def test_without_gradients_nothing_travels_back() -> None:
    call, _ = example_call(*gated(ROUTINGS["random"]), frozen=range(5))
    rows = {row.ins: row for row in rows_of(replace(call, axis_size=2))}
    assert rows[(Shard(0),) * 5].inside == ("all-to-all",) * 5


def test_the_op_is_what_its_name_says() -> None:
    _, rows, ids, weights, repeats, experts, body = gated(ROUTINGS["random"])
    (tokens, scores), (up, down) = rows, weights
    wanted = torch.stack(
        [
            scores[j] * (torch.nn.functional.silu((hidden := tokens[j // 2] @ up[e])[:HIDDEN]) * hidden[HIDDEN:]) @ down[e]
            for j, e in enumerate(ids.tolist())
        ]
    )
    found = routed_experts(rows, ids, weights, repeats, experts, body)
    torch.testing.assert_close(found, wanted)


def test_a_body_survives_its_text() -> None:
    from autoplan.graph.routed_experts import body_of

    cast = Step("aten.to.dtype", (Ref(0), torch.bfloat16), {"copy": True}, 1)
    bounded = Step("aten.clamp.default", (Ref(5), None, float("inf")), {}, 1)
    body = Body(1, 2, (cast, bounded))
    assert body_of(body.text()) == body
