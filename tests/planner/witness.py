"""A known choice followed through the reductions: after each of them there is one as good in what is left."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain
from typing import Any

import numpy as np

from autoplan.planner.solver.model import Model
from autoplan.planner.solver.reduce import _Reducer
from autoplan.planner.solver.trail import Kept, Merged, Step

Chosen = dict[int, int]


class Watched(_Reducer):
    """Reduces a model and asserts after each reduction that a choice is left that costs no more than `planted` and fits.

    `checks` counts the reductions that were looked at: all, or, with `changes_only`, those that left a step in the trail.
    """

    def __init__(self, model: Model, planted: Sequence[int], *, changes_only: bool = False) -> None:
        cost = model.cost_of(planted)
        assert cost is not None and model.fits(planted)
        self.paid, self.chosen, self.changes_only, self.checks, self.seen = cost, dict(enumerate(planted)), changes_only, 0, 0
        super().__init__(model, True)
        self._check("the beginning")

    def _push_edge(self, u: int, w: int) -> None:
        super()._push_edge(u, w)
        self._check(f"pushing edge {u}-{w}")

    def _push_usage(self, u: int) -> None:
        super()._push_usage(u)
        self._check(f"pushing the usage of {u}")

    def _drop_dominated(self, u: int) -> None:
        super()._drop_dominated(u)
        self._check(f"dropping dominated strategies of {u}")

    def _settle(self, u: int) -> None:
        super()._settle(u)
        self._check(f"settling {u}")

    def _merge_matching(self, u: int) -> bool:
        merged = super()._merge_matching(u)
        self._check(f"merging {u} with what matches")
        return merged

    def _take_out(self, u: int) -> None:
        super()._take_out(u)
        self._check(f"taking out {u}")

    def result(self) -> Any:
        """As without watching; the choice is as good in the rows that are left."""
        model, trail = super().result()
        assert self._is_as_good(model, [self.chosen[u] for u in trail.nodes]), "dropping superfluous rows loses the choice"
        return model, trail

    def _check(self, reduction: str) -> None:
        steps, self.seen = self.trail.steps[self.seen :], len(self.trail.steps)
        if self.changes_only and not steps:
            return
        self.checks += 1
        left = [u for u, costs in enumerate(self.costs) if costs is not None]
        model = self._snapshot(left)
        found = (chosen for chosen in _after(self.chosen, steps) if self._is_as_good(model, [chosen[u] for u in left]))
        chosen = next(found, None)
        assert chosen is not None, f"{reduction} leaves no choice that costs {self.paid} or less"
        self.chosen = chosen

    def _snapshot(self, left: Sequence[int]) -> Model:
        number = {u: position for position, u in enumerate(left)}
        edges = {(number[u], number[w]): edge for u in left for w, edge in self.near[u].items() if u < w}
        costs = [costs for costs in self.costs if costs is not None]
        return Model(costs, [self.usage[u] for u in left], edges, self.limits, self.constant)

    def _is_as_good(self, model: Model, choice: Sequence[int]) -> bool:
        cost = model.cost_of(choice)
        return cost is not None and cost <= self.paid and model.fits(choice)


def _after(chosen: Chosen, steps: Sequence[Step]) -> Iterator[Chosen]:
    """What a choice may have become by `steps`: the same if it is there, then each that differs from it in the nodes of the steps."""
    found: Iterator[Chosen] = iter((chosen,))
    for step in steps:
        found = chain.from_iterable(map(_stepper(step), found))
    return found


def _stepper(step: Step) -> Any:
    return lambda chosen: _stepped(chosen, step)


def _stepped(chosen: Chosen, step: Step) -> Iterator[Chosen]:
    if isinstance(step, Kept):
        yield from (chosen | {step.node: k} for k in _first(step.kept == chosen[step.node]))
        return
    rest = {u: s for u, s in chosen.items() if u != step.node}
    if isinstance(step, Merged):
        same = (step.of_node == chosen[step.node]) & (step.of_into == chosen[step.into])
        yield from (rest | {step.into: k} for k in _first(same))
    else:
        yield rest


def _first(marked: np.ndarray) -> Iterator[int]:
    """All positions, the marked ones before the others."""
    yield from np.flatnonzero(marked).tolist()
    yield from np.flatnonzero(~marked).tolist()
