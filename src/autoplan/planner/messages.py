"""Messages by what nodes stand for, so that a similar problem's bound begins where this one's ended.

Whatever messages a bound begins with, it is one. Those of a problem with other costs, fewer strategies or further values are mostly
close to the best: the same states cost about the same wherever they come from.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from autoplan.planner.pairwise import Place
from autoplan.planner.prices import Array
from autoplan.planner.solver.passing import Passing


@dataclass(frozen=True, slots=True)
class Messages:
    """By the names of two nodes what went to the first from the edge with the second; scaled for costs of about `magnitude`."""

    magnitude: int
    between: Mapping[tuple[object, object], Array]

    @classmethod
    def of(cls, engine: Passing, places: Sequence[Place]) -> Messages:
        """Those of an engine, whose nodes are at these places."""
        between = {}
        for u, w in engine.place:
            place = places[u]
            between[place.name, places[w].name] = message = np.zeros(place.size, dtype=np.int64)
            message[place.numbers] = engine.received(u, w)
        return cls(engine.magnitude, between)

    def hand_on(self, engine: Passing, places: Sequence[Place]) -> None:
        """Let an engine without messages, for costs of the same magnitude, begin with these as far as its nodes are known."""
        assert engine.magnitude == self.magnitude, "messages are scaled by it"
        known = {}
        for u, w in engine.place:
            message = self.between.get((places[u].name, places[w].name))
            if message is not None and len(message) == places[u].size:
                known[u, w] = message[places[u].numbers]
        engine.receive(known)
