"""Redistribution proved on real tensors: every rank simulated, every result compared bit by bit with a cut by index lists."""

from __future__ import annotations

from itertools import product
from random import Random

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from redistribution_cases import CUTS, joined, mesh_of, part, terms, whole_of
from torch import Tensor

from autoplan.collectives import SimulatedCollectives, run_simulated
from autoplan.collectives.redistribute import (
    joined_parts,
    parts_for_ranks,
    redistribute,
    redistribute_by,
    redistribute_gradient,
    run_steps,
)
from autoplan.placement import R_PARTIAL, Mesh, P, Placement, Placements, R, S, Shard, format_placements, forward_of, gradient_of
from autoplan.redistribution import Step, collectives, lower, transition

STATES = (*CUTS, R_PARTIAL)
FLAT, GRID, ODD, CUBE = mesh_of(2), mesh_of(2, 2), mesh_of(2, 3), mesh_of(2, 2, 2)


def check_lowered(src: Placements, targets: list[Placements], mesh: Mesh) -> None:
    """Bring a tensor from `src` to each of `targets`; every step moves as many bytes as it says."""
    whole = whole_of(mesh)
    placed = terms(whole, src, mesh)

    def rank_main(group: SimulatedCollectives) -> list[Tensor]:
        results = []
        for dst in targets:
            tensor = placed(group.coordinate)
            for step in lower(src, dst, mesh):
                before, tensor = tensor, run_steps(tensor, (step,), group)
                assert max(before.numel(), tensor.numel()) * step.full_divisor == whole.numel(), (src, dst, step)
            results.append(tensor)
        return results

    ranks = run_simulated(mesh, rank_main)
    for found, dst in zip(zip(*ranks, strict=True), targets, strict=True):
        for total, coordinate in zip(joined(found, dst, mesh), mesh.coordinates(), strict=True):
            assert torch.equal(total, part(whole, dst, mesh, coordinate)), f"{src} -> {dst} on {mesh} at {coordinate}"


@pytest.mark.parametrize("src", [*product(CUTS, repeat=2)], ids=format_placements)
def test_every_pair_of_placements_on_2x2_gives_the_exact_cut(src: Placements) -> None:
    check_lowered(src, list(product(CUTS, repeat=2)), GRID)


@pytest.mark.parametrize(("mesh", "seed"), [*product([ODD], range(12)), *product([CUBE], range(12))], ids=str)
def test_random_pairs_on_larger_meshes_give_the_exact_cut(mesh: Mesh, seed: int) -> None:
    random = Random(seed)
    src, *targets = (tuple(random.choice(CUTS) for _ in mesh.shape) for _ in range(13))
    check_lowered(src, targets, mesh)


@given(
    st.sampled_from([torch.bfloat16, torch.float32, torch.float64, torch.bool]),
    st.lists(st.integers(1, 3), min_size=1, max_size=3),
    st.integers(0, 2),
    st.integers(1, 3),
    st.sampled_from([1, 2, 3, 4, 8]),
    st.booleans(),
)
def test_parts_are_what_ranks_have_and_come_together_again(
    dtype: torch.dtype, sizes: list[int], dim: int, groups: int, n: int, transposed: bool
) -> None:
    """Whatever fills whole words is copied in words, anything else by itself."""
    shard = Shard(dim % len(sizes), groups)
    shape = [size * (groups * n if at == shard.dim else 1) for at, size in enumerate(sizes)]
    numbers = torch.randint(0, 2 if dtype == torch.bool else 100, shape[::-1] if transposed else shape).to(dtype)
    whole = numbers.permute(*reversed(range(len(shape)))) if transposed else numbers
    parts = parts_for_ranks(whole, shard, n)
    mesh = mesh_of(n)
    assert parts.is_contiguous() and parts.dtype == dtype
    for rank in range(n):
        assert torch.equal(parts[rank], part(whole, (shard,), mesh, (rank,)))
    assert joined_parts(parts, shard).is_contiguous()
    assert torch.equal(joined_parts(parts, shard), whole)


