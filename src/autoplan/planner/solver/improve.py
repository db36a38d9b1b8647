"""Better choices from a choice: the best strategies of all nodes of a random forest at once, the other nodes as they are.

The minimum over the nodes of a forest is exact (dynamic programming from the leaves). Memory joins by prices, which rise on the
rows that a choice exceeds and fall slowly where nothing is exceeded, so that choices near the limits are met from both sides.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
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
HUBS = 200  # one node of so many is tried as a hub
COMBINATIONS = 100  # of strategies of hubs that are looked at together

Meet = Callable[[Sequence[int], Array], int | None]
End = tuple[int, tuple[int, ...]]
"""What a choice costs, and the choice."""


class Met:
    """The best choice met within the limits, if it is cheaper than the one to begin with."""

    def __init__(self, model: Model, best: End | None = None) -> None:
        self.model, self.best = model, best

    def meet(self, choice: Sequence[int], used: Array) -> int | None:
        """Remember it if it is the best, and answer what that costs."""
        if (used <= self.model.limits).all():
            cost = self.model.cost_of(choice)
            if cost is not None and (self.best is None or cost < self.best[0]):
                self.best = cost, tuple(choice)
        return None if self.best is None else self.best[0]


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
        self.start = tuple(choice), prices.astype(float)
        self._begin()

    def _begin(self) -> None:
        choice, prices = self.start
        self.choice, self.prices = list(choice), prices.copy()
        self.used = self.model.used_by(self.choice)

    def again(self, meet: Meet, seed: int) -> Improver:
        """The same walk from its beginning, led by other chances: making a new one takes seconds where problems are large."""
        self.meet, self.random, self.steps = meet, Random(seed), 1
        self._begin()
        return self

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
            self._choose_forest(self._hubs())
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

    def _choose_forest(self, hubs: Sequence[tuple[int, ...]]) -> None:
        self._choose(self._forest({u: number for number, group in enumerate(hubs) for u in group}), hubs)

    def _hubs(self) -> list[tuple[int, ...]]:
        """Nodes of many neighbours, at random, alone or with another one that has most of the same, none next to one of other groups."""
        order = sorted(range(len(self.near)), key=lambda u: -len(self.near[u]) * self.random.random())
        groups: list[tuple[int, ...]] = []
        taken: set[int] = set()
        for u in order[: max(1, len(order) // HUBS)]:
            if self.sizes[u] > COMBINATIONS or u in taken:
                continue
            common = Counter(x for w in self.near[u] for x in self.near[w] if x not in taken and x != u)
            twin = [x for x, count in common.most_common(1) if 2 * count > len(self.near[u])]
            is_pair = twin and self.sizes[twin[0]] * self.sizes[u] <= COMBINATIONS and self.random.random() < 0.5
            groups.append((u, twin[0]) if is_pair else (u,))
            taken.update(groups[-1], *(self.near[x] for x in groups[-1]))
        return groups

    def _forest(self, hubs: Mapping[int, int]) -> dict[int, int]:
        """Nodes of a random induced forest, each after its parent (-1: a root), none a hub, no tree next to hubs of two groups."""
        order = list(range(len(self.near)))
        self.random.shuffle(order)
        tree, group = list(range(len(order))), [-1] * len(order)  # the group of a tree is that of its root
        beside: dict[int, set[int]] = {}
        for u, number in hubs.items():
            for w in self.near[u]:
                beside.setdefault(w, set()).add(number)

        def root(u: int) -> int:
            while tree[u] != u:
                tree[u] = tree[tree[u]]
                u = tree[u]
            return u

        inside: set[int] = set()
        for u in order:
            roots = [root(w) for w in self.near[u] if w in inside]
            if u in hubs or len(set(roots)) < len(roots):
                continue
            groups = beside.get(u, set()).union(group[w] for w in roots) - {-1}
            if len(groups) <= 1:
                inside.add(u)
                group[u] = max(groups, default=-1)
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

    def _choose(self, parents: Mapping[int, int], hubs: Sequence[tuple[int, ...]]) -> None:
        """The cheapest strategies of the forest's nodes and the hubs under the prices.

        What a tree next to hubs costs is counted for each combination of their strategies: an axis before the others.
        """
        priced, choice = self.priced, self.choice
        chosen, outside = np.array(choice), np.ones(len(choice), dtype=bool)
        outside[[*parents, *(u for group in hubs for u in group)]] = False
        totals = self.around.sums(chosen, outside)
        group_of: dict[int, int] = {}
        combinations, costs = [], []
        for number, group in enumerate(hubs):
            strategies = np.indices([self.sizes[u] for u in group]).reshape(len(group), -1)
            cost = np.sum([totals[u][own] for u, own in zip(group, strategies, strict=True)], axis=0)
            if len(group) == 2 and group[1] in self.near[group[0]]:
                cost = cost + priced.edge(*group)[strategies[0], strategies[1]]
            for u, own in zip(group, strategies, strict=True):
                for w in self.near[u]:
                    if w in parents:
                        totals[w] = totals[w] + priced.edge(u, w)[own]
                        group_of[w] = number
            combinations.append(strategies)
            costs.append(cost)
        best: dict[int, Array] = {}
        for u in reversed(parents):
            parent = parents[u]
            if parent >= 0:
                table = priced.edge(parent, u) + totals[u][..., None, :]
                best[u] = table.argmin(-1)
                least = table.min(-1)
                totals[parent] = totals[parent] + np.minimum(least - least.min(), priced.cap)
                if u in group_of:
                    group_of[parent] = group_of[u]
            elif u in group_of:
                least = totals[u].min(-1)
                costs[group_of[u]] = costs[group_of[u]] + np.minimum(least - least.min(), priced.cap)
        cheapest = [int(cost.argmin()) for cost in costs]
        for group, strategies, c in zip(hubs, combinations, cheapest, strict=True):
            for u, own in zip(group, strategies, strict=True):
                choice[u] = int(own[c])
        for u, parent in parents.items():
            mine = best[u] if parent >= 0 else totals[u]
            if u in group_of:
                mine = mine[cheapest[group_of[u]]]
            choice[u] = int(mine[choice[parent]] if parent >= 0 else mine.argmin())
