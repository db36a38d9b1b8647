"""Compiled pieces: one function for all layers that compute the same, gathered parameters dropped and gathered again outside of it."""

from __future__ import annotations

from dataclasses import replace

import process_jobs
import pytest
import torch
import torch.nn.functional as F
from runtime_cases import GPT2, TINY, Seeded, graph_of, mesh_of, plan_of, random_assignment
from test_program import fully_sharded
from torch import Tensor, fx, nn

from autoplan.errors import AutoplanError
from autoplan.graph.segments import find_segments
from autoplan.placement import Shard
from autoplan.plan.schema import RecomputeLine
from autoplan.rules import call_of, localize, strategies_of
from autoplan.runtime.program.parts import LocalImplementation
from autoplan.runtime.program.pieces import Function
from autoplan.runtime.verify.pool import WorkerPool


@pytest.mark.parametrize(("recomputed", "graphs"), [(0, 3), (1, 4)], ids=["kept", "recomputed"])
def test_layers_are_compiled_once_and_gather_as_in_eager(pool: WorkerPool, recomputed: int, graphs: int) -> None:
    """Compiled are what comes before the layers, the layers, those that recompute, and the head with the loss."""
    build = Seeded(TINY.factory, {**TINY.settings, "n_layers": 3})
    assignment = fully_sharded(graph_of(build))
    segments = find_segments(assignment.graph, {"layers"})[:recomputed]
    plan = plan_of(assignment, build().module, recomputed=segments)
    if recomputed:
        plan = replace(plan, recompute={"layers.*": RecomputeLine(recomputed, 3, "full")})
    for found in pool.run(process_jobs.compiled_pieces, build, plan):
        assert found.losses[1] == pytest.approx(found.losses[0], rel=1e-5)
        assert found.difference < 1e-5  # fp32
        assert found.gathers == (3 + 2 * 3, 3 + 2 * 3)  # embedding, norm and head; each layer twice
        assert (found.graphs, found.breaks) == (graphs, 0)


def test_compiled_layers_repeat_the_collectives_that_eager_ones_repeat(pool: WorkerPool) -> None:
    """Kept are what layers read, not what collectives inside of them give (torch 2.11 keeps that, unless told)."""
    assignment = random_assignment(graph_of(TINY), mesh_of(2, 2), 0)
    segments = find_segments(assignment.graph, {"layers"})
    kept, again = plan_of(assignment, TINY().module), plan_of(assignment, TINY().module, recomputed=segments)
    again = replace(again, recompute={"layers.*": RecomputeLine(2, 2, "full")})
    (eager_kept, compiled_kept), (eager, compiled) = (pool.run(process_jobs.compiled_collectives, TINY, plan)[0] for plan in (kept, again))
    repeated = eager - eager_kept
    assert repeated > 0
    assert compiled - compiled_kept > 0.95 * repeated  # torch.compile leaves out what nobody reads: 3 of 265 collectives, 1 of 86 repeated


@pytest.mark.parametrize("prefetch", [0, 1])
def test_the_whole_program_compiles_as_one_function(pool: WorkerPool, prefetch: int) -> None:
    """Parameters are gathered group by group, before it, and again in backward; also those that blocks would gather ahead."""
    plan = plan_of(fully_sharded(graph_of(TINY)), TINY().module)
    plan = replace(plan, gather={key: replace(line, prefetch=prefetch) for key, line in plan.gather.items()})
    for found in pool.run(process_jobs.compiled_pieces, TINY, plan, True):
        assert found.losses[1] == pytest.approx(found.losses[0], rel=1e-5)
        assert found.difference < 1e-5  # fp32
        assert found.gathers[1] == found.gathers[0]
        assert (found.graphs, found.breaks) == (1, 0)


def test_a_program_that_recomputes_is_not_compiled_whole(pool: WorkerPool) -> None:
    assignment = fully_sharded(graph_of(TINY))
    plan = plan_of(assignment, TINY().module, recomputed=find_segments(assignment.graph, {"layers"})[:1])
    plan = replace(plan, recompute={"layers.*": RecomputeLine(1, 2, "full")})
    with pytest.raises(AutoplanError, match="compiled block by block"):
        pool.run(process_jobs.compiled_pieces, TINY, plan, True)


