"""A bound on every strategy of a `Problem` from a simpler one, in which every reader of a value pays a share of its own.

A value is brought into a state once, whoever needs it so. If each reader that needs it pays its share, and the shares add up
to no more than 1, that can only be less: a lower bound, whatever the shares, with no node but the problem's own. They start
out equal and move to the readers that use a state. Shares are counted in `WHOLE`ths, so that all stays exact in integers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from time import perf_counter

import numpy as np

from autoplan.planner.messages import Messages
from autoplan.planner.pairwise import Modeller, Place, Row, known_costs, price_of, rows_of
from autoplan.planner.problem import Problem, ProblemValue, evaluate
from autoplan.planner.solver.bound import Bound, bound
from autoplan.planner.solver.core import engine_for, glance
from autoplan.planner.solver.either import Either
from autoplan.planner.solver.eliminate import LARGEST_AMONG_FEW, Elimination, TooWide, steps_for
from autoplan.planner.solver.eliminate import LARGEST_TABLE as LARGEST_AT_FIRST
from autoplan.planner.solver.model import Array, Model, Span, bounds_in_full, chosen_from, in_full
from autoplan.planner.solver.narrowing import Narrowing
from autoplan.planner.solver.passing import Passing

WHOLE = 64
ROUNDS = 24
STEP = 0.5  # of the way to the readers that use a state, at first
SHRINKING = 0.6  # of the step, where it leads to no better bound
SHORTEST = 0.2
PATIENCE = 0.2  # of the shortest step, where bounds are too weak to go on
LARGEST_BY_SHARES = 6_000  # strategies: beyond, messages take long to bring shares near; on 8x8x8 they left 11 % where nodes left none
CLOSE = 1e-6  # of the bound: what is no better than that is not better


class SharedBound:
    """The bounds on a problem's strategies, from rounds of moving shares; `choice` is the best feasible one met, of cost `cost`.

    Only choices cheaper than `cutoff` count. With several problems, of the same nodes, values and rows, the bounds hold for
    each of them and for every problem whose amounts lie evenly between theirs: under given prices of memory the least cost of
    such a problem is a concave function of where it lies. `meet` is then told each choice and answers the best cost known.
    `shares`, by value, `prices` of the model's rows and `messages` are to begin with, such as those that a similar problem ended up
    with; `places` say what strategies are called in these, if they are not all there are. Bounds on strategies tell apart what costs at
    most `cutoff`, or the best met, and a `margin` more, a part of that.
    """

    def __init__(
        self,
        problems: Problem | Sequence[Problem],
        deadline: float | None,
        cutoff: int | None = None,
        meet: Callable[[Sequence[int]], int | None] | None = None,
        shares: Mapping[str, Shares] | None = None,
        prices: Mapping[Row, float] | None = None,
        messages: Messages | None = None,
        places: Sequence[Place] = (),
        margin: float = 0.0,
    ) -> None:
        self.problems = (problems,) if isinstance(problems, Problem) else tuple(problems)
        self.problem = self.problems[0]
        self.deadline = deadline
        self.shares = {value.name: Shares.of(value, (shares or {}).get(value.name)) for value in self.problem.values}
        assert len(self.shares) == len(self.problem.values), "names of values are distinct"
        self.choice: tuple[int, ...] | None = None
        self.cost = cutoff
        self.magnitude: int | None = None
        self.meet = meet or self._meet
        self.last: tuple[int, ...] = ()
        self.rows = rows_of(self.problem)
        self.prices = prices or {}
        self.margin = margin
        self.messages = messages
        self.places = places
        everything = [np.arange(len(node.costs)) for node in self.problem.nodes]
        if self._is_narrow(everything, LARGEST_AT_FIRST):
            self.below = self._rounds(everything, None, Elimination)
        else:
            self.below = self._whole() if self.is_wide else self._rounds(everything, None, Passing)
        self.prices = dict(zip(self.rows, self.below.prices.tolist(), strict=True))

    @property
    def is_wide(self) -> bool:
        """Whether messages have bounded the whole instead of the simpler problem, if nodes could not be taken out of that."""
        return self.problem.strategies > LARGEST_BY_SHARES

    def within(self, threshold: int) -> Bound | None:
        """Closer bounds on the choices of at most `threshold`, None where too many strategies are left for that."""
        return self.exactly(threshold) or self._patiently(threshold)

    def exactly(self, threshold: int) -> Bound | None:
        """The same, None where patience would be needed."""
        alive = self._alive(threshold)
        return self.below if alive is None else self._closer(alive, self.below, threshold)

    def _patiently(self, threshold: int) -> Bound | None:
        """The same after shorter steps among the strategies that are left, so that fewer are."""
        alive = self._alive(threshold)
        assert alive is not None, "else exactly known"
        again = _stronger(self.below, self._rounds(alive, self.below.prices, engine_for, SHORTEST * PATIENCE))
        narrower = [kept[again.conditional[u][kept] <= threshold] for u, kept in enumerate(alive)]
        return self._closer(narrower, again, threshold) if all(map(len, narrower)) else again

    def _alive(self, threshold: int) -> list[Array] | None:
        """By node, the strategies that choices of at most the threshold may use; None where that leaves a node without."""
        alive = [np.flatnonzero(conditional <= threshold) for conditional in self.below.conditional]
        return alive if all(map(len, alive)) else None

    def _closer(self, alive: Sequence[Array], below: Bound, threshold: int) -> Bound | None:
        """The bounds by taking out all nodes, None where that is too much work."""
        if not self._is_narrow(alive, LARGEST_AMONG_FEW):
            return None
        return _stronger(
            below, self._rounds(alive, below.prices, lambda model, _: Elimination(model, max(1, threshold), LARGEST_AMONG_FEW))
        )

    def _is_narrow(self, alive: Sequence[Array], largest: int) -> bool:
        """Whether all nodes, with only the strategies `alive` of each, can be taken out of the simpler problem."""
        try:
            steps_for(self._near, list(map(len, alive)), largest)
        except TooWide:
            return False
        return True

    @cached_property
    def _near(self) -> list[set[int]]:
        """By node, those that it shares values with."""
        near: list[set[int]] = [set() for _ in self.problem.nodes]
        for value in self.problem.values:
            for reader in value.readers:
                if reader.node != value.producer:
                    near[value.producer].add(reader.node)
                    near[reader.node].add(value.producer)
        return near

    def _first_prices(self) -> Array:
        """Those to begin with: of rows that are unknown here, at the first row that stands for the same row of the problem."""
        prices = np.zeros(len(self.rows))
        place = {row: number for number, row in reversed(list(enumerate(self.rows)))}
        of_problem = {row[0]: number for number, row in reversed(list(enumerate(self.rows)))}
        for row, price in self.prices.items():
            number = place.get(row, of_problem.get(row[0]))
            if number is not None:
                prices[number] += price
        return prices

    def _magnitude(self, models: Sequence[Model]) -> int:
        """About what a good choice costs."""
        if self.magnitude is None:
            self.magnitude = max(map(glance, models)) if self.cost is None else max(1, self.cost)
        return self.magnitude

    def _whole(self) -> Bound:
        """The bounds by messages in the models that have nodes for what is shared: closer than by messages in those without."""
        modellers = [Modeller(problem) for problem in self.problems]
        models = [modeller.model() for modeller in modellers]
        if self.messages is not None:
            self.magnitude = self.messages.magnitude
        engines = [Passing(model, self._magnitude(models)) for model in models]
        nodes = len(self.problem.nodes)
        places = [[*(self.places or modeller.places[:nodes]), *modeller.places[nodes:]] for modeller in modellers]
        if self.messages is not None:
            for one, names in zip(engines, places, strict=True):
                self.messages.hand_on(one, names)
        engine = Narrowing(Either(engines))

        def meet(choice: Sequence[int], used: Array) -> int | None:
            known = self._met(choice[:nodes])
            if known is not None:
                engine.narrow(known + int(self.margin * abs(known)))
            return known

        below = bound(
            engine, self._first_prices(), meet, self.deadline, until=lambda: self._is_narrow(engine.kept[:nodes], LARGEST_AMONG_FEW)
        )
        first = engine.engine.engines[0]
        assert isinstance(first, Passing)
        self.messages = Messages.of(first, [place.among(kept) for place, kept in zip(places[0], engine.kept, strict=True)])
        return replace(below, conditional=below.conditional[:nodes])

    def _rounds(
        self,
        alive: Sequence[Array],
        prices: Array | None,
        engine: Callable[[Model, int], Passing | Elimination],
        shortest: float = SHORTEST,
    ) -> Bound:
        best: Bound | None = None
        good, step = self.shares, STEP
        engines: list[Passing | Elimination] = []
        for _ in range(ROUNDS):
            models = [_among(relaxation(problem, self.shares), alive) for problem in self.problems]
            prices = self._first_prices() if prices is None else prices
            assert len({len(model.limits) for model in models}) == 1, "prices are by row"
            if engines:
                for running, model in zip(engines, models, strict=True):
                    running.set_model(model)
            else:
                magnitude = self._magnitude(models)
                engines = [engine(model, magnitude) for model in models]
            below = bound(Either(engines), prices, lambda choice, used: self._met(in_full(choice, alive)), self.deadline)
            if best is None or below.value > best.value + abs(best.value) * CLOSE:
                good, prices = self.shares, below.prices
            else:
                step *= SHRINKING
            best = below if best is None else _stronger(best, below)
            late = self.deadline is not None and perf_counter() > self.deadline
            if late or step < shortest or (self.cost is not None and self.cost <= best.value):
                break
            self.shares = {value.name: self.shares[value.name].moved(value, self.last, step) for value in self.problem.values}
        self.shares = good
        assert best is not None
        conditional = bounds_in_full((len(node.costs) for node in self.problem.nodes), alive, best.conditional)
        return Bound(best.value, tuple(conditional), best.prices)

    def _met(self, choice: Sequence[int]) -> int | None:
        self.last = tuple(choice)
        self.cost = self.meet(self.last)
        return self.cost

    def _meet(self, choice: Sequence[int]) -> int | None:
        result = evaluate(self.problem, choice)
        fits = all(amount <= limit for amount, limit in zip(result.memory, self.problem.limits, strict=True))
        if result.cost is not None and fits and (self.cost is None or result.cost < self.cost):
            self.choice, self.cost = tuple(choice), result.cost
        return self.cost


def _stronger(first: Bound, second: Bound) -> Bound:
    """Both bounds in one, each where it is higher."""
    pairs = zip(first.conditional, second.conditional, strict=True)
    value = max(first.value, second.value)
    return Bound(value, tuple(np.maximum(a, b) for a, b in pairs), second.prices if second.value == value else first.prices)


def _among(model: Model, alive: Sequence[Array]) -> Model:
    """The model with only the strategies `alive` of each node."""
    if all(len(kept) == len(costs) for kept, costs in zip(alive, model.costs, strict=True)):
        return model
    return chosen_from(model, alive)


@dataclass(frozen=True, slots=True)
class Shares:
    """What each reader pays of a value: `backward[r, q]`, `forward[r, f]`, and of the copies that are kept `kept[r, f]`."""

    backward: Array
    forward: Array
    kept: Array

    @classmethod
    def of(cls, value: ProblemValue, known: Shares | None) -> Shares:
        """What is known, if it is of such a value; else equal shares."""
        readers = len(value.readers)
        if known is not None and (known.backward.shape, known.forward.shape) == (
            (readers, len(value.forward_class)),
            (readers, value.classes),
        ):
            return known
        keeps = np.array([r in value.keepers for r in range(readers)], dtype=float)[:, None]
        kept = np.repeat(keeps / max(keeps.sum(), 1), value.classes, axis=1)
        return cls(np.full((readers, len(value.forward_class)), 1 / readers), np.full((readers, value.classes), 1 / readers), kept)

    def among(self, readers: Sequence[int]) -> Shares:
        """The shares of only these readers, who pay the whole among them."""
        return Shares(*(_adding_up(shares[list(readers)]) for shares in (self.backward, self.forward, self.kept)))

    def moved(self, value: ProblemValue, choice: Sequence[int], step: float) -> Shares:
        """A part of the way to charging only the readers that use a state, where any does."""
        states = np.array([-1 if (q := reader.needs[choice[reader.node]]) is None else q for reader in value.readers])
        classes = np.array([-1 if q < 0 else value.forward_class[q] for q in states])
        keeping = np.where([r in value.keepers for r in range(len(value.readers))], classes, -1)
        return Shares(_moved(self.backward, states, step), _moved(self.forward, classes, step), _moved(self.kept, keeping, step))


def _adding_up(shares: Array) -> Array:
    """Shares that add up to 1 in every column, in proportion; equal ones where there are none."""
    total = shares.sum(0)
    return np.where(total > 0, shares / np.where(total > 0, total, 1), 1 / len(shares))


def _moved(shares: Array, used: Array, step: float) -> Array:
    moved = shares.copy()
    for column in set(used.tolist()) - {-1}:
        using = used == column
        moved[:, column] = (1 - step) * shares[:, column] + step * using / using.sum()
    return moved


def relaxation(problem: Problem, shares: Mapping[str, Shares]) -> Model:
    """The simpler model that bounds a problem, under shares by the names of its values."""
    return _Relaxation(problem, shares).model()


class _Relaxation(Modeller):
    """The modeller that charges shares in edges instead of adding nodes for what is shared."""

    def __init__(self, problem: Problem, shares: Mapping[str, Shares]) -> None:
        super().__init__(problem)
        self.shares = shares

    def _share_value(
        self,
        value: ProblemValue,
        backward: Array,
        forward: Array,
        kept: dict[Span, Array],
        home: Array,
        states: list[Array],
        classes: list[Array],
    ) -> None:
        shares = self.shares[value.name]
        for r, reader in enumerate(value.readers):
            cost = price_of(_part(known_costs(backward), shares.backward[r]), states[r])
            cost = cost + price_of(_part(known_costs(forward), shares.forward[r]), classes[r])
            away = (home[:, None] != classes[r][None, :]) & (classes[r] >= 0)
            usage = {}
            if r in value.keepers:
                for span, amounts in kept.items():
                    usage[span] = np.where(away, np.append(_part(amounts, shares.kept[r]), 0)[classes[r]], 0)
            self._add_edge(value.producer, reader.node, cost, usage)


def _part(amounts: Array, share: Array) -> Array:
    """A share of integer amounts, rounded down: shares of all readers add up to the amount at most."""
    return amounts * np.floor(share * WHOLE + 1e-9).astype(np.int64) // WHOLE