def test_what_begins_between_words_is_copied_too() -> None:
    odd = torch.arange(33, dtype=torch.bfloat16)[1:].view(4, 8)
    assert torch.equal(parts_for_ranks(odd, Shard(1), 2), odd.view(4, 2, 4).transpose(0, 1))


def test_an_axis_of_one_rank_changes_its_placement_all_the_same() -> None:
    mesh = mesh_of(1, 2)
    whole = torch.arange(12.0, dtype=torch.float64).view(6, 2)
    outer: list[Placement] = [R, P, S(0)]
    inner: list[Placement] = [R, S(0)]
    for src, dst in product(product(outer, inner), repeat=2):
        steps = lower(src, dst, mesh)

        def rank_main(group: SimulatedCollectives, src: Placements = src, steps: tuple[Step, ...] = steps) -> Tensor:
            return run_steps(part(whole, src, mesh, group.coordinate), steps, group)

        found = run_simulated(mesh, rank_main)
        for local, coordinate in zip(found, mesh.coordinates(), strict=True):
            assert torch.equal(local, part(whole, dst, mesh, coordinate)), (src, dst)


@pytest.mark.parametrize(
    ("src", "dst", "steps"),
    [
        ((S(0), S(0)), (R, R), [("all-gather", (0, 1))]),
        ((S(1, 3), S(1, 3)), (R, R), [("all-gather", (0, 1))]),
        ((P, P), (S(0), S(0)), [("reduce-scatter", (0, 1))]),
        ((P, P), (R, R), [("all-reduce", (0, 1))]),
        ((S(0), S(1)), (R, R), [("all-gather", (1,)), ("all-gather", (0,))]),
        ((S(0), S(0)), (R, S(0)), [("all-gather", (0, 1))]),  # the inner axis must let go first: gather both, cut again
        ((S(0), P), (R, S(1)), [("reduce-scatter", (1,)), ("all-gather", (0,))]),  # what shrinks goes first
        ((S(0), R), (S(1), R), [("all-to-all", (0,))]),
        ((R, R), (S(0), S(1)), []),
        ((R, S(0)), (P, P), []),
    ],
    ids=str,
)
def test_the_collectives_of_a_transition(src: Placements, dst: Placements, steps: list[tuple[str, tuple[int, ...]]]) -> None:
    assert list(collectives(lower(src, dst, GRID))) == steps


def test_what_is_where_it_should_be_takes_no_steps() -> None:
    assert all(lower(state, state, GRID) == () for state in product(CUTS, repeat=2))


GATHER, SCATTER, REDUCE, EXCHANGE = ["all-gather"], ["reduce-scatter"], ["all-reduce"], ["all-to-all"]
REGROUP = ["all-gather", "slice"]
TABLE: dict[tuple[Placement, Placement], tuple[list[str], list[str]]] = {  # DESIGN 5: (forward, backward)
    (S(0), S(0)): ([], []),
    (S(0), S(1)): (EXCHANGE, EXCHANGE),
    (S(0), S(1, 3)): (EXCHANGE, EXCHANGE),
    (S(0), S(0, 2)): (REGROUP, REGROUP),
    (S(0), R): (GATHER, ["slice"]),
    (S(0), R_PARTIAL): (GATHER, SCATTER),
    (P, S(0)): (SCATTER, GATHER),
    (P, P): ([], []),
    (P, R): (REDUCE, []),
    (P, R_PARTIAL): (REDUCE, REDUCE),
    (R, S(0)): (["slice"], GATHER),
    (R, P): (["keep"], []),
    (R, R): ([], []),
    (R, R_PARTIAL): ([], REDUCE),
    (R_PARTIAL, S(0)): (["slice"], ["pad"]),
    (R_PARTIAL, P): (["keep"], ["keep"]),
    (R_PARTIAL, R): ([], ["keep"]),
    (R_PARTIAL, R_PARTIAL): ([], []),
}


