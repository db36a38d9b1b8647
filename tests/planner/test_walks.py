"""The least of models linked in a chain is that of the one model in which every copy stands for itself; messages never say more."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from autoplan.planner.solver.deposits import bounded
from autoplan.planner.solver.eliminate import Elimination
from autoplan.planner.solver.model import FORBIDDEN, Array, Edge, Model
from autoplan.planner.solver.walks import Link, TooLong, Walks

SIZES = (3, 2, 3, 4)  # of a copy's nodes: the first is its entry, the third its exit
SEEDS = 40
EXIT, FIRST, LAST = 2, 1, 3  # the rest's nodes that a chain hangs between are numbers 1 and 3


def drawn(random: np.random.Generator, sizes: Sequence[int]) -> Model:
    """A connected model without memory, some of whose pairs are forbidden."""
    edges = {}
    for w in range(1, len(sizes)):
        for u in {int(random.integers(0, w)), w - 1}:
            cost = random.integers(0, 20, (sizes[u], sizes[w]))
            edges[u, w] = Edge(np.where(random.random(cost.shape) < 0.15, FORBIDDEN, cost))
    return Model([random.integers(0, 20, size) for size in sizes], [{} for _ in sizes], edges, np.zeros(0, dtype=np.int64))


def unrolled(rest: Model, copy: Model, count: int) -> tuple[Model, list[list[int]]]:
    """One model of all, and the numbers in it of each copy's nodes."""
    costs, edges = [costs.copy() for costs in rest.costs], dict(rest.edges)
    numbers, entry = [], FIRST
    for k in range(count):
        number = [entry]
        for node in range(1, len(SIZES)):
            number.append(LAST if node == EXIT and k == count - 1 else len(costs))
            if number[-1] == len(costs):
                costs.append(np.zeros(SIZES[node], dtype=np.int64))
        for node, at in enumerate(number):
            costs[at] = costs[at] + copy.costs[node]
        for (u, w), edge in copy.edges.items():
            a, b, cost = (number[u], number[w], edge.cost) if number[u] < number[w] else (number[w], number[u], edge.cost.T)
            before = edges[a, b].cost if (a, b) in edges else 0
            edges[a, b] = Edge(np.minimum(before + cost, FORBIDDEN))
        numbers.append(number)
        entry = number[EXIT]
    return Model(costs, [{} for _ in costs], edges, rest.limits), numbers


def pieces(seed: int) -> tuple[Model, Model]:
    """A rest and a copy."""
    random = np.random.default_rng(seed)
    return drawn(random, (2, SIZES[0], 3, SIZES[EXIT])), drawn(random, SIZES)


def linked(seed: int, count: int) -> tuple[Walks, Elimination, Model, list[list[int]]]:
    rest, copy = pieces(seed)
    whole, numbers = unrolled(rest, copy, count)
    exact = Elimination(whole, 1 << 50)
    exact.improve(1)
    return Walks(rest, [Link(copy, 0, EXIT, count, FIRST, LAST)]), exact, whole, numbers


@pytest.mark.parametrize("count", [1, 2, 5])
def test_walks_have_the_least_cost_of_all_copies_on_their_own(count: int) -> None:
    for seed in range(30):
        walks, exact, whole, numbers = linked(seed, count)
        assert walks.value == exact.bound
        if walks.value >= FORBIDDEN >> 4:
            continue  # nothing is possible
        rest, [copies] = walks.choices()
        chosen = dict(enumerate(rest))
        for number, choice in zip(numbers, copies, strict=True):
            for at, strategy in zip(number, choice, strict=True):
                assert chosen.setdefault(at, strategy) == strategy, "copies agree where they meet"
        assert whole.cost_of([chosen[node] for node in range(len(chosen))]) == walks.value


def test_the_bound_on_a_strategy_is_the_least_over_all_copies() -> None:
    for seed in range(30):
        walks, exact, _, numbers = linked(seed, 3)
        least, each = walks.least(), exact.conditionals()
        assert least.value == exact.bound
        for node, costs in enumerate(least.copies[0]):
            assert _same(costs, np.minimum.reduce([each[number[node]] for number in numbers]))
        assert all(_same(costs, each[node]) for node, costs in enumerate(least.rest))


def _same(first: Array, second: Array) -> bool:
    """Equal where something is possible."""
    return bool((np.minimum(first, FORBIDDEN >> 4) == np.minimum(second, FORBIDDEN >> 4)).all())


@pytest.mark.parametrize("count", [1, 2, 3, 8])
def test_what_messages_prove_of_a_chain_is_true_and_seldom_much_less_than_all_there_is(count: int) -> None:
    close = 0
    for seed in range(SEEDS):
        walks, exact, _, numbers = linked(seed, count)
        if walks.value >= FORBIDDEN >> 4:
            continue  # nothing is possible
        rest, copy = pieces(seed)
        _, [copies] = walks.choices()
        dearest = max(possible(copy.cost_of(choice)) for choice in copies)
        good = [walks.value - count * dearest, dearest]  # together what the best costs: whatever is dropped costs more
        least, each = bounded(rest, [Link(copy, 0, EXIT, count, FIRST, LAST)], good), exact.conditionals()
        assert least.value <= exact.bound
        for node, costs in enumerate(least.copies[0]):
            assert (np.minimum(costs, walks.value + 1) <= np.minimum.reduce([each[number[node]] for number in numbers])).all()
        assert all((np.minimum(costs, walks.value + 1) <= each[node]).all() for node, costs in enumerate(least.rest))
        close += exact.bound - least.value <= 0.1 * exact.bound
    assert close > 0.8 * SEEDS


def possible(cost: int | None) -> int:
    """What a possible choice costs."""
    assert cost is not None
    return cost


def test_borders_of_too_many_strategies_are_refused() -> None:
    random = np.random.default_rng(0)
    large = drawn(random, (800, 800))
    with pytest.raises(TooLong):
        Walks(large, [Link(large, 0, 1, 40, 0, 1)])
