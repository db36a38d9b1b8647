"""How a parameter of a block gets from where it is stored to where it is read, and its gradient back, with the others of the block."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from autoplan.cost.transitions import Moves, Start
from autoplan.planner.prices import Array, Part, ValuePrices

Way = Literal["forward", "again", "recomputed", "backward"]
"""Forward, what backward gathers again because it needs it, or only because a block that runs again does, and gradients."""
Paid = tuple[Way, Start]
Parts = Mapping[Paid, float]


@dataclass(frozen=True, slots=True)
class Travel:
    """The ways of one parameter; `states` is the number of those in which it is needed.

    A collective that several parameters are in is started once. Each of these pays for a part, all of the block together for no more
    than the whole, whichever are in it: what a choice costs by `parts` is never more than it truly does, and as much if those that are
    in it pay for all. Unless said otherwise everyone may be in it.
    """

    prices: ValuePrices
    forward: Moves
    backward: Moves | None
    states: int
    parts: Parts = field(default_factory=dict)

    def part(self, paid: Paid) -> float:
        """The part of a start that it pays for."""
        way, _ = paid
        return self.parts.get(paid, {"again": self.prices.part_again, "recomputed": 0.0}.get(way, self.prices.part))

    def seconds(self, *, alone: bool = False) -> tuple[Array, Array, tuple[Array, Array]]:
        """Seconds forward [p, f] and backward [p, q], and those of the host; of a parameter that pays for all starts if it is `alone`."""
        prices = self.prices

        def part_of(way: Way) -> Part:
            return lambda start: 1.0 if alone else self.part((way, start))

        forward_s = prices.forward_s(self.forward) + prices.starts_s(self.forward, part_of("forward"))
        host_s = prices.host_s(self.forward, part_of("forward"))
        if prices.gathers_again:  # what is only cut, without talking to anyone, stays unless others of the block are gathered again
            talks, _ = self.talks()
            forward_s = forward_s + talks * (prices.forward_s(self.forward) + prices.starts_s(self.forward, part_of("again")))
            host_s = host_s + talks * prices.host_s(self.forward, part_of("again"))
        if self.backward is None:
            nothing = np.zeros((len(self.forward.sources), self.states))
            return forward_s, nothing, (host_s, nothing)
        backward_s = prices.backward_s(self.backward) + prices.starts_s(self.backward, part_of("backward"))
        return forward_s, backward_s.T, (host_s, prices.host_s(self.backward, part_of("backward")).T)

    def talks(self) -> tuple[Array, Array]:
        """Where ranks talk to each other: forward [p, f] and backward [p, q]."""
        table = self.prices.prices.transitions
        back = np.zeros((self.states, len(self.forward.sources))) if self.backward is None else table.collectives(self.backward)
        return table.collectives(self.forward) > 0, back.T > 0

    def recomputed_s(self) -> Array:
        """Seconds [p, f] of gathering what backward does not need where the block runs again: starts only where nobody is in them whom it needs."""
        return self.prices.forward_s(self.forward) + self.prices.starts_s(self.forward, lambda start: self.part(("recomputed", start)))

    @property
    def _forward_ways(self) -> tuple[Way, ...]:
        return ("forward", "again") if self.prices.gathers_again else ("forward",)

    def starts(self, made: int, classes: Iterable[int], states: Iterable[int]) -> set[Paid]:
        """The starts that it is in, from one produced state to these placements, and from these states back."""
        table = self.prices.prices.transitions
        forward = [table.starts_of(int(self.forward.sources[made]), int(self.forward.targets[used])) for used in classes]
        found: set[Paid] = {(way, start) for way in self._forward_ways for starts in forward for start in starts}
        for state in states if self.backward is not None else ():
            assert self.backward is not None
            starts = table.starts_of(int(self.backward.sources[state]), int(self.backward.targets[made]))
            found.update(("backward", start) for start in starts)
        return found

    def uses(self, paid: Paid) -> tuple[Array | None, Array | None]:
        """Where it is in a start: forward [p, f] and backward [p, q], None where it never is."""
        way, wanted = paid
        moves = self.backward if way == "backward" else self.forward if way in self._forward_ways else None
        if moves is None:
            return None, None
        used = self.prices.prices.transitions.starts(moves, lambda start: float(start == wanted)) > 0
        return (None, used.T) if way == "backward" else (used, None)
