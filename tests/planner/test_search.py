"""Walks among what is close to the bound, forced on small models that would be solved without."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from random_models import tight_model

from autoplan.planner.solver import search
from autoplan.planner.solver.bound import Bound


@pytest.mark.parametrize("seed", range(12))
def test_walks_near_the_bound_meet_choices_that_fit_and_the_search_goes_on_to_the_best(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    model, fitting = tight_model(seed)
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
    monkeypatch.setattr(search, "is_far", lambda cost, proved: True)  # however near the best is
    monkeypatch.setattr(search, "NEARBY", (0.5, 10.0))
    found = search.minimise_cost(model, None)
    assert found is not None and found.finished
    assert found.cost == found.bound == min(fitting.values())
    assert len(walked) == 2
    assert all(min(fitting.values()) <= cost for cost in met)
