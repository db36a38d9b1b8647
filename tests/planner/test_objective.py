"""What is minimised is what is predicted: the cost of the plan that is chosen, in seconds, is its predicted step."""

from __future__ import annotations

import sys
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import yaml
from planner_cases import GPT2, LLAMA, MLP, Module, overlapping

from autoplan.assignment.gathers import gather_groups
from autoplan.cost.hardware import Host, load_hardware
from autoplan.cost.predict import Prediction, prediction
from autoplan.graph import Graph
from autoplan.models import gpt2, llama, mlp
from autoplan.placement import parse_mesh
from autoplan.plan.schema import Options
from autoplan.planner.build import Built
from autoplan.planner.family import Outcome
from autoplan.planner.overlap import cheapest_overlapped
from autoplan.planner.pipeline import capture_for
from autoplan.planner.remedies import problem_of
from autoplan.planner.request import PlanRequest

sys.path.append(str(Path(__file__).parents[1] / "zoo"))
from models import sorted_experts

PINS = Path(__file__).parents[2] / "configs" / "pins"
TIME_LIMIT_S = 20.0  # equality holds of whatever is found
WIDE = {"dim": 512, "ffn_dim": 1024, "vocab_size": 1024, "batch": 16, "seq": 256}
MODELS = {
    "llama": lambda: llama.build(**LLAMA),
    "wide": lambda: llama.build(**LLAMA | WIDE),
    "gpt2": lambda: gpt2.build(**GPT2),  # embedding and head are tied, linears have biases
    "mlp": lambda: mlp.build(**MLP),
    "experts": lambda: (*sorted_experts(batch=8), {}),
}
FP32 = Options(precision="fp32")
WAYS = {
    "plain": FP32,
    "master": Options(precision="bf16-master"),
    "compiled": Options(precision="bf16", compile=True),
    "infer": Options(precision="bf16", mode="infer"),
}
GPU = load_hardware("h200-sxm")
MACHINES = {
    "cpu": overlapping().hardware,
    "waits": replace(overlapping().hardware, hides=0.0, digest="waits"),
    "fast-links": overlapping(link=30.0).hardware,
    "gpu": replace(GPU, host=Host(0.0, 0.0), digest="gpu"),  # so that small models are not bound by the host
    "hosted": GPU,
}


@cache
def module(name: str) -> Module:
    return MODELS[name]()


@cache
def graph_of(name: str, way: str) -> Graph:
    return capture_for(*module(name), WAYS[way])


def asked(mesh: str, machine: str, way: str, memory_gib: float | None = None, pins: tuple[dict[str, object], ...] = ()) -> PlanRequest:
    return PlanRequest(parse_mesh(mesh), MACHINES[machine], replace(WAYS[way], memory_gib=memory_gib), pins=pins)


@cache
def solved(
    name: str, mesh: str, machine: str, way: str, memory_gib: float | None = None, layout: str | None = None
) -> tuple[Built, Outcome]:
    pins = () if layout is None else tuple(yaml.safe_load((PINS / name / f"{layout}.yaml").read_text(encoding="utf-8")))
    wanted = asked(mesh, machine, way, memory_gib, pins)
    start = problem_of(graph_of(name, way), wanted)
    found = cheapest_overlapped(start, wanted.limit_bytes, TIME_LIMIT_S)
    assert found is not None
    return start, found


def predicted(found: Outcome) -> Prediction:
    terms = found.built.terms
    prices, assignment = terms.prices, found.built.assignment(found.solution.choice)
    groups = gather_groups(assignment, prices.prefixes, recomputed=found.built.recomputed, prefetch=terms.prefetch)
    return prediction(assignment, groups, prices.hardware, prices.options, prices.segments, found.built.recomputed)


def rounding_s(start: Built) -> float:
    """Half a unit of each term, of two parts twice, and preferences below units: some millionths of a step."""
    return 2 * start.terms.hosted(0.5).rounding * start.problem.unit_s


def check(start: Built, found: Outcome) -> None:
    unit_s, step_s = start.problem.unit_s, predicted(found).step_s
    assert step_s == pytest.approx(found.solution.cost * unit_s, abs=rounding_s(start))
    assert step_s >= found.solution.bound * unit_s - rounding_s(start)


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize("mesh", ["4", "2x2", "2x4"])
@pytest.mark.parametrize("name", MODELS)
def test_the_objective_is_the_predicted_step(name: str, mesh: str, machine: str) -> None:
    start, found = solved(name, mesh, machine, "plain")
    check(start, found)


@pytest.mark.parametrize("way", [way for way in WAYS if way != "plain"])
@pytest.mark.parametrize("machine", ["cpu", "gpu"])
@pytest.mark.parametrize("name", MODELS)
def test_so_it_is_whatever_the_options(name: str, machine: str, way: str) -> None:
    start, found = solved(name, "2x2", machine, way)
    check(start, found)


@pytest.mark.parametrize("share", [0.9, 0.7])
@pytest.mark.parametrize("machine", ["cpu", "gpu"])
@pytest.mark.parametrize("name", ["llama", "gpt2", "mlp"])
def test_so_it_is_where_memory_is_tight(name: str, machine: str, share: float) -> None:
    """Where blocks recompute, what backward does not need is gathered again with them."""
    ample = predicted(solved(name, "2x2", machine, "plain")[1]).memory.peak / 2**30
    start, found = solved(name, "2x2", machine, "plain", share * ample)
    check(start, found)


@pytest.mark.parametrize("layout", ["ddp", "fsdp", "tp-sp", "fsdp-tp"])
@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize("name", ["llama", "gpt2", "mlp"])
def test_no_layout_written_by_hand_is_predicted_to_be_faster(name: str, machine: str, layout: str) -> None:
    start, written = solved(name, "2x2", machine, "plain", None, layout)
    check(start, written)
    best = solved(name, "2x2", machine, "plain")[1]
    assert predicted(best).step_s <= predicted(written).step_s + rounding_s(start)
