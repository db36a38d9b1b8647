"""Small random problems, and their optimum by trying everything."""

from __future__ import annotations

from itertools import product
from random import Random

import numpy as np

from autoplan.planner.problem import FORBIDDEN, Array, Group, Problem, ProblemNode, ProblemValue, Reader, evaluate, is_feasible

ROWS = 2


def random_problem(seed: int, *, nodes: int = 5, strategies: int = 3) -> Problem:
    """A chain with shared values, forbidden transitions, readers of shape alone, two memory rows and two peaks."""
    random = Random(seed)
    made = tuple(
        ProblemNode(
            f"n{i}",
            tuple(random.randint(0, 20) for _ in range(strategies)),
            tuple(tuple(random.randint(0, 9) for _ in range(strategies)) for _ in range(ROWS)),
        )
        for i in range(nodes)
    )
    values = tuple(_random_value(random, producer, nodes, strategies) for producer in range(nodes - 1))
    peaks = tuple(
        (
            tuple(Group(nodes=((i, tuple(random.randint(0, 9) for _ in range(strategies))),)) for i in range(nodes)),
            tuple(Group(values=((v, tuple(random.randint(0, 9) for _ in range(value.classes))),)) for v, value in enumerate(values)),
        )
        for _ in range(ROWS)
    )
    unlimited = Problem(made, values, (10**6,) * ROWS, peaks, 1.0, 1)
    usages = [evaluate(unlimited, choice).memory for choice in product(range(strategies), repeat=nodes)]
    limits = tuple(sorted(usage[row] for usage in usages)[len(usages) // random.choice([2, 3, 6])] for row in range(ROWS))
    return Problem(made, values, limits, peaks, 1.0, 1)


def _random_value(random: Random, producer: int, nodes: int, strategies: int) -> ProblemValue:
    made, needed = random.randint(1, 3), random.randint(1, 4)
    classes = tuple(sorted(random.randrange(2) for _ in range(needed)))
    classes = tuple(sorted(set(classes)).index(f) for f in classes)
    readers = random.sample(range(producer + 1, nodes), random.randint(1, min(2, nodes - producer - 1)))
    return ProblemValue(
        f"v{producer}",
        producer,
        tuple(random.randrange(made) for _ in range(strategies)),
        tuple(
            Reader(
                node, tuple(random.choice([None, *range(needed)] if random.random() < 0.2 else [*range(needed)]) for _ in range(strategies))
            )
            for node in readers
        ),
        classes,
        _costs(random, made, max(classes) + 1),
        _costs(random, made, needed),
        tuple(position for position in range(len(readers)) if random.random() < 0.7),
        tuple(tuple(random.randint(0, 5) for _ in range(max(classes) + 1)) for _ in range(ROWS)),
        tuple(random.choice([None, *range(max(classes) + 1)]) for _ in range(made)),
    )


def _costs(random: Random, rows: int, columns: int) -> Array:
    return np.array(
        [[FORBIDDEN if random.random() < 0.05 else random.choice([0, random.randint(1, 15)]) for _ in range(columns)] for _ in range(rows)]
    )


def brute_force(problem: Problem) -> int | None:
    """The least cost of any feasible choice; None where there is none."""
    choices = product(*(range(len(node.costs)) for node in problem.nodes))
    costs = [evaluate(problem, choice).cost for choice in choices if is_feasible(problem, choice)]
    return min((cost for cost in costs if cost is not None), default=None)
