"""Small random problems, and their optimum by trying everything."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import product
from random import Random

import numpy as np

from autoplan.planner.problem import FORBIDDEN, Array, Group, Problem, ProblemNode, ProblemValue, Reader, evaluate

ROWS = 2
TIE = 4096


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


def small_problem(seed: int) -> Problem:
    """One of several kinds, with 8 to 243 choices: as `random_problem`, costs as large as a planner's, or memory that costs dearly."""
    problem = random_problem(seed, nodes=3 + seed % 7 // 3, strategies=2 + seed % 2)
    kind = seed % 5
    if kind == 3:
        return _with_large_costs(problem)
    return _with_dear_memory(problem, Random(seed)) if kind == 4 else problem


def _with_large_costs(problem: Problem) -> Problem:
    """Every cost a multiple of what counts as a tie, as in the planner's problems, and 10^9 ties that are paid anyway."""
    nodes = tuple(replace(node, costs=tuple(TIE * cost for cost in node.costs)) for node in problem.nodes)
    values = (replace(v, forward=_multiplied(v.forward, TIE), backward=_multiplied(v.backward, TIE)) for v in problem.values)
    return _paying(replace(problem, nodes=nodes, values=tuple(values), tie=TIE), 10**9 * TIE)


def _with_dear_memory(problem: Problem, random: Random) -> Problem:
    """The first strategy of every node costs nothing and takes most memory, the others cost more than all else; 10^12 is paid anyway."""
    nodes = (
        replace(node, costs=(0, *(random.randint(1, 10**6) for _ in node.costs[1:])), memory=tuple((9, *row[1:]) for row in node.memory))
        for node in problem.nodes
    )
    values = (replace(v, forward=_multiplied(v.forward, 0), backward=_multiplied(v.backward, 0)) for v in problem.values)
    return _paying(replace(problem, nodes=tuple(nodes), values=tuple(values)), 10**12)


def _paying(problem: Problem, paid: int) -> Problem:
    first, *others = problem.nodes
    return replace(problem, nodes=(replace(first, costs=tuple(cost + paid for cost in first.costs)), *others))


def _multiplied(costs: Array, factor: int) -> Array:
    return np.where(costs == FORBIDDEN, FORBIDDEN, factor * costs)


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


@dataclass(frozen=True, slots=True)
class Tried:
    """What trying every choice finds: the least cost within the limits, and the least peak whatever it costs; None where there is none."""

    cost: int | None
    peak: int | None


def tried(problem: Problem) -> Tried:
    """Every choice of a problem, evaluated by its definition."""
    every = [evaluate(problem, choice) for choice in product(*(range(len(node.costs)) for node in problem.nodes))]
    possible = [(result.cost, result.memory) for result in every if result.cost is not None]
    fitting = [cost for cost, memory in possible if all(used <= limit for used, limit in zip(memory, problem.limits, strict=True))]
    return Tried(min(fitting, default=None), min((max(memory) for _, memory in possible), default=None))
