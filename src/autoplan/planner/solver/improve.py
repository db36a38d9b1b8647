"""Better choices from a choice: the best strategies of all nodes of a random forest at once, the other nodes as they are.

The minimum over the nodes of a forest is exact (dynamic programming from the leaves). Memory joins by prices, which rise on the
rows that a choice exceeds and fall slowly where nothing is exceeded, so that choices near the limits are met from both sides.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from random import Random
from time import perf_counter

import numpy as np

from autoplan.planner.solver.around import Around
from autoplan.planner.solver.model import Array, Model
from autoplan.planner.solver.priced import CAP, Priced
from autoplan.planner.solver.thin import ThinPart

RISE = 1.1  # of the prices of exceeded rows
FALL = 0.95  # of all prices after a choice within the limits
SLACKENING = 0.1  # of the price of a row of which nothing is used goes each time, of others in proportion to what is left
FIRST_PRICE = 0.1  # of the cost per unit of limit: what the row exceeded most begins at
SHARE = 0.05  # of all prices: the same, if that is more
FORESTS = 4  # so many steps take a narrow part once, else forests, which cost less and differ more
LARGEST_TABLE = 20_000  # entries, for narrow parts

Meet = Callable[[Sequence[int], Array], int | None]


class Improver:
    """A walk through choices of a model; every choice within the limits is shown to `meet`, with what it uses."""

    def __init__(self, model: Model, magnitude: int, choice: Sequence[int], prices: Array, meet: Meet, seed: int = 0) -> None:
        """`magnitude` is about the cost of a good choice; the walk begins at `choice` and under `prices` of the rows."""
        self.model, self.meet, self.magnitude = model, meet, max(1, magnitude)
        self.random = Random(seed)
        self.sizes = [len(costs) for costs in model.costs]
        self.steps = 1
        self.near = model.neighbours()
        degree = max(map(len, self.near), default=0)
        self.priced = Priced(model, self.magnitude, min(CAP, (1 << 61) // (degree + 4)))
        self.around = Around(model, self.near, self.priced)
        self.start = tuple(choice)
        self.choice, self.prices = list(choice), prices.copy()
        self.used = model.used_by(self.choice)

    def run(self, patience: int, deadline: float | None) -> None:
        """Go on until so many forests in a row have led to nothing better, or the time is over."""
        best, idle = self.meet(self.choice, self.used), 0
        while idle < patience and (deadline is None or perf_counter() < deadline):
            self._step()
            known = self.meet(self.choice, self.used)
            idle = 0 if known is not None and (best is None or known < best) else idle + 1
            best = known

    def _step(self) -> None:
        self._move_prices()
        self._charge()
        if self.steps % FORESTS:
            self._choose(self._forest())
        else:
            self._choose_thin(ThinPart(self.near, self.sizes, self.random, LARGEST_TABLE))
        self.steps += 1
        self.used = self.model.used_by(self.choice)

    def _charge(self, weights: Array | None = None) -> None:
        self.priced.set_prices(self.prices, weights=weights)
        self.around.take_over(self.priced.charged_edges)

    def _move_prices(self) -> None:
        excess = self.used - self.model.limits
        over = excess > 0
        if not over.any():
            self.prices *= FALL
        else:
            worst = int(excess.argmax())
            if not self.prices[worst]:
                least = FIRST_PRICE * self.magnitude / max(1, abs(int(self.model.limits[worst])) + int(self.used[worst]))
                self.prices[worst] = max(least, SHARE * self.prices.sum())
            self.prices[over] *= RISE
        self.prices *= 1 - SLACKENING * np.clip(-2 * excess / np.maximum(1, np.abs(self.model.limits) + self.used), 0, 1)

    def _forest(self) -> dict[int, int]:
        """Nodes of a random induced forest, each after its parent (-1: a root)."""
        order = list(range(len(self.near)))
        self.random.shuffle(order)
        tree = list(range(len(order)))

        def root(u: int) -> int:
            while tree[u] != u:
                tree[u] = tree[tree[u]]
                u = tree[u]
            return u

        inside: set[int] = set()
        for u in order:
            roots = [root(w) for w in self.near[u] if w in inside]
            if len(set(roots)) == len(roots):
                inside.add(u)
                for w in roots:
                    tree[w] = u
        parents: dict[int, int] = {}
        for u in order:
            if u in inside and u not in parents:
                parents[u] = -1
                stack = [u]
                while stack:
                    node = stack.pop()
                    for w in self.near[node]:
                        if w in inside and w != parents[node]:
                            parents[w] = node
                            stack.append(w)
        return parents

    def _choose_thin(self, part: ThinPart) -> None:
        """The cheapest strategies of the nodes of a narrow part under the prices."""
        chosen = np.array(self.choice)
        part.choose(chosen, self.around.sums(chosen, part.is_fixed), self.priced.edge)
        self.choice = chosen.tolist()

    def _choose(self, parents: dict[int, int]) -> None:
        """The cheapest strategies of the forest's nodes under the prices."""
        priced, choice = self.priced, self.choice
        chosen, outside = np.array(choice), np.ones(len(choice), dtype=bool)
        outside[list(parents)] = False
        totals = self.around.sums(chosen, outside)
        best: dict[int, Array] = {}
        for u in reversed(parents):
            parent = parents[u]
            if parent >= 0:
                table = priced.edge(parent, u) + totals[u]
                best[u] = table.argmin(1)
                least = table.min(1)
                totals[parent] += np.minimum(least - least.min(), priced.cap)
        for u, parent in parents.items():
            choice[u] = int(best[u][choice[parent]]) if parent >= 0 else int(totals[u].argmin())
