"""Plans whose copies differ, judged as they truly are: what the walk that bounds them suggests, as far as it fits into memory.

The walk takes no heed of memory. Where it does not fit as it is, some copies, the first or the last so many, do as it says and the others
as in the folded plan: between the two, memory and cost change step by step.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

from autoplan.errors import OutOfTime
from autoplan.graph.blocks import BlockRun
from autoplan.planner.build import Built, build_problem
from autoplan.planner.chain import nodes_of
from autoplan.planner.family import Outcome
from autoplan.planner.overlap import true_cost
from autoplan.planner.problem import Problem, evaluate, is_feasible
from autoplan.planner.solve import solve
from autoplan.planner.split import FINER, folded_nodes, split_terms
from autoplan.planner.unfold import Unfolded

Choice = tuple[int, ...]
MOST_NODES = 2_000  # of the graph: to look at plans whose copies differ takes too long where there are more
MOST_STRATEGIES = 6_000  # of the folded problem, likewise
MOST_SEARCHED = (
    20_000  # strategies of the problem in which every copy decides for itself: beyond, the solver does not come to bounds in a minute
)
SIDES = (True, False)


class Judge:
    """What choices truly cost where every copy decides for itself, and the same blocks recompute as in the best folded plan."""

    def __init__(self, start: Built, found: Outcome, limit_bytes: int) -> None:
        self.split, self.limit_bytes, self.recomputed = split_terms(start.terms, ()), limit_bytes, found.built.recomputed
        self.prefetch = found.built.terms.prefetch
        self.built = build_problem(self.split.ahead({}) if self.prefetch else self.split, limit_bytes, self.recomputed)
        self.folded = tuple(found.solution.choice[node] for node in folded_nodes(start.terms, self.split))
        self.tie = FINER * start.problem.tie
        before = self.cost(self.folded)
        assert before is not None, "the folded plan is possible"
        self.before = before

    def cost(self, choice: Sequence[int]) -> int | None:
        """What a choice costs, None if it is forbidden."""
        if evaluate(self.built.problem, choice).cost is None:
            return None
        return true_cost(self.split, self.limit_bytes, self.recomputed, choice, prefetch=self.prefetch)

    def gain(self, choice: Choice) -> int:
        """By how much less than the folded plan a possible choice costs, in the units of the folded problem."""
        cost = self.cost(choice)
        assert cost is not None
        return (self.before - cost) // FINER

    @property
    def problem(self) -> Problem:
        """With limits that a choice keeps if it fits, or nearly: all terms are rounded up, and there are many of them."""
        problem = self.built.problem
        rounding = len(problem.nodes) + len(problem.values)
        return replace(problem, limits=tuple(limit + rounding for limit in problem.limits), tie=self.tie)


def polished(judge: Judge, found: Unfolded, runs: Sequence[BlockRun]) -> Choice | None:
    """The cheapest choice that nearly fits and costs less than the folded plan by more than preferences; None where none was found.

    A plan that differs by layer is longer to read, so what is no better stays folded.
    """
    if found.walk is None:
        return None
    return _cheapest(judge, _mixtures(judge, found, runs), judge.before)


def searched(judge: Judge, best: Choice, time_limit_s: float) -> Choice | None:
    """A choice that costs less than `best`, after a search in the whole problem that begins with it, for as long as it may take.

    None where the problem is so large that the search would not even have begun by then.
    """
    if judge.built.problem.strategies > MOST_SEARCHED:
        return None
    try:
        solution = solve(judge.problem, time_limit_s, hint=best)
    except OutOfTime:
        return None
    return None if solution is None else _cheapest(judge, [solution.choice], judge.cost(best))


def _cheapest(judge: Judge, choices: Iterable[Choice], below: int | None) -> Choice | None:
    """The cheapest that costs less than `below` by more than preferences."""
    assert below is not None
    costs = {choice: cost for choice in choices if (cost := judge.cost(choice)) is not None and cost < below - judge.tie}
    return min(costs, key=lambda choice: (costs[choice], choice), default=None)


def _mixtures(judge: Judge, parts: Unfolded, runs: Sequence[BlockRun]) -> Iterator[Choice]:
    """For each side the most copies that may do as the walk says, the others as in the folded plan."""
    walk, copy_of = _walk(judge, parts, runs), _copies(judge.built, runs)
    deepest, problem = max(run.count for run in runs), judge.problem

    def mixed(copies: int, *, first: bool, rest: bool) -> Choice:
        """So many copies of each run by the walk, and all outside of runs if `rest`."""

        def follows(node: int) -> bool:
            place = copy_of[node]
            if place is None:
                return rest
            number, count = place
            return number < copies if first else number >= count - copies

        return tuple(walk[node] if follows(node) else judge.folded[node] for node in range(len(walk)))

    for first in SIDES:
        for rest in SIDES:
            least, most = 0, deepest
            while least < most:
                middle = (least + most + 1) // 2
                if is_feasible(problem, mixed(middle, first=first, rest=rest)):
                    least = middle
                else:
                    most = middle - 1
            yield mixed(least, first=first, rest=rest)


def _copies(built: Built, runs: Sequence[BlockRun]) -> list[tuple[int, int] | None]:
    """By problem node the number of the copy that it belongs to and how many there are, None outside of all."""
    found: list[tuple[int, int] | None] = [None] * len(built.problem.nodes)
    for run in runs:
        for k in range(run.count):
            for node in nodes_of(built, run, k):
                found[node] = k, run.count
    return found


def _walk(judge: Judge, parts: Unfolded, runs: Sequence[BlockRun]) -> Choice:
    """The walk as a choice of the problem in which every copy decides for itself."""
    assert parts.walk is not None
    rest, later = parts.walk
    built = judge.built
    part = folded_nodes(parts.parts.terms, built.terms)
    chosen = [rest.get(part[node], judge.folded[node]) for node in range(len(part))]
    for run, copies in zip(runs, later, strict=True):
        like = [part[node] for node in nodes_of(built, run, 1)]
        for k, copy in enumerate(copies, start=1):
            for node, second in zip(nodes_of(built, run, k), like, strict=True):
                chosen[node] = copy[second]
    return tuple(chosen)
