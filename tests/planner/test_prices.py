"""Strategies that are alike are priced by one of them: the prices are those of each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from planner_cases import Module, gpt2_module, llama_module, request

from autoplan.cost.compute import strategy_seconds
from autoplan.cost.primitives import accumulated_operands, extra_saved_bytes, fused_in, node_transient_bytes, repeats
from autoplan.cost.savings import local_bytes
from autoplan.graph import classes, find_blocks
from autoplan.placement import forward_of
from autoplan.planner.candidates import Candidates, enumerate_candidates
from autoplan.planner.pipeline import capture_for
from autoplan.planner.prices import Prices
from autoplan.planner.request import PlanRequest
from autoplan.planner.terms import terms_of


def priced(build: Callable[[], Module], wanted: PlanRequest) -> tuple[Candidates, Prices]:
    module, args, kwargs = build()
    graph = capture_for(module, args, kwargs, wanted.options)
    candidates = enumerate_candidates(graph, wanted.mesh, classes(graph, find_blocks(graph)))
    return candidates, Prices(graph, wanted.mesh, wanted.hardware, wanted.options)


@pytest.mark.parametrize("build", [llama_module, gpt2_module])
@pytest.mark.parametrize("mesh", ["2x4", "2x2x2"])
@pytest.mark.parametrize("compiled", [False, True])
def test_every_strategy_has_its_own_price(build: Callable[[], Module], mesh: str, compiled: bool) -> None:
    wanted = request(mesh, "h200-sxm")
    wanted = replace(wanted, options=replace(wanted.options, compile=compiled))
    candidates, prices = priced(build, wanted)
    graph = candidates.graph
    for call, strategies, op in zip(candidates.calls, candidates.strategies, terms_of(candidates, prices).ops, strict=True):
        node = graph.nodes[op.members[0]]
        reads, fused = accumulated_operands(graph, node), fused_in(graph, node, wanted.options)
        costs = [strategy_seconds(call, strategy, wanted.mesh, wanted.hardware, reads, fused) for strategy in strategies]
        assert op.seconds.tolist() == [cost.seconds for cost in costs]
        is_repeated = repeats(graph, node, wanted.options)
        assert op.again_s.tolist() == [cost.forward_s + cost.inside_forward_s if is_repeated else 0.0 for cost in costs]
        assert op.transient_bytes.tolist() == [node_transient_bytes(call, strategy, wanted.mesh, fused) for strategy in strategies]
        beside = [extra_saved_bytes(call, strategy, wanted.mesh, compiled=compiled) for strategy in strategies]
        assert op.beside_bytes.tolist() == beside
        for output, (_, made) in enumerate(op.made):
            value = graph.values[node.outputs[output]]
            assert np.array_equal(made, [local_bytes(value, forward_of(s.makes[output]), wanted.mesh) for s in strategies])


def test_axes_that_may_change_places_are_priced_once() -> None:
    candidates, prices = priced(llama_module, request("2x2x2", "h200-sxm"))
    kinds = sum(len(prices.alike(*pair)[0]) for pair in zip(candidates.calls, candidates.strategies, strict=True))
    assert kinds * 4 < sum(map(len, candidates.strategies))
