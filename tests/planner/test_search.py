"""Walks among what is close to the bound, forced on small models that would be solved without."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from random_models import choices

from autoplan.planner.solver import search
from autoplan.planner.solver.bound import Bound
from autoplan.planner.solver.model import Edge, Model, Span


def tight(seed: int) -> Model:
    """What costs little takes much memory, of which there is about half of what could be wanted."""
    random = np.random.default_rng(seed)
    costs = [random.integers(0, 40, size) for size in random.integers(2, 4, size=6)]
    usage = [{Span(0, 1): (40 - own) // 2 + random.integers(0, 9, len(own))} for own in costs]
    edges = {(u, u + 1): Edge(random.integers(0, 12, (len(costs[u]), len(costs[u + 1])))) for u in range(len(costs) - 1)}
    return Model(costs, usage, edges, np.array([sum(int(own[Span(0, 1)].mean()) for own in usage)]))


@pytest.mark.parametrize("seed", range(12))
def test_walks_near_the_bound_meet_choices_that_fit_and_the_search_goes_on_to_the_best(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tight(seed)
    fitting = choices(model)
    met: list[int] = []
    walked: list[int] = []
    take, walk = search._Search._take, search._Search._walk_nearby

    def noted(self: search._Search, choice: Sequence[int], cost: int) -> None:
        assert self.reduced.cost_of(choice) == cost
        assert self.reduced.fits(choice)
        met.append(cost)
        take(self, choice, cost)

    def walking(self: search._Search, below: Bound, threshold: int) -> None:
        walked.append(threshold)
        walk(self, below, threshold)

    monkeypatch.setattr(search._Search, "_take", noted)
    monkeypatch.setattr(search._Search, "_walk_nearby", walking)
    monkeypatch.setattr(search, "EASY", -1)  # nothing is left to the bands without walks
    monkeypatch.setattr(search, "FAR", -1.0)  # however near the best is
    monkeypatch.setattr(search, "NEARBY", (0.5, 10.0))
    found = search.minimise_cost(model, None)
    assert found is not None and found.finished
    assert found.cost == found.bound == min(fitting.values())
    assert len(walked) == 2
    assert all(min(fitting.values()) <= cost for cost in met)
