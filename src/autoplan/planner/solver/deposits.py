"""A bound on models linked in chains (`walks`) by messages, however many strategies there are where copies meet.

A copy pays a deposit on the strategy at its exit, and gets the one on the strategy at its entry back. All deposits together are nothing, so
that what the rest and every copy cost at least by themselves, with any deposits, adds up to a bound. They move
between the two that meet until neither would gain by more: first those between copies, as if the last one met the first, and
then those between the rest and the first and the last copy, since a chain may begin and end with other strategies.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from autoplan.planner.solver.model import FORBIDDEN, Array, Model
from autoplan.planner.solver.narrowing import WORTH_DROPPING
from autoplan.planner.solver.passing import MANY, Passing
from autoplan.planner.solver.walks import Least, Link

LARGEST = 4  # deposit, in costs of a good choice: for what is forbidden no more is needed
STILL = 27  # bits: a bound that grows by less than this part of it stands still
WORTH_A_SWEEP = 0.003  # of what is lacking to a good choice

Kept = list[Array]
"""By node, strategies."""


def bounded(rest: Model, links: Sequence[Link], good: Sequence[int]) -> Least:
    """Bounds on all strategies as far as they tell what a good choice may use, in models without memory.

    `good` is what a good choice costs of the rest, and of each copy by link: only what costs no more is of interest.
    """
    chains = [_Chain(link, cost) for link, cost in zip(links, good[1:], strict=True)]
    engine = Passing(rest, good[0])
    for chain in chains:
        chain.hand_over(engine)
    lost = sum(chain.lost for chain in chains)
    _sweep([engine], [], good[0], lost)
    engine, kept = _without_the_hopeless(engine, chains, max(0, good[0] - engine.bound) + lost)
    for chain in chains:
        chain.meet(engine, good[0], lost)
    outside = sum(chain.value for chain in chains)
    value = engine.bound + outside
    of_rest = (costs + outside for costs in _in_full(rest, kept, engine.conditionals()))
    return Least(value, tuple(of_rest), tuple(tuple(costs + value for costs in chain.more()) for chain in chains))


def _without_the_hopeless(engine: Passing, chains: Sequence[_Chain], slack: int) -> tuple[Passing, Kept]:
    """The rest with only what choices use that cost so much more than the bound, if that is much less; the chains' ends likewise."""
    kept = _within(engine.conditionals(), engine.bound, slack)
    ends = [chain.within(kept, slack) for chain in chains]
    parts = [(engine, kept), *((chain.engine, end) for chain, of_chain in zip(chains, ends, strict=True) for end in of_chain)]
    if sum(sum(map(len, left)) for _, left in parts) > WORTH_DROPPING * sum(part.model.strategies for part, _ in parts):
        return engine, _everything(engine.model)
    for chain, of_chain in zip(chains, ends, strict=True):
        chain.ends = [(chain.engine.narrowed(end), end) for end in of_chain]
    return engine.narrowed(kept), kept


