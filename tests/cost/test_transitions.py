"""The table of redistributions says what lowering one pair after another says."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

import numpy as np
import pytest

from autoplan.cost.communication import steps_seconds
from autoplan.cost.hardware import load_hardware
from autoplan.cost.transitions import Moves, TransitionTable
from autoplan.placement import Mesh, P, Placement, Placements, R, Shard
from autoplan.redistribution import collectives, lower

STATES: list[Placement] = [R, P, Shard(0), Shard(1), Shard(2), Shard(0, 2), Shard(1, 4)]


def announced(table: TransitionTable, sources: Sequence[Placements], targets: Sequence[Placements]) -> Moves:
    return table.announce([table.number(placements) for placements in sources], [table.number(placements) for placements in targets])


@pytest.mark.parametrize("shape", [(4,), (2, 4), (4, 8), (1, 4), (2, 2, 2), (2, 1, 2)])
@pytest.mark.parametrize("profile", ["h200-sxm", "cpu-gloo", "test-free-links"])
def test_every_pair_is_priced_as_its_steps(shape: tuple[int, ...], profile: str) -> None:
    mesh, hardware = Mesh(tuple("xyz"[: len(shape)]), shape), load_hardware(profile)
    states: list[Placements] = list(product(STATES[: 7 if len(shape) < 3 else 5], repeat=len(shape)))
    table = TransitionTable(mesh, hardware)
    some = states[:: max(1, len(states) // 40)]
    moves = announced(table, some, states)
    announced(table, states, states)  # in the company of all others
    for nbytes in (1e3, 3e8):
        wanted = [[steps_seconds(lower(src, dst, mesh), nbytes, mesh, hardware) for dst in states] for src in some]
        # the same numbers, added up in another order
        np.testing.assert_allclose(table.seconds(nbytes, moves), np.array(wanted), rtol=1e-12)
    counts = [[len(collectives(lower(src, dst, mesh))) for dst in states] for src in some]
    np.testing.assert_array_equal(table.collectives(moves), np.array(counts))


def test_what_is_asked_before_more_is_announced_stays_right() -> None:
    mesh, hardware = Mesh(("x", "y"), (2, 4)), load_hardware("h200-sxm")
    table = TransitionTable(mesh, hardware)
    first = announced(table, [(R, R)], [(Shard(0), R), (P, P)])
    before = table.seconds(1e6, first)
    second = announced(table, [(Shard(1), Shard(0)), (P, R)], [(R, R)])
    np.testing.assert_array_equal(table.seconds(1e6, first), before)
    wanted = [[steps_seconds(lower(src, (R, R), mesh), 1e6, mesh, hardware)] for src in [(Shard(1), Shard(0)), (P, R)]]
    np.testing.assert_allclose(table.seconds(1e6, second), np.array(wanted), rtol=1e-12)
