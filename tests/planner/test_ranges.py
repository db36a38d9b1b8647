"""Ranges of recomputed copies: amounts change evenly in them, so what is proved at both ends holds in between."""

from __future__ import annotations

from functools import cache
from random import Random
from typing import Any

import numpy as np
import pytest
from planner_cases import LLAMA, MLP, Module, built, request

from autoplan.models import gpt2, llama, mlp
from autoplan.planner import shares
from autoplan.planner.build import Built, build_problem
from autoplan.planner.numbers import Box, Copies
from autoplan.planner.problem import Problem, evaluate
from autoplan.planner.recompute import cheapest
from autoplan.planner.shares import SharedBound
from autoplan.planner.smallest import smallest
from autoplan.planner.solve import smallest_memory, solve

LAYERS = 7
GPT2: dict[str, Any] = {"dim": 64, "n_layers": LAYERS, "n_heads": 4, "vocab_size": 128, "max_seq": 64, "batch": 4, "seq": 32}
FINE_GIB = 1.0  # so little that a unit of memory is 1024 bytes


def module(name: str) -> Module:
    if name == "mlp":
        return mlp.build(**MLP | {"n_layers": LAYERS})
    return llama.build(**LLAMA | {"n_layers": LAYERS}) if name == "llama" else gpt2.build(**GPT2)


@cache
def start(name: str, mesh: str, memory_gib: float = FINE_GIB) -> Built:
    return built(module(name), request(mesh, memory_gib=memory_gib))


def problem(found: Built, first: int, *, down: bool = False) -> Problem:
    return build_problem(found.terms, int(FINE_GIB * 2**30), found.terms.prices.segments[:first], down=down).problem


def ranges(found: Built) -> list[Box]:
    copies = Copies(found.terms)
    return [box for box in copies.pieces(Box((0,), (LAYERS,))) if not box.is_one]


def test_copies_of_one_kind_make_a_range() -> None:
    assert [(box.least, box.most) for box in ranges(start("llama", "2x2"))] == [((2,), (LAYERS - 1,))]
    assert [(box.least, box.most) for box in ranges(start("gpt2", "2x2"))] == [((2,), (LAYERS - 1,))]
    assert not ranges(start("mlp", "2x2"))  # its activations between the layers are no copies of each other


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_no_number_between_costs_or_takes_less_than_the_ends_say(name: str) -> None:
    found = start(name, "2x2")
    (box,) = ranges(found)
    low, high = box.least[0], box.most[0]
    ends = [problem(found, n, down=True) for n in (low, high)]
    random = Random(0)
    choices = [tuple(random.randrange(len(node.costs)) for node in ends[0].nodes) for _ in range(400)]
    choices = [choice for choice in choices if evaluate(ends[0], choice).cost is not None][:20]
    assert len(choices) == 20
    for number in range(low, high + 1):
        exact, share = problem(found, number), (number - low) / (high - low)
        for choice in choices:
            (a, b), here = (evaluate(end, choice) for end in ends), evaluate(exact, choice)
            assert a.cost is not None and b.cost is not None and here.cost is not None
            assert here.cost + found.terms.rounding >= (1 - share) * a.cost + share * b.cost
            between = (1 - share) * np.array(a.memory) + share * np.array(b.memory)
            # peaks are the largest of sums that change evenly, so they may be less in between; they are the same at both ends here
            assert (np.array(here.memory) + 1e-6 >= between).all()
            # and no looser than the roundings: one unit for each term
            assert (np.array(here.memory) <= between + 2 * (len(exact.nodes) + len(exact.values))).all()
            assert here.cost <= (1 - share) * a.cost + share * b.cost + 4 * found.terms.rounding


def test_the_bound_of_a_range_holds_for_each_number_in_it(monkeypatch: pytest.MonkeyPatch) -> None:
    found = start("llama", "2", _tight_gib("llama", "2"))
    limit = found.problem.limits[0] * found.problem.unit_bytes
    (box,) = ranges(found)
    segments = found.terms.prices.segments
    ends = [build_problem(found.terms, limit, segments[:n], down=True).problem for n in (box.least[0], box.most[0])]
    by_tables = SharedBound(ends, None, meet=lambda choice: None).below
    with monkeypatch.context() as patch:  # as problems on meshes of three axes are bounded
        patch.setattr(shares, "LARGEST_AT_FIRST", 0)
        patch.setattr(shares, "LARGEST_BY_SHARES", 0)
        by_messages = SharedBound(ends, None, meet=lambda choice: None).below
    for number in range(box.least[0], box.most[0] + 1):
        best = solve(build_problem(found.terms, limit, segments[:number]).problem, 60.0)
        if best is not None:
            for below in (by_tables, by_messages):
                assert below.value <= best.cost + found.terms.rounding
                assert all(bounds[s] <= best.cost + found.terms.rounding for bounds, s in zip(below.conditional, best.choice, strict=True))


@pytest.mark.zoo  # a minute and a half: eight problems of tight memory
def test_the_search_finds_the_best_number_of_many() -> None:
    found = start("llama", "2", _tight_gib("llama", "2"))
    limit = found.problem.limits[0] * found.problem.unit_bytes
    outcome = cheapest([found], limit, 120.0)
    assert outcome is not None and outcome.solution.status == "optimal"
    segments = found.terms.prices.segments
    each = [solve(build_problem(found.terms, limit, segments[:n]).problem, 60.0) for n in range(LAYERS + 1)]
    assert abs(outcome.solution.cost - min(solution.cost for solution in each if solution is not None)) < found.problem.tie
    assert 2 < len(outcome.built.recomputed) < LAYERS  # in the range, not at its end


@cache
def _tight_gib(name: str, mesh: str) -> float:
    """Half way between the least memory with recomputing and the least without."""
    found = start(name, mesh)
    least, without = smallest(found, int(FINE_GIB * 2**30), 60.0), smallest_memory(found.problem)
    assert least is not None and without is not None and least.solution.cost < without.cost
    return (least.solution.cost + 0.5 * (without.cost - least.solution.cost)) * found.problem.unit_bytes / 2**30
