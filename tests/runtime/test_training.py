"""Training as people do it, on the ranks of a plan against one device: clipping, micro batches, a schedule, evaluation between steps."""

from __future__ import annotations

from collections import deque
from dataclasses import replace
from functools import cache

import pytest
import torch
import training_jobs
from runtime_cases import GPT2, TINY, Seeded, graph_of, mesh_of, odds, placements, plan_of, random_assignment, random_plan
from training_jobs import OPTIMIZERS, STEPS, Trace

import autoplan
from autoplan.placement import fits, format_placements
from autoplan.plan.schema import Options, Plan
from autoplan.runtime.inputs import to_torch
from autoplan.runtime.verify.pool import WorkerPool

ONE_LAYER = Seeded(TINY.factory, {**TINY.settings, "n_layers": 1})
STATISTICS = Seeded(odds, {"p": 0.0})  # batch statistics, a frozen and an unused parameter


@cache
def planned(build: Seeded, precision: str = "fp32") -> Plan:
    """The planner's choice where collectives cost nothing: everything is split."""
    model = build()
    return autoplan.make_plan(model.module, model.args, mesh="2x2", hardware="test-free-links", options=Options(precision=precision))


def assert_same(found: Trace, one: Trace, *, tolerance: float, of_gradients: float) -> None:
    """Losses and norms within `tolerance` relative, gradients and parameters within `of_gradients` of their largest element."""
    assert found.losses == pytest.approx(one.losses, rel=tolerance)
    assert found.evaluations == pytest.approx(one.evaluations, rel=tolerance)
    assert found.norms == pytest.approx(one.norms, rel=of_gradients)
    for step, (gradients, expected) in enumerate(zip(found.gradients, one.gradients, strict=True)):
        assert gradients.keys() == expected.keys()
        for name in expected:
            assert distance(gradients[name], expected[name]) < of_gradients, (step, name)
    for name, expected_value in one.parameters.items():
        assert distance(found.parameters[name], expected_value) < of_gradients, name


def distance(found: torch.Tensor, expected: torch.Tensor) -> float:
    return ((found - expected).abs().max() / expected.abs().max().clamp(min=1e-12)).item()


@pytest.mark.parametrize(
    ("optimizer", "backend"), [*((name, None) for name in OPTIMIZERS), ("adamw-fused", "aot_eager")], ids=[*OPTIMIZERS, "compiled"]
)
def test_ten_steps_are_those_of_one_device(pool: WorkerPool, optimizer: str, backend: str | None) -> None:
    """fp32 sums in another order differ by some 1e-6 of the largest; AdamW divides by small second moments (measured: 1.3e-5)."""
    plan = planned(ONE_LAYER)
    assert all("S(" in format_placements(line.store) for line in plan.params.values())
    one = training_jobs.on_one_device(ONE_LAYER, optimizer)
    assert min(one.norms) > training_jobs.MAX_NORM and len(one.norms) == STEPS  # every step is clipped
    assert one.losses[-1] < 0.95 * one.losses[0]
    found = pool.run(training_jobs.on_ranks, ONE_LAYER, plan, optimizer, backend)
    assert_same(found[0], one, tolerance=1e-5, of_gradients=1e-4)
    assert all(trace.losses == found[0].losses for trace in found)


def test_batch_statistics_and_unused_parameters_train_and_evaluate_as_on_one_device(pool: WorkerPool) -> None:
    """Evaluation reads the statistics that the step before has written."""
    one = training_jobs.on_one_device(STATISTICS, "sgd-momentum")
    found = pool.run(training_jobs.on_ranks, STATISTICS, random_plan(STATISTICS, mesh_of(2, 2), 3), "sgd-momentum")
    assert_same(found[0], one, tolerance=1e-4, of_gradients=1e-3)
    assert one.evaluations[0] != pytest.approx(one.losses[0], rel=1e-2)


def test_masters_stay_fp32_over_ten_steps(pool: WorkerPool) -> None:
    """Against one device with masters: products of bf16 (8 bits) are rounded once more where a sum is split, 2^-8 of a value.

    Gradients of this depth are sums of some ten such roundings; losses average them over 64 tokens.
    """
    one = training_jobs.on_one_device_from_masters(ONE_LAYER, "sgd-momentum", torch.bfloat16)
    found = pool.run(training_jobs.on_ranks, ONE_LAYER, planned(ONE_LAYER, "bf16-master"), "sgd-momentum")[0]
    assert_same(found, one, tolerance=2**-8, of_gradients=10 * 2**-8)
    assert found.dtypes == {torch.float32}
    assert {gradient.dtype for gradients in found.gradients for gradient in gradients.values()} == {torch.float32}
    exact = training_jobs.on_one_device(ONE_LAYER, "sgd-momentum")
    assert any(a != b for a, b in zip(found.losses, exact.losses, strict=True))  # it did compute in bf16


def grouped() -> Plan:
    """A GPT-2 whose parameters lie in every way: whole, cut on either axis, in groups, and both."""
    mesh = mesh_of(2, 2)
    states = deque(map(placements, ("S(0,3) R", "S(0) S(1,3)", "R S(1,3)", "R S(0,3)", "R R", "S(0) S(0)", "S(1) R", "R S(0)")))
    assignment = random_assignment(graph_of(GPT2), mesh, 3)
    sources = dict(assignment.sources)
    for parameter in assignment.graph.parameters:
        shape = assignment.graph.values[parameter.value].shape
        sources[parameter.value] = next(state for state in states if fits(shape, state, mesh))
        states.rotate(1)
    return plan_of(replace(assignment, sources=sources), GPT2().module)


@pytest.mark.parametrize("norm_type", [2.0, float("inf")])
@pytest.mark.parametrize("foreach", [True, False], ids=["foreach", "each"])
def test_torch_clips_parameters_of_all_placements_by_the_norm_of_one_device(pool: WorkerPool, norm_type: float, foreach: bool) -> None:
    """With one small all-reduce for each axis of the mesh. fp32 sums in another order: 1e-6 each."""
    for clipped in pool.run(training_jobs.clip, GPT2, grouped(), norm_type, foreach):
        assert clipped.norm == pytest.approx(clipped.before, rel=1e-5)
        assert clipped.after == pytest.approx(clipped.before / 2, rel=1e-5)
        assert clipped.all_reduces <= 2
        assert len(clipped.placements) >= 6 and any("_StridedShard" in each for each in clipped.placements)


def test_an_inference_plan_returns_outputs_where_the_plan_puts_them(pool: WorkerPool) -> None:
    build = Seeded(two_outputs)
    plan = random_plan(build, mesh_of(2, 2), 2, mode="infer")
    model = build()
    expected = model.module(*model.args)
    written = [tuple(map(str, to_torch(line.place))) for line in plan.outputs.values()]
    assert all("S(" in "".join(place) for place in written)
    for places, whole, asks in pool.run(training_jobs.inferred, build, plan):
        assert places == written and not asks
        for found, value in zip(whole, expected.values(), strict=True):
            torch.testing.assert_close(found, value, rtol=1e-4, atol=1e-5)


class TwoOutputs(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = torch.nn.Linear(8, 16), torch.nn.Linear(16, 4)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        hidden = torch.nn.functional.gelu(self.first(x))
        return {"hidden": hidden, "scores": self.second(hidden)}


def two_outputs() -> tuple[torch.nn.Module, tuple[torch.Tensor, ...]]:
    return TwoOutputs(), (torch.randn(12, 8),)
