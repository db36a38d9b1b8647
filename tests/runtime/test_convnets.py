"""Convolutional models: every op has a rule, and random decisions give what one device gives."""

from __future__ import annotations

import convnets
import pytest
import torch
from runtime_cases import Seeded, graph_of, mesh_of, random_assignment

from autoplan.assignment.gathers import gather_groups
from autoplan.graph import Graph
from autoplan.rules import call_of, rule_of, strategies_of
from autoplan.runtime.verify.verify import verify_assignment

MODELS = {"unet": Seeded(convnets.unet), "depthwise": Seeded(convnets.depthwise)}


@pytest.fixture(scope="module", params=MODELS)
def model(request: pytest.FixtureRequest) -> tuple[Seeded, Graph]:
    build = MODELS[request.param]
    return build, graph_of(build, torch.float64)


def test_every_op_has_a_rule_that_splits_it(model: tuple[Seeded, Graph]) -> None:
    _, graph = model
    assert not [node.address for node in graph.nodes if rule_of(node.op) is None]
    for node in graph.nodes:
        splits = any(not strategy.rows[0].is_replicated for strategy in strategies_of(call_of(graph, node), mesh_of(2)))
        assert splits or graph.values[node.outputs[0]].shape == (), node.address  # counters have nothing to split


@pytest.mark.parametrize("shape", [(4,), (2, 2), (2, 1, 2)])
def test_random_decisions_give_what_one_device_gives(model: tuple[Seeded, Graph], shape: tuple[int, ...]) -> None:
    build, graph = model
    for seed in range(2):
        assignment = random_assignment(graph, mesh_of(*shape), seed)
        found = verify_assignment(build, assignment, gather_groups(assignment, {"blocks"}), torch.float64)
        # a bias whose channels are then normalised has a gradient of 0 but for rounding, measured against the floor
        assert found.ok and found.grad_rel_err < 1e-9, found.to_json()
