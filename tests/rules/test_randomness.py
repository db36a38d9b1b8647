"""Random ops: what ranks share and what they do not."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from autoplan.collectives import run_simulated
from autoplan.placement import Mesh, P, Placements, R, Shard
from autoplan.rules import localize, strategies_of
from autoplan.rules.prove import cut_global, example_call

MESH = Mesh(("x", "y"), (2, 2))
QKV = [torch.randn(2, 4, 8, 4) for _ in range(3)]
CASES = {
    "dropout": ("aten.dropout.default", torch.ones(64, 64), 0.5, True),
    "native_dropout": ("aten.native_dropout.default", torch.ones(64, 64), 0.5, True),
    "rand": ("aten.rand.default", [64, 64]),
    "randn": ("aten.randn.default", [64, 64]),
    "normal": ("aten.normal.float_float", 1.0, 2.0, [64, 64]),
    "rand_like": ("aten.rand_like.default", torch.ones(64, 64)),
    "randn_like": ("aten.randn_like.default", torch.ones(64, 64)),
    "randint": ("aten.randint.low", 5, 500, [64, 64]),
    "randint_like": ("aten.randint_like.default", torch.ones(64, 64), 500),
    "rrelu": ("aten.rrelu.default", -torch.ones(64, 64), 0.1, 0.9, True),
    "normal_functional": ("aten.normal_functional.default", torch.ones(64, 64)),
    "bernoulli": ("aten.bernoulli.default", torch.full((64, 64), 0.5)),
    "bernoulli.p": ("aten.bernoulli.p", torch.zeros(64, 64), 0.5),
    "attention": ("aten.scaled_dot_product_attention.default", *QKV, None, 0.5),
}
WHOLE = {  # drawn whole on every rank; poisson has no rule
    "alpha_dropout": ("aten.alpha_dropout.default", torch.ones(64, 64), 0.5, True),
    "feature_dropout": ("aten.feature_dropout.default", torch.ones(64, 64), 0.5, True),
    "multinomial": ("aten.multinomial.default", torch.ones(64, 64), 8),
    "randperm": ("aten.randperm.default", 64),
    "poisson": ("aten.poisson.default", torch.full((64, 64), 3.0)),
}
CASES |= WHOLE
SPLIT = [case for case in CASES if case not in WHOLE]


def run(case: str, made: Placements, seed: int = 3) -> dict[tuple[int, ...], Tensor]:
    """The first output on each rank, under the strategy that makes it in these placements."""
    call, operands = example_call(*CASES[case])
    strategy = next(s for s in strategies_of(call, MESH) if s.makes[0] == made)
    inputs = [None if state is None else cut_global(x, state, MESH) for x, state in zip(operands, strategy.needs, strict=True)]
    op = localize(call, strategy, MESH)

    def rank_main(group):  # type: ignore[no-untyped-def]
        local = [x if cut is None else cut[group.coordinate] for x, cut in zip(operands, inputs, strict=True)]
        result = op.run(local, group, seed)
        return result if isinstance(result, Tensor) else result[0]

    return dict(zip(MESH.coordinates(), run_simulated(MESH, rank_main), strict=True))


@pytest.mark.parametrize("case", CASES)
def test_replicas_draw_the_same_numbers(case: str) -> None:
    parts = run(case, (R, R))
    assert all(torch.equal(part, parts[0, 0]) for part in parts.values())


@pytest.mark.parametrize("case", SPLIT)
def test_shards_draw_different_numbers(case: str) -> None:
    if case == "attention":
        QKV[0][:], QKV[1][:], QKV[2][:] = 1.0, 1.0, 1.0  # ranks then differ by their numbers only
    parts = run(case, (Shard(0), Shard(1)))
    assert len({part.numpy().tobytes() for part in parts.values()}) == 4


@pytest.mark.parametrize("case", SPLIT)
def test_replicas_of_a_shard_agree(case: str) -> None:
    parts = run(case, (R, Shard(0)))
    assert torch.equal(parts[0, 0], parts[1, 0]) and torch.equal(parts[0, 1], parts[1, 1])
    assert case == "attention" or not torch.equal(parts[0, 0], parts[0, 1])


@pytest.mark.parametrize("case", CASES)
def test_the_seed_decides(case: str) -> None:
    first, again, other = (run(case, (R, R) if case in WHOLE else (R, Shard(0)), seed) for seed in (3, 3, 4))
    assert torch.equal(first[0, 0], again[0, 0])
    assert case == "attention" or not torch.equal(first[0, 0], other[0, 0])


@pytest.mark.parametrize("case", ["attention", "bernoulli", "poisson"])
def test_the_default_generator_is_left_as_it_was(case: str) -> None:
    call, operands = example_call(*CASES[case])
    mesh = Mesh(("x",), (1,))
    op = localize(call, strategies_of(call, mesh)[0], mesh)
    before = torch.get_rng_state()
    run_simulated(mesh, lambda group: op.run(operands, group, 3))
    assert torch.equal(torch.get_rng_state(), before)


def test_partial_sums_lose_the_same_elements() -> None:
    parts = run("dropout", (P, R))
    assert torch.equal(parts[0, 0] == 0, parts[1, 0] == 0)


def test_dropout_keeps_the_mean_and_the_share() -> None:
    for part in run("dropout", (Shard(0), Shard(1))).values():
        assert set(part.unique().tolist()) == {0.0, 2.0}
        assert abs(float(part.mean()) - 1) < 0.1


def test_dropout_that_drops_nothing_is_a_plain_op(prove_op: Callable[..., int]) -> None:
    assert prove_op("aten.dropout.default", torch.randn(6, 6), 0.0, True) > 0
    assert prove_op("aten.dropout.default", torch.randn(6, 6), 0.5, False) > 0
