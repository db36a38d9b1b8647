"""A bound on models linked in chains (`walks`) by messages, however many strategies there are where copies meet.

A copy pays a deposit on the strategy at its exit, and gets the one on the strategy at its entry back. All deposits together are nothing, so
that what the rest and every copy cost at least by themselves, with any deposits, adds up to a bound. They move
between the two that meet until neither would gain by more: first those between copies, as if the last one met the first, and
then those between the rest and the first and the last copy, since a chain may begin and end with other strategies.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from autoplan.planner.solver.model import FORBIDDEN, Array, Model, bounds_in_full
from autoplan.planner.solver.narrowing import WORTH_DROPPING
from autoplan.planner.solver.passing import MANY, Passing
from autoplan.planner.solver.walks import Least, Link

LARGEST = 4  # deposit, in costs of a good choice: for what is forbidden no more is needed
STILL = 27  # bits: a bound that grows by less than this part of it stands still
WORTH_A_SWEEP = 0.003  # of what is lacking to a good choice
CLOSER = 0.6  # of what was lacking when strategies were dropped last: then more of them may go

Kept = list[Array]
"""By node, strategies."""


def bounded(rest: Model, links: Sequence[Link], good: Sequence[int]) -> Least:
    """Bounds on all strategies as far as they tell what a good choice may use, in models without memory.

    `good` is what a good choice costs of the rest, and of each copy by link: only what costs no more is of interest.
    """
    chains = [_Chain(link, cost) for link, cost in zip(links, good[1:], strict=True)]
    part = _Part(Passing(rest, good[0]))
    for chain in chains:
        chain.hand_over(part)
    whole = good[0] + sum(chain.link.count * chain.good for chain in chains)
    _sweep([part], [], whole - sum(chain.least for chain in chains))
    for chain in chains:
        chain.meet(part, whole - sum(other.least for other in chains if other is not chain))
    outside = sum(chain.least for chain in chains)
    value = part.bound + outside
    return Least(
        value,
        tuple(costs + outside for costs in part.in_full(part.conditionals())),
        tuple(tuple(costs + value for costs in chain.more()) for chain in chains),
    )


class _Part:
    """Messages between the strategies of a model that are still of interest."""

    def __init__(self, engine: Passing) -> None:
        self.engine = engine
        self.kept = [np.arange(len(costs)) for costs in engine.model.costs]
        self._sizes = [len(costs) for costs in engine.model.costs]

    @property
    def bound(self) -> int:
        """The bound on all choices."""
        return self.engine.bound

    def conditionals(self, sweeps: int = 2) -> list[Array]:
        """The bounds on the strategies that were kept, after so many sweeps more."""
        return self.engine.conditionals(sweeps)

    def narrow(self, left: Sequence[Array]) -> None:
        """Go on with these of the strategies that were kept."""
        self.engine = self.engine.narrowed(left)
        self.kept = [kept[some] for kept, some in zip(self.kept, left, strict=True)]

    def in_full(self, costs: Sequence[Array]) -> list[Array]:
        """Bounds on the strategies that were kept, as bounds on all."""
        return bounds_in_full(self._sizes, self.kept, costs)


class _Chain:
    """The copies of a link: what they cost at least, and how much more with each strategy.

    `value` is what the `counted` ones do, whose deposits move no more; each of the others costs at least the bound of `part`.
    """

    def __init__(self, link: Link, good: int) -> None:
        self.link, self.good = link, good
        self.part = _Part(Passing(link.model, good))
        self.between = _Seam(self.part, link.exit, self.part, link.entry, good)
        _sweep([self.part], [self.between] if link.count > 1 else [], good)
        self.value = self.counted = 0
        self._more: list[list[Array]] = []  # of the copies between, of the first, of the last
        if link.count > 2:
            self._count(self.part, link.count - 2)

    @property
    def least(self) -> int:
        """What all copies cost at least, by what is known now."""
        return self.value + (self.link.count - self.counted) * self.part.bound

    def hand_over(self, rest: _Part) -> None:
        """Let the rest pay the first copy's deposit, and get the last one's."""
        rest.engine.charge(self.link.first, self.between.deposit)
        rest.engine.charge(self.link.last, -self.between.deposit)

    def meet(self, rest: _Part, good: int) -> None:
        """Move deposits between the copies at the ends and the rest, which together cost no more than `good` in what is of interest."""
        link = self.link
        first, last = (link.entry, link.first), (link.exit, link.last)
        for ends in [[first], [last]] if link.count > 1 else [[first, last]]:
            part, charged = _Part(self.part.engine), self.part.engine.charged.copy()
            seams = [_Seam(part, node, rest, place, self.good) for node, place in ends]
            _sweep([part, rest], seams, good - (self.least - self.part.bound), narrowing=True)
            self._count(part, 1)
            self.part.engine.charge_only(charged)

    def _count(self, part: _Part, copies: int) -> None:
        """So many copies cost what the messages say."""
        self._more.append([costs - part.bound for costs in part.in_full(part.conditionals())])
        self.value += copies * part.bound
        self.counted += copies

    def more(self) -> list[Array]:
        """How much more than `value` the copies cost if one of them uses a strategy."""
        return [np.minimum.reduce(costs) for costs in zip(*self._more, strict=True)]


class _Seam:
    """Two nodes of parts that are one node: what the first is charged, the other is paid."""

    def __init__(self, one: _Part, u: int, other: _Part, w: int, good: int) -> None:
        self.ends = (one, u), (other, w)
        self.deposit = np.zeros(len(one.kept[u]), dtype=np.int64)
        self.largest = LARGEST * max(1, good)

    def settle(self, conditionals: Mapping[_Part, Sequence[Array]]) -> None:
        """Let no strategy cost more on one side than on the other, in whole units, so that bounds can be rounded up to these.

        Half of what a strategy costs above the least at both ends is never more than what it does with one at each.
        """
        (one, u), (other, w) = self.ends
        above_u, above_w = (conditionals[part][node] - conditionals[part][node].min() for part, node in self.ends)
        before, self.deposit = self.deposit, np.clip(self.deposit + (above_w - above_u) // 2, -self.largest, self.largest)
        one.engine.charge(u, self.deposit - before)
        other.engine.charge(w, before - self.deposit)

    @property
    def is_even(self) -> bool:
        """Whether both sides have the same strategies left."""
        (one, u), (other, w) = self.ends
        return np.array_equal(one.kept[u], other.kept[w])

    def agree(self, left: Mapping[_Part, Kept]) -> None:
        """Let both sides drop what one would drop."""
        (one, u), (other, w) = self.ends
        common = np.intersect1d(one.kept[u][left[one][u]], other.kept[w][left[other][w]])
        for part, node in self.ends:
            left[part][node] = np.searchsorted(part.kept[node], common)

    def narrow(self, left: Mapping[_Part, Kept]) -> None:
        """Go on with these strategies."""
        one, u = self.ends[0]
        self.deposit = self.deposit[left[one][u]]


def _sweep(parts: Sequence[_Part], seams: Sequence[_Seam], good: int, *, narrowing: bool = False) -> None:
    """Sweep and settle until the bounds together are `good`, or stand still as far as that matters.

    With `narrowing`, strategies are dropped that only choices use which cost more than that.
    """
    last, lacked = -FORBIDDEN, FORBIDDEN
    for _ in range(MANY):
        conditionals = {part: part.conditionals(sweeps=1) for part in parts}
        now = sum(part.bound for part in parts)
        if now >= good or 0 <= now - last <= max(abs(now) >> STILL, int((good - now) * WORTH_A_SWEEP)):
            break
        last, lacking = now, good - now
        if narrowing and lacking <= CLOSER * lacked:
            lacked = lacking
            _narrow(seams, conditionals, lacking)
        for seam in seams:
            seam.settle(conditionals)


def _narrow(seams: Sequence[_Seam], conditionals: dict[_Part, list[Array]], slack: int) -> None:
    """Drop the strategies that only choices use which cost so much more than the bound, if they are many or one side lacks them."""
    left = {part: [np.flatnonzero(costs <= part.bound + slack) for costs in found] for part, found in conditionals.items()}
    for seam in seams:
        seam.agree(left)
    before, after = (sum(sum(map(len, costs)) for costs in found.values()) for found in (conditionals, left))
    if after > WORTH_DROPPING * before and all(seam.is_even for seam in seams):
        return
    for seam in seams:
        seam.narrow(left)
    for part, some in left.items():
        part.narrow(some)
        conditionals[part] = [costs[kept] for costs, kept in zip(conditionals[part], some, strict=True)]
