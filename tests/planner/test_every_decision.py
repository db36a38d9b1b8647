"""The optimum is never worse: against random feasible plans, recomputing ones too, and against the layouts that people write by hand."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from random import Random

import pytest
import yaml
from planner_cases import GPT2, LLAMA, Module, overlapping

from autoplan.assignment.gathers import gather_groups
from autoplan.cost.predict import Prediction, prediction
from autoplan.graph import Graph
from autoplan.models import gpt2, llama, mlp
from autoplan.planner.build import Built, build_problem
from autoplan.planner.family import Outcome
from autoplan.planner.overlap import cheapest_overlapped, true_cost
from autoplan.planner.pipeline import capture_for
from autoplan.planner.problem import cost_of, evaluate, is_feasible
from autoplan.planner.remedies import problem_of

sys.path.append(str(Path(__file__).parents[1] / "zoo"))
from models import sorted_experts

PINS = Path(__file__).parents[2] / "configs" / "pins"
TIME_LIMIT_S = 600.0  # so that a busy machine proves it too
RANDOM_PLANS = 1000
FINE_GIB = 0.01  # counts memory in units of 10 bytes
SAMPLE = 5
MODELS = ("llama", "gpt2", "mlp", "experts")
LIMITS = (("2x2", 1.0), ("2x2", 0.9), ("2x2", 0.75), ("2x4", 1.0), ("4x2", 0.95))
"""Meshes, and limits as a share of what the plan takes that has all the memory it wants."""
QUICK = {("llama", "2x2", 1.0), ("experts", "2x2", 0.9), *(("mlp", *limit) for limit in LIMITS)}
"""Those that every run of the tests proves; the others are proved with the zoo."""


@dataclass(frozen=True)
class Case:
    """A model on a mesh within a limit: the problem where nothing is recomputed, and the optimum over all numbers of recomputed copies."""

    start: Built
    limit_bytes: int
    best: Outcome

    def built(self, recomputed: int, prefetch: int = 0) -> Built:
        """The problem in which the first copies of every block recompute, and parameters travel so far ahead."""
        terms = self.start.terms.ahead({}) if prefetch else self.start.terms
        return build_problem(terms, self.limit_bytes, self.start.terms.prices.segments[:recomputed])

    def cost(self, built: Built, choice: tuple[int, ...]) -> int:
        """What a choice costs, with starts of collectives and all that its blocks wait for."""
        return true_cost(self.start.terms, self.limit_bytes, built.recomputed, choice, prefetch=built.terms.prefetch)

    def predicted(self, built: Built, choice: tuple[int, ...]) -> Prediction:
        """What the cost model says of a choice, without the problem."""
        prices, assignment = built.terms.prices, built.assignment(choice)
        groups = gather_groups(assignment, prices.prefixes, recomputed=built.recomputed, prefetch=built.terms.prefetch)
        return prediction(assignment, groups, prices.hardware, prices.options, prices.segments, built.recomputed)


@cache
def module(name: str) -> Module:
    two = {"n_layers": 2}
    if name == "experts":
        return (*sorted_experts(batch=8), {})
    return {"llama": lambda: llama.build(**LLAMA | two), "gpt2": lambda: gpt2.build(**GPT2 | two), "mlp": mlp.build}[name]()


@cache
def graph_of(name: str) -> Graph:
    return capture_for(*module(name), overlapping().options)


@cache
def case(name: str, mesh: str, share: float) -> Case:
    wanted = overlapping(mesh, memory_gib=None if share == 1.0 else share * taken_gib(name, mesh))
    start = problem_of(graph_of(name), wanted)
    best = cheapest_overlapped(start, wanted.limit_bytes, TIME_LIMIT_S)
    assert best is not None and best.solution.status == "optimal"
    return Case(start, wanted.limit_bytes, best)


def taken_gib(name: str, mesh: str) -> float:
    """What the plan takes that has all the memory it wants."""
    ample = case(name, mesh, 1.0)
    return ample.predicted(ample.best.built, ample.best.solution.choice).memory.peak / 2**30


CASES = [
    pytest.param(name, mesh, share, id=f"{name}-{mesh}-{share:g}", marks=() if (name, mesh, share) in QUICK else pytest.mark.zoo)
    for name in MODELS
    for mesh, share in LIMITS
]
WRITTEN = [
    pytest.param(*param.values, layout, id=f"{param.id}-{layout}", marks=param.marks)
    for param in CASES
    for layout in ("ddp", "fsdp", "tp-sp", "fsdp-tp")
    if (PINS / str(param.values[0]) / f"{layout}.yaml").is_file()
]


def random_plans(case: Case, count: int) -> Iterator[tuple[Built, tuple[int, ...]]]:
    """Feasible plans with any number of recomputed copies, gathered ahead or not: drawn at random, and the optimum with from one to all
    decisions redrawn."""
    random, best = Random(count), case.best.solution.choice
    problems = [case.built(first, prefetch) for first in range(len(case.start.terms.prices.segments) + 1) for prefetch in (0, 1)]
    sizes = [len(node.costs) for node in case.start.problem.nodes]
    drawn = 0
    for attempt in range(40 * count):
        if drawn == count:
            return
        redrawn = set(random.sample(range(len(sizes)), min(len(sizes), 1 << random.randrange(8)))) if attempt % 4 else range(len(sizes))
        choice = tuple(random.randrange(size) if u in redrawn else best[u] for u, size in enumerate(sizes))
        built = problems[attempt % len(problems)]
        if choice != best and is_feasible(built.problem, choice):
            drawn += 1
            yield built, choice


@pytest.mark.parametrize(("name", "mesh", "share"), CASES)
def test_no_random_plan_is_cheaper_than_the_optimum(name: str, mesh: str, share: float) -> None:
    found = case(name, mesh, share)
    plans = list(random_plans(found, RANDOM_PLANS))
    assert len(plans) == RANDOM_PLANS
    assert len({len(built.recomputed) for built, _ in plans}) > 1 or not found.start.terms.prices.segments
    # what differs by less than `tie` differs in preferences among equals only
    least = found.best.solution.cost - found.start.problem.tie
    # what blocks wait for only adds: it is asked for, slowly, where a plan would be cheaper without
    assert all(cost_of(built.problem, choice) > least or found.cost(built, choice) > least for built, choice in plans)


@pytest.mark.parametrize(("name", "mesh", "share"), CASES)
def test_plans_that_the_problem_lets_in_fit_by_the_prediction_too(name: str, mesh: str, share: float) -> None:
    found = case(name, mesh, share)
    plans = [(found.best.built, found.best.solution.choice), *random_plans(found, SAMPLE)]
    assert max(found.predicted(built, choice).memory.peak for built, choice in plans) <= found.limit_bytes


@pytest.mark.parametrize(("name", "mesh", "share"), CASES)
def test_no_random_plan_is_faster_by_the_prediction(name: str, mesh: str, share: float) -> None:
    found = case(name, mesh, share)
    best = found.predicted(found.best.built, found.best.solution.choice)
    for built, choice in random_plans(found, SAMPLE):
        other = found.predicted(built, choice)
        assert best.step_s <= other.step_s * (1 + 1e-5)  # rounding: a ten-millionth of a step for each of some hundred terms


@pytest.mark.parametrize(("name", "mesh", "share", "layout"), WRITTEN)
def test_no_layout_written_by_hand_is_cheaper_than_the_optimum(name: str, mesh: str, share: float, layout: str) -> None:
    found = case(name, mesh, share)
    pins = tuple(yaml.safe_load((PINS / name / f"{layout}.yaml").read_text(encoding="utf-8")))
    wanted = overlapping(mesh, memory_gib=found.limit_bytes / 2**30, pins=pins)
    written = cheapest_overlapped(problem_of(graph_of(name), wanted), wanted.limit_bytes, TIME_LIMIT_S)
    if written is None:
        assert share < 1.0  # a layout that does not fit is no plan
        return
    choice = found.start.choice(written.built.assignment(written.solution.choice))
    free = found.built(len(written.built.recomputed), written.built.terms.prefetch)
    assert is_feasible(free.problem, choice)
    assert found.cost(free, choice) > found.best.solution.cost - free.problem.tie


@pytest.mark.parametrize("prefetch", [0, 1])
def test_a_problem_never_takes_less_memory_than_the_prediction(prefetch: int) -> None:
    """Data parallel: each block's gradients are there before they are reduced. Without them a plan may exceed the limit by a block's."""
    found = case("llama", "2x2", 1.0)
    pins = tuple(yaml.safe_load((PINS / "llama" / "ddp.yaml").read_text(encoding="utf-8")))
    wanted = overlapping("2x2", pins=pins)
    written = cheapest_overlapped(problem_of(graph_of("llama"), wanted), wanted.limit_bytes, TIME_LIMIT_S)
    assert written is not None
    fine = problem_of(graph_of("llama"), overlapping("2x2", memory_gib=FINE_GIB))
    exact = build_problem(fine.terms.ahead({}) if prefetch else fine.terms, int(FINE_GIB * 2**30))
    choice = exact.choice(written.built.assignment(written.solution.choice))
    predicted = found.predicted(exact, choice).memory.peak
    assert predicted <= max(evaluate(exact.problem, choice).memory) * exact.problem.unit_bytes
