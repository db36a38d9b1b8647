"""How many copies recompute: problems say what predictions say, boxes bound what they hold, and the search finds the best number."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from random import Random

import pytest
import torch
from planner_cases import Module, built, planned, request
from torch import Tensor, nn

from autoplan.assignment.gathers import gather_groups
from autoplan.cost.predict import prediction
from autoplan.errors import NoPlanFits, PlanError
from autoplan.planner import shares
from autoplan.planner.build import Built, build_problem
from autoplan.planner.pins import apply_pins
from autoplan.planner.prices import Prices
from autoplan.planner.problem import cost_of, evaluate, is_feasible
from autoplan.planner.recompute import cheapest
from autoplan.planner.smallest import smallest
from autoplan.planner.solve import smallest_memory, solve
from autoplan.planner.starts import fitted

LAYERS = 3
FINE_GIB = 0.01  # a limit that all plans keep, with memory counted in units of 10 bytes


class Block(nn.Module):
    """What a copy reads is a small part of what it keeps."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.up = nn.Linear(dim, 4 * dim)
        self.down = nn.Linear(4 * dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(torch.tanh(self.up(x)))


class Net(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Block(dim) for _ in range(LAYERS))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return x.square().mean()


def module() -> Module:
    """Activations outweigh parameters by far."""
    return Net(16), (torch.randn(2048, 16),), {}


@cache
def start(memory_gib: float = FINE_GIB) -> tuple[Built, Prices]:
    wanted = request("2x2", memory_gib=memory_gib)
    found = built(module(), wanted)
    return found, found.terms.prices


def recomputing(first: int, memory_gib: float = FINE_GIB) -> Built:
    found, prices = start(memory_gib)
    return build_problem(found.terms, int(memory_gib * 2**30), prices.segments[:first])


def random_choices(found: Built, count: int) -> list[tuple[int, ...]]:
    random = Random(count)
    drawn = (tuple(random.randrange(len(node.costs)) for node in found.problem.nodes) for _ in range(50 * count))
    return [choice for choice in drawn if evaluate(found.problem, choice).cost is not None][:count]


def predicted(found: Built, choice: tuple[int, ...]) -> tuple[float, float]:
    """Seconds without the host's, and peak bytes."""
    _, prices = start()
    assignment = found.assignment(choice)
    groups = gather_groups(assignment, prices.prefixes, recomputed=found.recomputed)
    step = prediction(assignment, groups, prices.hardware, prices.options, prices.segments, found.recomputed)
    return step.step_s - step.host_s, step.memory.peak


@pytest.mark.parametrize("first", range(1, LAYERS + 1))
def test_the_problem_says_what_the_prediction_says(first: int) -> None:
    """What recomputing adds in time, to the rounding of the matrices, and the peak of memory, where every term rounds up to 1 unit."""
    none, some = recomputing(0), recomputing(first)
    for choice in random_choices(none, 5):
        terms, after = fitted(none.terms, choice), evaluate(some.problem, choice)
        costs = [cost_of(build_problem(terms, int(FINE_GIB * 2**30), found.recomputed).problem, choice) for found in (none, some)]
        added = (costs[1] - costs[0]) * some.problem.unit_s
        wanted = predicted(some, choice)[0] - predicted(none, choice)[0]
        assert added == pytest.approx(wanted, rel=1e-3)
        peak = max(after.memory) * some.problem.unit_bytes
        assert peak == pytest.approx(predicted(some, choice)[1], rel=0.02)


def test_recomputing_costs_time_and_saves_memory() -> None:
    choice = random_choices(recomputing(0), 1)[0]
    results = [evaluate(recomputing(first).problem, choice) for first in range(LAYERS + 1)]
    costs, begins = [r.cost for r in results], [r.memory[0] for r in results]
    assert costs == sorted(costs) and len(set(costs)) == LAYERS + 1  # type: ignore[type-var]
    assert begins == sorted(begins, reverse=True) and begins[-1] < begins[0]


def test_a_box_bounds_every_number_in_it() -> None:
    found, prices = start()
    limit = int(FINE_GIB * 2**30)
    for low, high in ((0, LAYERS), (1, LAYERS), (1, 2)):
        box = build_problem(found.terms, limit, prices.segments[:low], prices.segments[:high]).problem
        for choice in random_choices(found, 5):
            bound = evaluate(box, choice)
            for first in range(low, high + 1):
                exact = evaluate(recomputing(first).problem, choice)
                assert bound.cost is not None and exact.cost is not None and bound.cost <= exact.cost
                assert all(b <= e for b, e in zip(bound.memory, exact.memory[: len(bound.memory)], strict=True))


@cache
def tight_gib(share: float) -> float:
    """A limit between the least memory with recomputing (0) and the least without (1)."""
    found, prices = start()
    least, without = smallest(found, int(FINE_GIB * 2**30), 60.0), smallest_memory(found.problem)
    assert least is not None and least.solution.status == "optimal" and without is not None and without.status == "optimal"
    assert least.built.recomputed and least.solution.cost < without.bound
    return (1 + least.solution.cost + share * (without.cost - least.solution.cost)) * found.problem.unit_bytes / 2**30


@cache
def cheapest_of_each_number(share: float) -> int:
    """The least cost, from every number of copies solved by itself."""
    found, prices = start(tight_gib(share))
    limit = int(tight_gib(share) * 2**30)
    each = (solve(build_problem(found.terms, limit, prices.segments[:first]).problem) for first in range(LAYERS + 1))
    return min(solution.cost for solution in each if solution is not None)


@pytest.mark.parametrize("share", [0.5, 1.5])
@pytest.mark.parametrize("bounded", ["by tables", "by messages"])
def test_the_search_finds_the_best_number(share: float, bounded: str, monkeypatch: pytest.MonkeyPatch) -> None:
    found, _ = start(tight_gib(share))
    limit = int(tight_gib(share) * 2**30)
    with monkeypatch.context() as patch:
        if bounded == "by messages":  # as problems on meshes of three axes are
            patch.setattr(shares, "LARGEST_AT_FIRST", 0)
            patch.setattr(shares, "LARGEST_BY_SHARES", 0)
        outcome = cheapest([found], limit, 120.0)
    assert outcome is not None and outcome.solution.status == "optimal"
    assert abs(outcome.solution.cost - cheapest_of_each_number(share)) < found.problem.tie
    assert is_feasible(outcome.built.problem, outcome.solution.choice)


def test_a_tight_plan_recomputes_and_says_so() -> None:
    plan = planned(module(), request("2x2", memory_gib=tight_gib(0.5)))
    (line,) = plan.recompute.values()
    assert list(plan.recompute) == ["layers.*"] and line.of == LAYERS and line.blocks > 0
    assert plan.predicted.recompute_ms > 0 and plan.predicted.memory_gib.peak <= tight_gib(0.5)


def test_pins_decide_how_many_copies_recompute() -> None:
    two = planned(module(), request("2x2", pins=({"recompute": "layers.*", "blocks": 2},)))
    assert [(line.blocks, line.of) for line in two.recompute.values()] == [(2, LAYERS)]
    with pytest.raises(NoPlanFits):
        planned(module(), request("2x2", memory_gib=tight_gib(0.5), pins=({"recompute": "layers.*", "blocks": 0},)))


def test_wrong_pins_name_what_there_is() -> None:
    found, _ = start()
    with pytest.raises(PlanError, match=r"the model has layers\.\*"):
        apply_pins(found.candidates, [{"recompute": "blocks.*", "blocks": 1}])
    with pytest.raises(PlanError, match=f"from 0 to {LAYERS}"):
        apply_pins(found.candidates, [{"recompute": "layers.*", "blocks": LAYERS + 1}])


def test_inference_has_nothing_to_recompute() -> None:
    wanted = request("2x2")
    options = replace(wanted.options, mode="infer")
    prices = replace(start()[1], options=options)
    assert prices.segments == ()