class Noisy(nn.Module):
    """Every kind of random factory in forward."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(8, 8)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        h = self.inner(x) + 0.1 * torch.randn_like(x) + torch.normal(0.0, 0.1, (x.shape[0], 8))
        h = h * torch.rand(x.shape[0], 1) + torch.randint(0, 3, x.shape).to(x.dtype)
        return F.mse_loss(h[:, torch.randperm(8)], y)


def noisy() -> tuple[nn.Module, tuple[Tensor, Tensor]]:
    return Noisy(), (torch.randn(8, 8), torch.randn(8, 8))


def test_random_tensors_are_drawn_as_in_eager(pool: WorkerPool) -> None:
    build = Seeded(noisy)
    plan = plan_of(random_assignment(graph_of(build), mesh_of(2, 2), 1), build().module)
    for (eager, compiled), difference, breaks in pool.run(process_jobs.compiled_draws, build, plan):
        assert compiled == pytest.approx(eager, rel=1e-6) and len(set(eager)) == 3
        assert difference < 1e-5 and breaks == 0


@pytest.mark.parametrize("recomputed", [0, 1], ids=["kept", "recomputed"])
def test_dropout_draws_the_same_numbers_as_in_eager(pool: WorkerPool, recomputed: int) -> None:
    """Of hidden values, each with a generator of its own, and in attention, which draws from the default generator."""
    assignment = fully_sharded(graph_of(GPT2))
    plan = plan_of(assignment, GPT2().module, recomputed=find_segments(assignment.graph, {"layers"})[:recomputed])
    if recomputed:
        plan = replace(plan, recompute={"layers.*": RecomputeLine(recomputed, 2, "full")})
    found = pool.run(process_jobs.compiled_draws, GPT2, plan)
    for (eager, compiled), difference, breaks in found:
        assert compiled == pytest.approx(eager, rel=1e-6)  # fp32
        assert len(set(eager)) == 3  # steps draw other numbers
        assert difference < 1e-5
        assert breaks == 0


def test_a_module_that_its_user_compiles_draws_the_same_numbers(pool: WorkerPool) -> None:
    """Nobody seeds the default generator before the graph then: the op does, outside of it."""
    for eager, compiled in pool.run(process_jobs.compiled_by_its_user, GPT2, plan_of(fully_sharded(graph_of(GPT2)), GPT2().module)):
        assert compiled == pytest.approx(eager, rel=1e-6)


def test_what_draws_as_different_shards_by_default_is_not_compiled() -> None:
    """One seed of the default generator cannot serve both."""
    call = call_of(graph_of(GPT2), next(node for node in graph_of(GPT2).nodes if node.name == "aten.scaled_dot_product_attention"))
    whole, split = (
        LocalImplementation(localize(call, strategy, mesh_of(2), torch.device("cpu")), 0)
        for cut in (False, True)
        for strategy in [next(s for s in strategies_of(call, mesh_of(2)) if isinstance(s.makes[0][0], Shard) == cut)]
    )
    for drawing, compiles in (((whole, whole), True), ((split, split), True), ((whole, split), False)):
        graph = fx.Graph()
        graph.placeholder("local")
        graph.output(())
        function = Function(fx.GraphModule(nn.Module(), graph), None, drawing)
        function.compile(backend="eager")
        assert function.is_compiled == compiles


def test_functions_of_any_number_are_compiled_each_for_itself() -> None:
    """More than torch compiles of one code object (8)."""
    for factor in range(10):
        graph = fx.Graph()
        graph.placeholder("local")
        graph.output((graph.call_function(torch.mul, (graph.placeholder("x"), factor)),))
        function = Function(fx.GraphModule(nn.Module(), graph), None)
        function.compile(backend="eager", fullgraph=True)
        assert function(None, torch.ones(2))[0].tolist() == [factor, factor]  # type: ignore[arg-type]  # draws nothing
