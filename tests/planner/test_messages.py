"""Messages that a bound ended with, handed on to a similar problem's: it begins where that one ended, and stays a bound."""

from __future__ import annotations

from random import Random

import numpy as np
from planner_cases import LLAMA, built, request

from autoplan.models import llama
from autoplan.planner.build import build_problem
from autoplan.planner.messages import Messages
from autoplan.planner.pairwise import Modeller, Place
from autoplan.planner.problem import Problem, evaluate, restricted
from autoplan.planner.solver.core import glance
from autoplan.planner.solver.passing import Passing

FOUND = built(llama.build(**LLAMA | {"n_layers": 3}), request("2x2", memory_gib=1.0))
SEGMENTS = FOUND.terms.prices.segments


def engine_of(problem: Problem, kept: list[np.ndarray] | None = None) -> tuple[Passing, list[Place]]:
    modeller = Modeller(problem if kept is None else restricted(problem, kept))
    model = modeller.model()
    places = list(modeller.places)
    if kept is not None:
        names = [Place(u, len(node.costs), numbers) for u, (node, numbers) in enumerate(zip(problem.nodes, kept, strict=True))]
        places[: len(kept)] = names
    return Passing(model, MAGNITUDE), places


MAGNITUDE = glance(Modeller(FOUND.problem).model())


def settled() -> tuple[Passing, Messages]:
    engine, places = engine_of(FOUND.problem)
    engine.improve(50)
    return engine, Messages.of(engine, places)


def test_the_same_problem_begins_where_it_ended() -> None:
    before, messages = settled()
    engine, places = engine_of(FOUND.problem)
    assert engine.bound < before.bound
    messages.hand_on(engine, places)
    assert engine.bound >= before.bound


def test_a_problem_with_more_values_and_fewer_strategies_begins_higher_and_stays_a_bound() -> None:
    """One in which copies recompute: values are read once more, by nodes for what is shared that the other has not."""
    _, messages = settled()
    random = Random(0)
    again = build_problem(FOUND.terms, 1 << 30, SEGMENTS[:2]).problem
    possible: list[list[int]] = []
    while len(possible) < 5:
        choice = [random.randrange(len(node.costs)) for node in again.nodes]
        if evaluate(again, choice).cost is not None:
            possible.append(choice)
    kept = [
        np.array(sorted({choice[u] for choice in possible} | set(random.sample(range(len(node.costs)), len(node.costs) // 2))))
        for u, node in enumerate(again.nodes)
    ]
    (cold, _), (warm, places) = engine_of(again, kept), engine_of(again, kept)
    assert len(warm.model.costs) > len(engine_of(FOUND.problem)[0].model.costs)
    messages.hand_on(warm, places)
    for engine in (cold, warm):
        engine.sweep()
    assert warm.bound > cold.bound
    for choice in possible:
        cost = evaluate(again, choice).cost
        assert cost is not None and warm.bound <= cost
