"""Architectures as people have them: planned in little memory on free links, each plan run and compared with one device."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
import zoo

from autoplan.graph import Graph, capture
from autoplan.load import Target, build_meta, load_target
from autoplan.placement import Placements, Shard
from autoplan.plan import ParamLine, match_params
from autoplan.runtime.verify.pool import WorkerPool
from autoplan.runtime.verify.results import Verification

pytestmark = pytest.mark.usefixtures("one_thread")
RANDOM_PLANS = 5
MATMULS = {"aten.linear", "aten.addmm", "aten.mm", "aten.matmul", "aten.bmm"}
FUSED = ("c_attn", "qkv_proj", "query_key_value", "gate_up_proj")
OWN = [f"{Path(__file__).with_name('models.py')}:{name}" for name in ("sorted_experts", "dispatched_experts", "dense_experts")]


def same_as_one_device(planned: zoo.Planned, pool: WorkerPool) -> Verification:
    found = planned.verified(pool, RANDOM_PLANS)
    assert found.ok, found
    assert found.random_ok == RANDOM_PLANS
    return found


@pytest.mark.zoo
@pytest.mark.parametrize("mesh", ["4", "2x2", "2x1x2"])
@pytest.mark.parametrize("name", zoo.CONFIGS)
def test_an_architecture_is_split_without_fallbacks_and_computes_the_same(name: str, mesh: str, pool: WorkerPool, tmp_path: Path) -> None:
    planned = zoo.tight_plan(zoo.config_target(tmp_path, name), mesh)
    assert not planned.plan.fallbacks
    assert same_as_one_device(planned, pool).split_flops_fraction >= 0.9


@pytest.mark.zoo
@pytest.mark.parametrize("mesh", ["4", "2x2"])
@pytest.mark.parametrize("target", OWN, ids=lambda target: target.rsplit(":", 1)[1])
def test_mixtures_of_experts_that_people_write(target: str, mesh: str, pool: WorkerPool) -> None:
    planned = zoo.tight_plan(load_target(target), mesh)
    assert not planned.plan.fallbacks
    assert same_as_one_device(planned, pool).split_flops_fraction >= 0.9


@pytest.mark.zoo
@pytest.mark.parametrize("name", zoo.DENSE_TRANSFORMERS)
def test_without_gathering_every_matmul_weight_is_used_cut(name: str, pool: WorkerPool, tmp_path: Path) -> None:
    target = zoo.config_target(tmp_path, name)
    planned = zoo.tight_plan(target, "1x4", zoo.NEVER_GATHER)
    graph = graph_of(target)
    lines = match_params(planned.plan, {p.fqn: graph.values[p.value].shape for p in graph.parameters})
    columns = 1 if name == "gpt2" else 0  # GPT-2's weights are the other way round
    by_rows = []
    for fqn in matmul_weights(graph):
        for use in uses_of(planned.plan.params[lines[fqn]]):
            assert isinstance(use[1], Shard), f"{fqn} is used whole"
            if any(part in fqn for part in FUSED) and use[1].dim != columns:
                by_rows.append(fqn)
    same_as_one_device(planned, pool)
    if by_rows:  # on free links as good, and of Phi-3 a microsecond better; that it can be cut as tensor parallelism does is what matters
        pins = [{"params": fqn, "use": ["R", f"S({columns})"]} for fqn in by_rows]
        by_columns = zoo.tight_plan(target, "1x4", zoo.NEVER_GATHER, *pins)
        assert by_columns.plan.predicted.step_ms <= 1.001 * planned.plan.predicted.step_ms
        same_as_one_device(by_columns, pool)


def test_experts_on_ranks_of_their_own(pool: WorkerPool) -> None:
    pins = [{"params": f"layers.*.{name}", "use": ["S(0)"]} for name in ("w1", "w2", "w3")]
    planned = zoo.tight_plan(load_target(OWN[0]), "4", *pins)
    assert planned.plan.ops["layers.*/routed_experts"].row == "S(0) S(0) S(0) S(0) S(0) S(0) -> S(0) on x"
    assert same_as_one_device(planned, pool).planned["all-to-all x"] == 16


def uses_of(line: ParamLine) -> list[Placements]:
    """In which placements a parameter is used: one, or one for each reader of a tied weight."""
    return list(line.use.values()) if isinstance(line.use, Mapping) else [line.use]


def graph_of(target: Target) -> Graph:
    model = build_meta(target)
    return capture(model.module, model.args, dict(model.kwargs), mode="train")


def matmul_weights(graph: Graph) -> list[str]:
    """Parameters of two dims that a matrix product reads, directly or by its transpose."""
    found = []
    for parameter in graph.parameters:
        readers = [node for node, _ in graph.consumers[parameter.value]]
        views = [reader for node in readers if node.name in ("aten.t", "aten.transpose") for reader, _ in graph.consumers[node.outputs[0]]]
        if len(graph.values[parameter.value].shape) == 2 and any(node.name in MATMULS for node in (*readers, *views)):
            found.append(parameter.fqn)
    assert found
    return found