class _Chain:
    """The copies of a link: what they cost at least, and how much more with each strategy.

    `ends` are by copy that meets the rest, mostly the first and the last, its messages and its strategies.
    """

    def __init__(self, link: Link, good: int) -> None:
        self.link, self.good = link, good
        self.engine = Passing(link.model, good)
        self.between = _Seam(self.engine, link.exit, self.engine, link.entry, good)
        _sweep([self.engine], [self.between] if link.count > 1 else [], good)
        everything = _everything(link.model)
        self.ends = [(self.engine, everything)] * min(2, link.count)
        self.value = 0
        self._more: list[list[Array]] = []  # of the copies between, of the first, of the last
        if link.count > 2:
            self._count(self.engine, everything, link.count - 2)

    @property
    def lost(self) -> int:
        """How much less all copies cost, for all that is known before the ends are, than if each were good."""
        return self.link.count * max(0, self.good - self.engine.bound)

    def hand_over(self, rest: Passing) -> None:
        """Let the rest pay the first copy's deposit, and get the last one's."""
        rest.charge(self.link.first, self.between.deposit)
        rest.charge(self.link.last, -self.between.deposit)

    def within(self, rest: Kept, slack: int) -> list[Kept]:
        """By copy at an end, the strategies of choices that cost so much more than the bound; the rest is told where it meets them."""
        link = self.link
        within = _within(self.engine.conditionals(), self.engine.bound, slack)
        ends = [within.copy() for _ in self.ends]
        for end, node, place in ((ends[0], link.entry, link.first), (ends[-1], link.exit, link.last)):
            end[node] = rest[place] = np.intersect1d(end[node], rest[place])
        return ends

    def meet(self, rest: Passing, good: int, lost: int) -> None:
        """Move deposits between the copies at the ends and the rest, a good choice of which costs `good`; `lost` is lacking elsewhere."""
        link, enough = self.link, good + self.good
        for number, (engine, kept) in enumerate(self.ends):
            first = [_Seam(engine, link.entry, rest, link.first, enough)] if number == 0 else []
            last = [_Seam(engine, link.exit, rest, link.last, enough)] if number == len(self.ends) - 1 else []
            _sweep([engine, rest], [*first, *last], enough, lost)
            self._count(engine, kept, 1)
            for seam in (*first, *last):
                seam.leave_to_other()

    def _count(self, engine: Passing, kept: Kept, copies: int) -> None:
        """So many copies cost what the messages say."""
        self._more.append([costs - engine.bound for costs in _in_full(self.link.model, kept, engine.conditionals())])
        self.value += copies * engine.bound

    def more(self) -> list[Array]:
        """How much more than `value` the copies cost if one of them uses a strategy."""
        return [np.minimum.reduce(costs) for costs in zip(*self._more, strict=True)]


class _Seam:
    """Two nodes of engines that are one node: what the first is charged, the other is paid."""

    def __init__(self, one: Passing, u: int, other: Passing, w: int, good: int) -> None:
        self.one, self.u, self.other, self.w = one, u, other, w
        self.deposit = np.zeros(len(one.theta[u]), dtype=np.int64)
        self.largest = LARGEST * max(1, good)

    def settle(self, conditionals: Mapping[Passing, Sequence[Array]]) -> None:
        """Let no strategy cost more on one side than on the other, in whole units, so that bounds can be rounded up to these.

        Half of what a strategy costs above the least at both ends is never more than what it does with one at each.
        """
        of_u, of_w = conditionals[self.one][self.u], conditionals[self.other][self.w]
        deposit = np.clip(self.deposit + (of_w - of_w.min() - of_u + of_u.min()) // 2, -self.largest, self.largest)
        self.one.charge(self.u, deposit - self.deposit)
        self.other.charge(self.w, self.deposit - deposit)
        self.deposit = deposit

    def leave_to_other(self) -> None:
        """Charge the first no more, while the other goes on being paid."""
        self.one.charge(self.u, -self.deposit)


def _sweep(engines: Sequence[Passing], seams: Sequence[_Seam], good: int, lost: int = 0) -> None:
    """Sweep and settle until the bounds together are `good`, or stand still as far as that matters where so much is lost elsewhere."""
    last = -FORBIDDEN
    for _ in range(MANY):
        conditionals = {engine: engine.conditionals(sweeps=1) for engine in engines}
        for seam in seams:
            seam.settle(conditionals)
        now = sum(engine.bound for engine in engines)
        if now >= good or 0 <= now - last <= max(abs(now) >> STILL, int((good + lost - now) * WORTH_A_SWEEP)):
            break
        last = now


def _everything(model: Model) -> Kept:
    return [np.arange(len(costs)) for costs in model.costs]


def _within(conditionals: Sequence[Array], bound: int, slack: int) -> Kept:
    """The strategies of choices that cost so much more than the bound."""
    return [np.flatnonzero(costs <= bound + slack) for costs in conditionals]


def _in_full(model: Model, kept: Kept, costs: Sequence[Array]) -> list[Array]:
    """Bounds on the strategies that were kept, as bounds on all of the model's."""
    found = [np.full(len(all_), FORBIDDEN) for all_ in model.costs]
    for bounds, left, known in zip(found, kept, costs, strict=True):
        bounds[left] = known
    return found
