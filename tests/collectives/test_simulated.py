"""Simulated ranks: what a collective gives each of them, what is counted, and how a rank that fails ends the run."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest
import torch
from redistribution_cases import mesh_of
from torch import Tensor

from autoplan.collectives import SimulatedCollectives, run_simulated, simulated
from autoplan.collectives.base import index_in_group

GRID = mesh_of(2, 2)
TIMEOUT_S = 8.0  # in place of the 120 s after which a rank gives up waiting; threads take far less to start and to end


def rank_of(group: SimulatedCollectives) -> int:
    return 2 * group.coordinate[0] + group.coordinate[1]


@pytest.mark.parametrize(
    ("call", "expected"),
    [
        (lambda g, t: g.all_gather(t, (0,)), [[0, 0, 2, 2], [1, 1, 3, 3], [0, 0, 2, 2], [1, 1, 3, 3]]),
        (lambda g, t: g.all_gather(t, (1,)), [[0, 0, 1, 1], [0, 0, 1, 1], [2, 2, 3, 3], [2, 2, 3, 3]]),
        (lambda g, t: g.all_gather(t, (0, 1)), [[0, 0, 1, 1, 2, 2, 3, 3]] * 4),
        (lambda g, t: g.all_reduce(t, (1,)), [[1, 1], [1, 1], [5, 5], [5, 5]]),
        (lambda g, t: g.all_reduce(t, (0, 1), "max"), [[3, 3]] * 4),
        (lambda g, t: g.reduce_scatter(t + torch.tensor([0.0, 10.0]), (0,)), [[2], [4], [22], [24]]),
        (lambda g, t: g.all_to_all(t + torch.tensor([0.0, 10.0]), (1,)), [[0, 1], [10, 11], [2, 3], [12, 13]]),
    ],
)
def test_collectives_by_hand(call: Callable[[SimulatedCollectives, Tensor], Tensor], expected: list[list[float]]) -> None:
    """Rank r of 2x2 holds [r, r]; the ranks of one column share axis 0, those of one row axis 1."""
    found = run_simulated(GRID, lambda group: call(group, torch.full((2,), float(rank_of(group)))))
    assert [tensor.tolist() for tensor in found] == expected


def test_results_come_in_rank_order_and_groups_count_row_major() -> None:
    assert run_simulated(GRID, lambda group: (group.coordinate, index_in_group(group, (0, 1)))) == [
        ((0, 0), 0),
        ((0, 1), 1),
        ((1, 0), 2),
        ((1, 1), 3),
    ]


def test_every_collective_is_counted_by_kind_and_axes() -> None:
    def rank_main(group: SimulatedCollectives) -> dict:
        tensor = torch.ones(4)
        group.all_reduce(group.all_reduce(tensor, (0,)), (0,))
        group.all_gather(tensor, (0, 1))
        group.reduce_scatter(tensor, (1,))
        group.all_to_all(tensor, (1,))
        return dict(group.counts)

    expected = {("all-reduce", (0,)): 2, ("all-gather", (0, 1)): 1, ("reduce-scatter", (1,)): 1, ("all-to-all", (1,)): 1}
    assert run_simulated(GRID, rank_main) == [expected] * 4


def test_a_rank_keeps_its_tensor_as_it_was() -> None:
    def rank_main(group: SimulatedCollectives) -> list[float]:
        tensor = torch.full((2,), float(rank_of(group)))
        group.all_reduce(tensor, (0, 1))
        return tensor.tolist()

    assert run_simulated(GRID, rank_main) == [[0, 0], [1, 1], [2, 2], [3, 3]]


@pytest.mark.parametrize("waits", [True, False], ids=["while the others wait", "before the others come"])
def test_an_error_in_one_rank_is_raised_at_once_and_not_what_follows_from_it(waits: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(simulated, "MEETING_TIMEOUT_S", TIMEOUT_S)

    def rank_main(group: SimulatedCollectives) -> Tensor:
        fails = rank_of(group) == 1
        if fails == waits:
            time.sleep(0.3)  # whoever comes second
        if fails:
            raise ValueError("rank 1 has lost its head")
        return group.all_reduce(torch.ones(1), (0, 1))

    start = time.monotonic()
    with pytest.raises(ValueError, match="rank 1 has lost its head"):
        run_simulated(GRID, rank_main)
    assert time.monotonic() - start < TIMEOUT_S


def test_of_several_errors_the_first_ranks_is_raised() -> None:
    def rank_main(group: SimulatedCollectives) -> None:
        raise KeyError(rank_of(group))

    with pytest.raises(KeyError, match="0"):
        run_simulated(GRID, rank_main)
