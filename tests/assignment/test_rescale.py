"""A plan's decisions at another size: fewer layers, smaller dims, another batch, and the same decisions."""

from __future__ import annotations

import re

import pytest
from assignment_cases import Settings, model_of, plan_of, random_of, written

from autoplan.assignment import decode
from autoplan.assignment.rescale import rescale
from autoplan.placement import Placements, Shard
from autoplan.plan.schema import Plan

SIZES: Settings = (("n_heads", 8), ("n_kv_heads", 4))
LARGE: Settings = (*SIZES, ("n_layers", 4), ("dim", 128), ("ffn_dim", 128), ("vocab_size", 128), ("batch", 16), ("seq", 16))
SMALL: Settings = (*SIZES, ("n_layers", 2), ("dim", 64), ("ffn_dim", 64), ("vocab_size", 64), ("batch", 8), ("seq", 16))


def rescaled(mesh: str, seed: int) -> tuple[Plan, Plan]:
    plan = written(plan_of("llama", random_of("llama", mesh, seed, LARGE), LARGE))
    return plan, rescale(plan, model_of("llama", SMALL)[1])


def ungrouped(placements: Placements) -> tuple[tuple[str, int | None], ...]:
    """Kinds and dims: groups that stem from a size follow it."""
    return tuple((type(p).__name__, p.dim if isinstance(p, Shard) else None) for p in placements)


def starred(name: str) -> str:
    return re.sub(r"layers\.(\*|\d+|\{\d+-\d+\})", "layers.*", name)


@pytest.mark.parametrize("mesh", ["4", "2x2", "1x4"])
@pytest.mark.parametrize("seed", range(3))
def test_decisions_are_the_same_at_the_smaller_size(mesh: str, seed: int) -> None:
    large, small = rescaled(mesh, seed)
    assert list(small.params) == list(large.params)
    for pattern, line in large.params.items():
        there = small.params[pattern]
        assert ungrouped(there.store) == ungrouped(line.store)
        assert there.count == (2 if "*" in pattern else 1) and line.count == (4 if "*" in pattern else 1)
    assert {name: line.place for name, line in small.inputs.items()} == {name: line.place for name, line in large.inputs.items()}
    assert small.outputs == large.outputs
    assert {starred(name) for name in small.ops} <= {starred(name) for name in large.ops}
    for name, entries in small.reshard.items():
        if name in large.reshard:
            assert [ungrouped(e.to) for e in entries] == [ungrouped(e.to) for e in large.reshard[name]]


@pytest.mark.parametrize("mesh", ["4", "2x2", "1x4"])
@pytest.mark.parametrize("seed", range(3))
def test_the_rescaled_plan_decodes_to_the_same_rows(mesh: str, seed: int) -> None:
    _, small = rescaled(mesh, seed)
    _, graph = model_of("llama", SMALL)
    found, said = decode(small, graph), random_of("llama", mesh, seed, LARGE)
    there = said.graph.by_address
    for node, strategy in zip(graph.nodes, found.strategies, strict=True):
        twin = there[node.address.replace("layers.1", "layers.3")]
        right = said.strategies[twin.id]
        assert list(map(ungrouped, strategy.makes)) == list(map(ungrouped, right.makes)), node.address
        assert strategy.local == right.local and strategy.partial == right.partial, node.address


def test_groups_that_stem_from_the_batch_follow_it() -> None:
    """Flattening [B, T] with T split gives S(0, local B): S(0,16) at a batch of 16 is S(0,8) at 8."""
    for seed in range(60):
        large, small = rescaled("4", seed)
        entries = large.reshard.get("head/flatten", ())
        if any(p == Shard(0, 16) for entry in entries for p in entry.from_):
            assert any(p == Shard(0, 8) for entry in small.reshard["head/flatten"] for p in entry.from_)
            decode(small, model_of("llama", SMALL)[1])
            return
    raise AssertionError("no split sequence in sixty random plans")


def test_a_plan_of_the_same_size_stays_as_it_is() -> None:
    plan = written(plan_of("llama", random_of("llama", "2x2", 1)))
    same = rescale(plan, model_of("llama")[1])
    assert (same.params, same.ops, same.reshard, same.gather) == (plan.params, plan.ops, plan.reshard, plan.gather)