@pytest.mark.parametrize(("pair", "steps"), TABLE.items(), ids=lambda x: repr(x) if isinstance(x, tuple) else "")
def test_one_axis_takes_the_steps_of_the_table(pair: tuple[Placement, Placement], steps: tuple[list[str], list[str]]) -> None:
    forward, backward = transition((pair[0],), (pair[1],), FLAT, needs_grad=True)
    assert ([step.kind for step in forward], [step.kind for step in backward]) == steps
    assert transition((pair[0],), (pair[1],), FLAT, needs_grad=False) == (forward, ())


def check_gradient(produced: Placements, needed: Placements, mesh: Mesh) -> None:
    """The values that arrive, and the gradient that comes back, are the right cuts of the global ones."""
    whole, gradient = whole_of(mesh), whole_of(mesh).flip(0)
    value_at, gradient_at = terms(whole, forward_of(produced), mesh), terms(gradient, gradient_of(needed), mesh)

    def rank_main(group: SimulatedCollectives) -> tuple[Tensor, Tensor]:
        local = value_at(group.coordinate).requires_grad_()
        result = redistribute(local, produced, needed, group)
        result.backward(gradient_at(group.coordinate))
        assert local.grad is not None
        return result.detach(), local.grad

    ranks = run_simulated(mesh, rank_main)
    for found, state, right in zip(zip(*ranks, strict=True), (forward_of(needed), gradient_of(produced)), (whole, gradient), strict=True):
        for total, coordinate in zip(joined(found, state, mesh), mesh.coordinates(), strict=True):
            assert torch.equal(total, part(right, state, mesh, coordinate)), (produced, needed, state, coordinate)


@pytest.mark.parametrize("produced", STATES, ids=repr)
@pytest.mark.parametrize("size", [2, 3])
def test_gradients_come_back_in_the_producers_placement_from_every_state(produced: Placement, size: int) -> None:
    for needed in STATES:
        check_gradient((produced,), (needed,), mesh_of(size))


@pytest.mark.parametrize("seed", range(10))
def test_gradients_come_back_over_two_axes(seed: int) -> None:
    random = Random(seed)
    for mesh in (GRID, ODD):
        for _ in range(10):
            produced, needed = (tuple(random.choice(STATES) for _ in mesh.shape) for _ in range(2))
            check_gradient(produced, needed, mesh)


def test_what_needs_no_gradient_sends_none_back() -> None:
    def rank_main(group: SimulatedCollectives) -> bool:
        return redistribute(torch.ones(4), (S(0),), (R_PARTIAL,), group).requires_grad

    assert run_simulated(FLAT, rank_main) == [False, False]


def test_a_shared_copy_is_not_gathered_again_and_its_gradient_goes_its_own_way() -> None:
    """S gathered for a reader with a whole gradient, then read with a partial one: one all-gather, one reduce-scatter."""
    steps = lower((P,), (S(0),), FLAT)

    def rank_main(group: SimulatedCollectives) -> tuple[Tensor, Tensor, dict]:
        local = torch.full((2,), 1.0 + group.coordinate[0]).requires_grad_()
        first = redistribute(local, (S(0),), (R,), group)
        second = redistribute_gradient(local, first, (S(0),), (R_PARTIAL,), group)
        third = redistribute_by(local, (), steps, group, shared=first)
        assert torch.equal(first, second) and torch.equal(first, third)
        (second * (1.0 + group.coordinate[0])).sum().backward()
        return second.detach(), local.grad, dict(group.counts)  # type: ignore[return-value]

    for rank, (value, gradient, counts) in enumerate(run_simulated(FLAT, rank_main)):
        assert value.tolist() == [1.0, 1.0, 2.0, 2.0]
        assert gradient.tolist() == [3.0, 3.0], rank  # 1 of the first rank + 2 of the second
        assert counts == {("all-gather", (0,)): 1, ("reduce-scatter", (0,)): 1}
