"""What a step waits for: the longer of several things, an objective that is not linear, by linear ones.

What the blocks of a kind wait where parameters travel ahead of them is the greater of two linear functions of the choice
(`Terms.ahead`), and a step lasts as long as the longer of what the device and the host are busy with (`Terms.hosted`). Weighing two
makes a linear function that is no more than the greater, so that the least of it bounds all plans; with the right weights
it is the optimum, or close below it. Mostly all is hidden that can be and the host is done before the device, and the first weights are the last.

Travelling ahead takes the memory of one block more; plans that do without are in the search as well.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from time import perf_counter

from autoplan.errors import OutOfTime
from autoplan.graph.segments import Segment
from autoplan.planner.build import Built, build_problem
from autoplan.planner.problem import cost_of
from autoplan.planner.recompute import Outcome, cheapest
from autoplan.planner.solve import solve

WEIGHINGS = 7  # at most: each halves what is not known of a weight
CLOSE = 1e-3  # of the cost: a gap of no more is not worth another search, costs are not known so well
HOST = 1 - 1e-4  # of the weight: the rest decides between plans that keep the host as busy, and costs are equal within it
MANY_MOVES = 2  # times as long as with ops alone: a host that is then done before the device is not looked at first
LOOKING = 0.1  # of the time: what may be spent on how busy the host is with the best plan for the device
Report = Callable[[int, int], None]


def cheapest_overlapped(
    start: Built, limit_bytes: int, time_limit_s: float, *, hint: Sequence[int] | None = None, on_progress: Report | None = None
) -> Outcome | None:
    """The cheapest plan within the limit, gathered ahead or not, or the best found in time; None where nothing fits.

    `start` is the problem in which nothing is gathered ahead nor recomputed, `hint` a choice to begin with. Raises OutOfTime when the
    time limit passes before any plan is found.
    """
    deadline = perf_counter() + time_limit_s
    kinds = sorted(start.terms.prices.prefixes) if start.terms.prices.hides else []
    weights = _Weights(kinds, HOST if _is_bound_by_host(start, LOOKING * time_limit_s) else 0.0)
    best: Outcome | None = None
    proved, proved_with, tie = -1, weights.copy(), start.problem.tie
    for _ in range(WEIGHINGS):
        starts = _starts(start, weights, limit_bytes)
        try:
            found = cheapest(starts, limit_bytes, deadline - perf_counter(), hint=hint, on_progress=on_progress)
        except OutOfTime:
            if best is None:
                raise
            break
        if found is None:
            return None
        true, waits, host = _true(found, start, limit_bytes)
        rounding = 0 if weights.are_whole else starts[0].terms.rounding
        if found.solution.bound - rounding > proved:
            proved, proved_with = found.solution.bound - rounding, weights.copy()
            tie = start.problem.tie + (rounding + int((1 - HOST) * true.solution.cost) if weights.host == HOST else 0)
        best = true if best is None or true.solution.cost < best.solution.cost else best
        is_close = proved > best.solution.cost - max(tie, CLOSE * best.solution.cost)
        if is_close or found.solution.interrupted or perf_counter() > deadline or not weights.move(waits, host):
            break
    assert best is not None
    cost = best.solution.cost
    status = "optimal" if proved > cost - tie else "feasible"
    solution = replace(best.solution, bound=min(proved, cost), status=status)
    return replace(best, solution=solution, waiting=proved_with.waiting, host=proved_with.host)


def _is_bound_by_host(start: Built, time_limit_s: float) -> bool:
    """Whether the host is longer busy than the device with what would be the best plan for the device if it had all memory."""
    if sum(min(node.costs) for node in start.problem.nodes) >= MANY_MOVES * start.terms.least_host:
        return False
    free = replace(start.problem, limits=(), peaks=())
    try:
        found = solve(free, time_limit_s)
    except OutOfTime:
        return False
    return found is not None and host_of(start, 0, (), found.choice) > found.cost


def _starts(start: Built, weights: _Weights, limit_bytes: int) -> tuple[Built, ...]:
    """The problems without recomputation, weighed: gathered ahead where that may help, and not."""
    here = start if not weights.host else build_problem(start.terms.hosted(weights.host), limit_bytes)
    if not start.terms.prices.hides:
        return (here,)
    return build_problem(start.terms.ahead(weights.waiting).hosted(weights.host), limit_bytes), here


def waits_of(start: Built, limit_bytes: int, recomputed: Sequence[Segment], choice: Sequence[int]) -> tuple[int, dict[str, int]]:
    """What a choice that gathers ahead costs where all is hidden that can be, and how much longer than that blocks of each kind wait."""

    def cost(waiting: Mapping[str, float]) -> int:
        return cost_of(build_problem(start.terms.ahead(waiting), limit_bytes, recomputed).problem, choice)

    least = cost({})
    return least, {kind: cost({kind: 1.0}) - least for kind in sorted(start.terms.prices.prefixes)}


def host_of(start: Built, limit_bytes: int, recomputed: Sequence[Segment], choice: Sequence[int]) -> int:
    """How long the host is busy with a choice."""
    return cost_of(build_problem(start.terms.hosted(1.0), limit_bytes, recomputed).problem, choice)


def _true(found: Outcome, start: Built, limit_bytes: int) -> tuple[Outcome, dict[str, int], int]:
    """The same plan at what it truly costs, how long its blocks wait, and how much longer than the device the host is busy."""
    solution, again = found.solution, found.built.recomputed
    waits: dict[str, int] = {}
    cost = solution.cost
    if found.built.terms.prefetch:
        least, waits = waits_of(start, limit_bytes, again, solution.choice)
        cost = least + sum(max(0, wait) for wait in waits.values())
    elif found.built.terms.host:
        cost = cost_of(build_problem(start.terms, limit_bytes, again).problem, solution.choice)
    host = host_of(start, limit_bytes, again, solution.choice) if start.terms.most_host > cost else 0
    return replace(found, solution=replace(solution, cost=max(cost, host))), waits, host - cost


class _Weights:
    """By kind of blocks the weight of waiting for all communication that is longer than computing, and that of the host; where both are sought.

    Whichever is longer gets more weight: all or nothing first, then half of what is left.
    """

    def __init__(self, kinds: Sequence[str], host: float = 0.0) -> None:
        self.waiting = dict.fromkeys(kinds, 0.0)
        self.host = host
        self._between = dict.fromkeys(kinds, (0.0, 1.0))
        self._host_between: tuple[float | None, float | None] = None, None

    def copy(self) -> _Weights:
        """The weights as they are now."""
        found = _Weights([], self.host)
        found.waiting = dict(self.waiting)
        return found

    @property
    def are_whole(self) -> bool:
        """Whether each is all or nothing: then terms are as they are, else rounded."""
        return {*self.waiting.values(), self.host} <= {0.0, 1.0}

    def move(self, waits: Mapping[str, int], host: int) -> bool:
        """On to others, as blocks wait and the host is longer busy than the device by so much. Whether there were any."""
        before = dict(self.waiting), self.host
        for kind, wait in waits.items():
            low, high = self._between[kind]
            now = self.waiting[kind]
            low, high = (now, high) if wait > 0 else (low, now)
            if low < high:
                self._between[kind] = low, high
                self.waiting[kind] = 1.0 if wait > 0 and now == 0 and high == 1 else (low + high) / 2
        self._move_host(host)
        return (dict(self.waiting), self.host) != before

    def _move_host(self, host: int) -> None:
        low, high = self._host_between
        low, high = (self.host, high) if host > 0 else (low, self.host)
        self._host_between = low, high
        if (host > 0 and self.host < HOST) or (host <= 0 and self.host > 0):
            self.host = HOST if high is None else 0.0 if low is None else (low + high) / 2
