"""What a step waits for: the longer of several things, and what is paid for once: an objective that is not linear, by linear ones.

What the blocks of a kind wait where parameters travel ahead of them is the greater of two linear functions of the choice
(`Terms.ahead`), and a step lasts as long as the longer of what the device and the host are busy with (`Terms.hosted`). Weighing two
makes a linear function that is no more than the greater, so that the least of it bounds all plans; with the right weights
it is the optimum, or close below it. Mostly all is hidden that can be and the host is done before the device, and the first weights are the last.

A collective that parameters of a block are in together starts once: each pays for a part of that, which is no more than the whole
(`starts`). With the parts that suit the best choice met, it is mostly the optimum; else collectives are decided one by one.

Travelling ahead takes the memory of one block more; plans that do without are in the search as well.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from heapq import heappop, heappush
from itertools import count
from time import perf_counter

from autoplan.errors import OutOfTime
from autoplan.graph.segments import Segment
from autoplan.planner.build import Built, build_problem
from autoplan.planner.family import Outcome
from autoplan.planner.problem import NoneCheaper, cost_of
from autoplan.planner.recompute import cheapest
from autoplan.planner.solve import solve
from autoplan.planner.starts import closed, fitted, opened, undercharged
from autoplan.planner.terms import Terms

BRANCHINGS = 32  # at most: two searches each
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
    return _Search(start, limit_bytes, time_limit_s, hint, on_progress).run()


class _Search:
    """The best plan met, at what it truly costs, and what is proved of all."""

    def __init__(self, start: Built, limit_bytes: int, time_limit_s: float, hint: Sequence[int] | None, on_progress: Report | None) -> None:
        self.start, self.limit_bytes, self.hint, self.on_progress = start, limit_bytes, hint, on_progress
        self.deadline = perf_counter() + time_limit_s
        kinds = sorted(start.terms.prices.prefixes) if start.terms.prices.hides else []
        self.weights = _Weights(kinds, HOST if _is_bound_by_host(start, LOOKING * time_limit_s) else 0.0)
        self.best: Outcome | None = None
        self.interrupted = False
        self.proved, self.tie = -1, start.problem.tie
        self.proved_with = start.terms, self.weights.copy()

    def run(self) -> Outcome | None:
        """Weights and parts of starts moved as the choices met suggest; what is left is decided a collective at a time."""
        terms = self.start.terms
        for _ in range(WEIGHINGS):
            try:
                found = self._cheapest(terms)
            except OutOfTime:
                if self.best is None:
                    raise
                break
            if found is None:
                return None
            self._prove(found.bound if isinstance(found, NoneCheaper) else found.solution.bound, terms)
            if isinstance(found, NoneCheaper):
                break
            waits, host = self._meet(found)
            if self._is_enough(self.proved) or self._is_over():
                break
            assert self.best is not None
            moved = self.proved <= self.best.solution.cost * (1 - CLOSE) and self.weights.move(waits, host)
            if not moved and terms is not self.start.terms:
                self._branch(terms, found)
                break
            terms = fitted(self.start.terms, self.best.solution.choice)
        return self._outcome()

    def _cheapest(self, terms: Terms) -> Outcome | NoneCheaper | None:
        """The cheapest choice under these terms and the weights, that bounds all; what costs as much as the best is not looked for."""
        starts, left_s = _starts(terms, self.weights, self.limit_bytes), self.deadline - perf_counter()
        found: Outcome | NoneCheaper | None
        if self.best is None:
            found = cheapest(starts, self.limit_bytes, left_s, hint=self.hint, on_progress=self.on_progress)
        else:
            try:
                found = cheapest(starts, self.limit_bytes, left_s, cutoff=self.best.solution.cost, on_progress=self.on_progress)
            except KeyboardInterrupt:
                found = NoneCheaper(self.proved, interrupted=True)
        self.interrupted |= found is not None and (found if isinstance(found, NoneCheaper) else found.solution).interrupted
        return found

    def _is_over(self) -> bool:
        """Whether there is no time left, or the user wants none to be spent."""
        return self.interrupted or perf_counter() > self.deadline

    def _prove(self, bound: int, terms: Terms) -> None:
        bound -= self._rounding(terms)
        self.tie = max(self.tie, self.start.problem.tie + self._slack(terms))
        if bound > self.proved:
            self.proved, self.proved_with = bound, (terms, self.weights.copy())

    def _meet(self, found: Outcome) -> tuple[dict[str, int], int]:
        """Take a choice at what it truly costs, if it is the best; how long its blocks wait, and how much longer than the device the host is busy."""
        true, waits, host = _true(found, fitted(self.start.terms, found.solution.choice), self.limit_bytes)
        if self.best is None or true.solution.cost < self.best.solution.cost:
            self.best = true
        return waits, host

    def _branch(self, terms: Terms, found: Outcome) -> None:
        """Bound choices that get a start for less than it costs: those that all pay for it, and those that do without it."""
        open_ = [(found.solution.bound - self._rounding(terms), 0, terms, found.solution.choice)]
        given_up: list[int] = []
        order = count(1)
        for _ in range(BRANCHINGS):
            if not open_ or self._is_enough(open_[0][0]) or self._is_over():
                break
            bound, _, terms, choice = heappop(open_)
            collective = undercharged(terms, choice)
            if collective is None:
                given_up.append(bound)
                break
            for part in (opened(terms, collective), closed(terms, collective)):
                try:
                    found_there = self._cheapest(part)
                except OutOfTime:
                    given_up.append(bound)
                    continue
                if isinstance(found_there, NoneCheaper):
                    given_up.append(max(bound, found_there.bound - self._rounding(part)))
                elif found_there is not None:
                    self._meet(found_there)
                    below = max(bound, found_there.solution.bound - self._rounding(part))
                    heappush(open_, (below, next(order), part, found_there.solution.choice))
        least = min([*given_up, *(bound for bound, *_ in open_[:1])], default=None)
        assert self.best is not None
        proved = self.best.solution.cost if least is None else least
        self.proved = max(self.proved, proved)

    def _rounding(self, terms: Terms) -> int:
        """By how much less than its terms a choice may cost, all being rounded."""
        if not self.weights.are_whole:
            return terms.rounding
        return 0 if terms is self.start.terms else terms.rounding_of_starts

    def _slack(self, terms: Terms) -> int:
        """Beyond preferences, what plans are equal within.

        What rounding takes from the bound and adds to the plan, and what is left to decide between plans that keep the host as busy.
        """
        left = int((1 - HOST) * self.best.solution.cost) if self.weights.host == HOST and self.best is not None else 0
        return left + (2 * self._rounding(terms) if self.weights.host in (0.0, HOST) else 0)

    def _is_enough(self, bound: int) -> bool:
        assert self.best is not None
        return bound > self.best.solution.cost - self.tie

    def _outcome(self) -> Outcome:
        assert self.best is not None
        cost = self.best.solution.cost
        terms, weights = self.proved_with
        status = "optimal" if self._is_enough(self.proved) else "feasible"
        solution = replace(self.best.solution, bound=min(self.proved, cost), status=status, interrupted=self.interrupted)
        return replace(self.best, solution=solution, terms=terms, waiting=weights.waiting, host=weights.host)


def _is_bound_by_host(start: Built, time_limit_s: float) -> bool:
    """Whether the host is longer busy than the device with what would be the best plan for the device if it had all memory."""
    if sum(min(node.costs) for node in start.problem.nodes) >= MANY_MOVES * start.terms.least_host:
        return False
    free = replace(start.problem, limits=(), peaks=())
    try:
        found = solve(free, time_limit_s)
    except OutOfTime:
        return False
    return found is not None and host_of(start.terms, 0, (), found.choice) > found.cost


def _starts(terms: Terms, weights: _Weights, limit_bytes: int) -> tuple[Built, ...]:
    """The problems without recomputation, weighed: gathered ahead where that may help, and not."""
    here = build_problem(terms.hosted(weights.host), limit_bytes)
    if not terms.prices.hides:
        return (here,)
    return build_problem(terms.ahead(weights.waiting).hosted(weights.host), limit_bytes), here


def waits_of(terms: Terms, limit_bytes: int, recomputed: Sequence[Segment], choice: Sequence[int]) -> tuple[int, dict[str, int]]:
    """What a choice that gathers ahead costs where all is hidden that can be, and how much longer than that blocks of each kind wait."""

    def cost(waiting: Mapping[str, float]) -> int:
        return cost_of(build_problem(terms.ahead(waiting), limit_bytes, recomputed).problem, choice)

    least = cost({})
    return least, {kind: cost({kind: 1.0}) - least for kind in sorted(terms.prices.prefixes)}


def host_of(terms: Terms, limit_bytes: int, recomputed: Sequence[Segment], choice: Sequence[int]) -> int:
    """How long the host is busy with a choice."""
    return cost_of(build_problem(terms.hosted(1.0), limit_bytes, recomputed).problem, choice)


def true_cost(terms: Terms, limit_bytes: int, recomputed: Sequence[Segment], choice: Sequence[int], *, prefetch: int = 0) -> int:
    """What a choice truly costs: starts of collectives once, the longer of what blocks may wait for, the longer of device and host."""
    terms = fitted(terms, choice)
    if prefetch:
        least, waits = waits_of(terms, limit_bytes, recomputed, choice)
        device = least + sum(max(0, wait) for wait in waits.values())
    else:
        device = cost_of(build_problem(terms, limit_bytes, recomputed).problem, choice)
    return max(device, host_of(terms, limit_bytes, recomputed, choice))


def _true(found: Outcome, terms: Terms, limit_bytes: int) -> tuple[Outcome, dict[str, int], int]:
    """The same plan at what it truly costs, how long its blocks wait, and how much longer than the device the host is busy.

    `terms` are fitted to it.
    """
    solution, again = found.solution, found.built.recomputed
    waits: dict[str, int] = {}
    if found.built.terms.prefetch:
        least, waits = waits_of(terms, limit_bytes, again, solution.choice)
        cost = least + sum(max(0, wait) for wait in waits.values())
    else:
        cost = cost_of(build_problem(terms, limit_bytes, again).problem, solution.choice)
    host = host_of(terms, limit_bytes, again, solution.choice) if terms.most_host > cost else 0
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
