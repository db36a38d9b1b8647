"""Blocks that compute their activations again in backward: the same gradients, and exactly the collectives that are planned."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from buffer_models import convnet
from runtime_cases import GPT2, TINY, Seeded, graph_of, mesh_of, plan_of, random_assignment, random_plan
from test_program import WIDE, fully_sharded

from autoplan.assignment import Assignment
from autoplan.assignment.gathers import gather_groups, step_collectives
from autoplan.assignment.recompute import nodes_again
from autoplan.assignment.rescale import rescale
from autoplan.errors import PlanError
from autoplan.graph import Graph, find_blocks, foldable_prefixes
from autoplan.graph.segments import Segment, find_segments
from autoplan.plan.schema import Plan, RecomputeLine
from autoplan.plan.summary import collective_counts
from autoplan.runtime.program.program import build_program
from autoplan.runtime.verify.pool import WorkerPool
from autoplan.runtime.verify.results import RankResult
from autoplan.runtime.verify.runs import simulated_run
from autoplan.runtime.verify.verify import verify, verify_assignment

CONVNET = Seeded(convnet)


def segments_of(graph: Graph) -> tuple[Segment, ...]:
    return find_segments(graph, foldable_prefixes(find_blocks(graph)))


def results_of(build: Seeded, assignment: Assignment, recomputed: tuple[Segment, ...]) -> list[RankResult]:
    groups = gather_groups(assignment, foldable_prefixes(find_blocks(assignment.graph)), recomputed=recomputed)
    program = build_program(assignment, groups, "cpu", recomputed=recomputed)
    return simulated_run(build(), program)


@pytest.mark.parametrize("shape", [(4,), (2, 2), (2, 3)], ids=str)
@pytest.mark.parametrize("seed", range(3))
def test_random_decisions_on_a_recomputed_llama_give_what_one_device_gives(shape: tuple[int, ...], seed: int) -> None:
    graph = graph_of(WIDE)
    assignment = random_assignment(graph, mesh_of(*shape), seed)
    recomputed = segments_of(graph)[: 1 + seed % 2]
    groups = gather_groups(assignment, {"layers"}, recomputed=recomputed)
    found = verify_assignment(WIDE, assignment, groups, recomputed=recomputed)
    assert found.ok, found.to_json()
    assert sum(found.observed.values()) > sum(step_collectives(assignment, gather_groups(assignment, {"layers"})).values())


def test_recomputing_changes_no_bit_of_a_gradient() -> None:
    graph = graph_of(WIDE)
    assignment = random_assignment(graph, mesh_of(2, 2), 5)
    kept, again = results_of(WIDE, assignment, ()), results_of(WIDE, assignment, segments_of(graph))
    assert all(torch.equal(a.gradients[fqn], b.gradients[fqn]) for a, b in zip(kept, again, strict=True) for fqn in a.gradients)  # type: ignore[arg-type]
    assert again[0].flops > 1.2 * kept[0].flops


def test_what_comes_behind_the_last_op_that_keeps_anything_is_not_run_again() -> None:
    graph = graph_of(WIDE)
    for segment in segments_of(graph):
        again = nodes_again(graph, segment)
        assert again.start == segment.nodes.start
        assert graph.nodes[again[-1]].address.endswith("mlp.w2/linear")
        assert [graph.nodes[node].name for node in range(again.stop, segment.nodes.stop)] == ["aten.add"]


def test_a_recomputed_block_gathers_all_its_parameters_again() -> None:
    build = Seeded(TINY.factory, {**TINY.settings, "batch": 12, "seq": 12, "n_layers": 3})
    assignment = fully_sharded(graph_of(build))
    recomputed = segments_of(assignment.graph)[:2]
    groups = {group.name: group for group in gather_groups(assignment, {"layers"}, recomputed=recomputed)}
    assert groups["layers.0"].again == groups["layers.0"].forward
    kept = gather_groups(assignment, {"layers"}, lambda name: False, recomputed)
    assert not any(group.again for group in kept)
    assert verify_assignment(build, assignment, tuple(groups.values()), recomputed=recomputed).ok
    assert verify_assignment(build, assignment, kept, recomputed=recomputed).ok


def test_dropout_draws_the_same_numbers_again() -> None:
    graph = graph_of(GPT2)
    assignment = random_assignment(graph, mesh_of(2, 2), 1)
    kept, again = results_of(GPT2, assignment, ()), results_of(GPT2, assignment, segments_of(graph))
    assert all(torch.equal(a.gradients[fqn], b.gradients[fqn]) for a, b in zip(kept, again, strict=True) for fqn in a.gradients)  # type: ignore[arg-type]


@pytest.mark.parametrize("seed", range(2))
def test_buffers_are_overwritten_once(seed: int) -> None:
    graph = graph_of(CONVNET, torch.float64)
    recomputed = segments_of(graph)
    assert [segment.name for segment in recomputed] == ["blocks.0", "blocks.1"]
    assignment = random_assignment(graph, mesh_of(2, 2), seed)
    groups = gather_groups(assignment, {"blocks"}, recomputed=recomputed)
    found = verify_assignment(CONVNET, assignment, groups, torch.float64, recomputed=recomputed)
    assert found.ok and found.grad_rel_err < 1e-12, found.to_json()


def recomputing(build: Seeded, assignment: Assignment, prefix: str, blocks: int) -> Plan:
    """The plan of an assignment whose first blocks recompute, and gather all their parameters again."""
    segments = segments_of(assignment.graph)
    plan = plan_of(assignment, build().module, recomputed=segments[:blocks])
    return replace(plan, recompute={f"{prefix}.*": RecomputeLine(blocks, len(segments), "full")})


@pytest.mark.parametrize("shape", [(2, 2), (3, 4)], ids=str)
def test_a_plan_with_recompute_is_verified(pool: WorkerPool, shape: tuple[int, ...]) -> None:
    build = TINY if shape == (2, 2) else WIDE
    plan = recomputing(build, random_assignment(graph_of(build), mesh_of(*shape), 3), "layers", 1)
    found = verify(build, plan, pool=pool)
    assert found.ok, found.to_json()
    assert sum(found.planned.values()) > sum(collective_counts(plan).values())


def test_a_plan_with_recompute_holds_for_another_number_of_layers(pool: WorkerPool) -> None:
    plan = recomputing(TINY, fully_sharded(graph_of(TINY)), "layers", 1)
    for layers, recomputed in ((1, 1), (2, 1), (5, 3)):
        build = Seeded(TINY.factory, {**TINY.settings, "n_layers": layers})
        scaled = rescale(plan, graph_of(build))
        assert scaled.recompute["layers.*"] == RecomputeLine(recomputed, layers, "full")
        assert verify(build, scaled, pool=pool).ok


def test_buffers_of_a_recomputed_block_in_processes(pool: WorkerPool) -> None:
    found = verify(
        CONVNET, recomputing(CONVNET, random_assignment(graph_of(CONVNET), mesh_of(2, 2), 1), "blocks", 2), pool=pool, dtype=torch.float64
    )
    assert found.ok, found.to_json()


def test_lines_that_name_no_block_are_refused() -> None:
    plan = random_plan(WIDE, mesh_of(3, 4), 0)
    for line, said in (("towers.*", "no such module"), ("layers.*", "of 3, but the model has 2")):
        with pytest.raises(PlanError, match=said):
            verify(WIDE, replace(plan, recompute={line: RecomputeLine(1, 3, "full")}))
