"""Small random models of the solver, and their optimum by trying everything."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from itertools import product

import numpy as np

from autoplan.planner.solver.model import FORBIDDEN, Array, Edge, Model, Span

ROWS = 5
UNLIMITED = 10**6  # more than any choice uses


def random_model(seed: int) -> Model:
    """Up to six nodes of up to three strategies, a third of the pairs forbidden, usage in spans of five rows, of nodes and of edges."""
    random = np.random.default_rng(seed)
    sizes = random.integers(1, 4, size=random.integers(2, 7))
    usage: list[dict[Span, Array]] = []
    for size in sizes:
        start, length = int(random.integers(0, 3)), int(random.integers(1, 3))
        usage.append({Span(start, start + length): random.integers(0, 5, size)} if random.random() < 0.6 else {})
    edges = {}
    for u in range(len(sizes)):
        for w in range(u + 1, len(sizes)):
            if random.random() < 0.5:
                edges[u, w] = _edge(random, (sizes[u], sizes[w]))
    limits = np.full(ROWS, int(random.integers(3, 12)))
    return Model([random.integers(0, 12, size) for size in sizes], usage, edges, limits, int(random.integers(0, 3)))


def _edge(random: np.random.Generator, shape: tuple[int, int]) -> Edge:
    matching = random.random() < 0.3
    cost = np.zeros(shape, dtype=np.int64) if matching else random.integers(0, 10, shape)
    cost[random.random(shape) < (0.5 if matching else 0.25)] = FORBIDDEN
    return Edge(cost, {Span(0, ROWS, 2): random.integers(0, 4, shape)} if random.random() < 0.4 else {})


def choices(model: Model) -> dict[tuple[int, ...], int]:
    """What every choice costs that fits and uses nothing forbidden."""
    every = product(*(range(len(costs)) for costs in model.costs))
    return {choice: cost for choice in every if (cost := model.cost_of(choice)) is not None and model.fits(choice)}


def peaks(model: Model) -> dict[tuple[int, ...], int]:
    """The greatest row of every choice that uses nothing forbidden."""
    every = product(*(range(len(costs)) for costs in model.costs))
    return {choice: int(model.used_by(choice).max()) for choice in every if model.cost_of(choice) is not None}


@cache
def tight_model(seed: int) -> tuple[Model, dict[tuple[int, ...], int]]:
    """A model in which what costs little takes much memory, in two rows of which about half of all choices keep both; and its choices."""
    random = np.random.default_rng(seed)
    costs = [random.integers(0, 40, size) for size in random.integers(2, 4, size=7)]
    usage = [{Span(row, row + 1): (40 - own) // 2 + random.integers(0, 9, len(own)) for row in range(2)} for own in costs]
    edges = {
        (u, w): Edge(random.integers(0, 12, (len(costs[u]), len(costs[w]))))
        for u in range(len(costs))
        for w in range(u + 1, len(costs))
        if random.random() < 0.6
    }
    free = Model(costs, usage, edges, np.full(2, UNLIMITED))
    used = [free.used_by(choice) for choice in choices(free)]
    model = replace(free, limits=np.quantile(used, 0.4, axis=0).astype(np.int64))
    return model, choices(model)
