"""Gathers issued ahead of their readers and gradients reduced while backward goes on: the same numbers, in another order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from unittest.mock import patch

import process_jobs
import pytest
import torch
from runtime_cases import TINY, Seeded, graph_of, mesh_of, odds, random_assignment, random_plan
from test_program import WIDE, fully_sharded

from autoplan.assignment import Assignment
from autoplan.assignment.gathers import GatherGroup, gather_groups, step_collectives
from autoplan.collectives import SimulatedCollectives, UnderWay
from autoplan.plan.schema import Plan
from autoplan.runtime.program.program import build_program
from autoplan.runtime.verify.pool import WorkerPool
from autoplan.runtime.verify.runs import simulated_run
from autoplan.runtime.verify.undropped import undropped
from autoplan.runtime.verify.verify import verify, verify_assignment

DEEP = Seeded(TINY.factory, {**TINY.settings, "n_layers": 4})


def ahead(assignment: Assignment, prefetch: int = 1) -> tuple[GatherGroup, ...]:
    return tuple(replace(group, prefetch=prefetch) for group in gather_groups(assignment, {"layers"}))


@pytest.mark.parametrize("prefetch", [1, 3])
def test_overlap_changes_no_bit_of_a_gradient_and_no_collective(prefetch: int) -> None:
    assignment = random_assignment(graph_of(WIDE), mesh_of(2, 2), 5)
    runs = [
        simulated_run(WIDE(), build_program(assignment, groups, "cpu")) for groups in (ahead(assignment, 0), ahead(assignment, prefetch))
    ]
    for late, usual in zip(*runs, strict=True):
        assert all(torch.equal(late.gradients[fqn], usual.gradients[fqn]) for fqn in usual.gradients)  # type: ignore[arg-type]
        assert late.collectives == usual.collectives == step_collectives(assignment, ahead(assignment))


def test_frozen_and_unused_parameters_with_overlap() -> None:
    build = Seeded(odds, {"p": 0.0})
    graph = undropped(graph_of(build))
    for seed in range(3):
        assignment = random_assignment(graph, mesh_of(2, 2), seed)
        assert verify_assignment(build, assignment, ahead(assignment)).ok


def test_a_layer_is_gathered_while_its_neighbour_computes_and_reduced_while_backward_goes_on() -> None:
    assignment = fully_sharded(graph_of(DEEP), 2)
    events: list[tuple[str, str]] = []
    start, wait = SimulatedCollectives.start, SimulatedCollectives.wait

    def started(self: SimulatedCollectives, kind: str, tensors: Sequence[torch.Tensor], axes: tuple[int, ...]) -> UnderWay:
        if self.coordinate == (0,):
            events.append(("start", kind))
        return start(self, kind, tensors, axes)

    def waited(self: SimulatedCollectives, under_way: UnderWay) -> list[torch.Tensor]:
        if self.coordinate == (0,):
            events.append(("wait", ""))
        return wait(self, under_way)

    under_way = {}
    with patch.object(SimulatedCollectives, "start", started), patch.object(SimulatedCollectives, "wait", waited):
        for prefetch in (0, 1):
            events.clear()
            simulated_run(DEEP(), build_program(assignment, ahead(assignment, prefetch), "cpu"))
            flights, most = 0, 0
            for what, _ in events:
                flights += 1 if what == "start" else -1
                most = max(most, flights)
            assert flights == 0
            under_way[prefetch] = most
    assert under_way[0] == 1  # each is waited for at once
    assert under_way[1] >= 3  # in backward: the layer's own, the gather of the one before, the reduction of the one behind


def test_the_next_layer_is_issued_before_a_layer_runs() -> None:
    code = build_program(fully_sharded(graph_of(DEEP)), ahead(fully_sharded(graph_of(DEEP))), "cpu").module.code
    assert code.index("self.start_layers_1(run") < code.index("= self.layers_0(run") < code.index("= self.gather_layers_1(run")
    assert code.index("self.start_head_weight(run") < code.index("= self.layers_3(run")
    assert code.index("self.late_layers_3(run") < code.index("self.gather_")


def overlapping(plan: Plan) -> Plan:
    return replace(plan, gather={key: replace(line, prefetch=1) for key, line in plan.gather.items()})


def test_overlap_in_processes(pool: WorkerPool) -> None:
    found = verify(TINY, overlapping(random_plan(TINY, mesh_of(2, 2), 1)), pool=pool)
    assert found.ok, found.to_json()


def test_two_forwards_before_one_backward_and_accumulation(pool: WorkerPool) -> None:
    plan = random_plan(TINY, mesh_of(2, 2), 3)
    for usual, late in zip(
        pool.run(process_jobs.accumulated, TINY, plan), pool.run(process_jobs.accumulated, TINY, overlapping(plan)), strict=True
    ):
        assert all(torch.equal(a, b) for a, b in zip(usual, late, strict=True))


def test_nothing_of_a_step_is_left_to_the_garbage_collector(pool: WorkerPool) -> None:
    """Gradients held in a cycle until it runs would be memory that no prediction knows."""
    assert pool.run(process_jobs.growth, TINY, overlapping(random_plan(TINY, mesh_of(2, 2), 1))) == [0] * 4
