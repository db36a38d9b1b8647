"""Which parts of a whole tensor a rank holds."""

from __future__ import annotations

import pytest
import torch
from runtime_cases import mesh_of, placements

from autoplan.placement import fits
from autoplan.runtime.inputs import to_torch
from autoplan.runtime.shards import local_part
from autoplan.runtime.storage.boxes import Box, boxes

SHAPE = (24, 12)
STATES = ["R R", "S(0) R", "S(0) S(0)", "S(1) S(0)", "S(0,3) S(1)", "S(0) S(0,3)", "S(0,2) S(1,2)", "S(1) S(1,3)", "S(0,4) S(1)"]


@pytest.mark.parametrize("text", STATES)
def test_boxes_are_the_local_part(text: str) -> None:
    mesh, state = mesh_of(2, 2), placements(text)
    assert fits(SHAPE, state, mesh)
    whole = torch.arange(24 * 12).reshape(SHAPE)
    for coordinate in mesh.coordinates():
        expected = local_part(whole, state, mesh, coordinate)
        local = torch.full_like(expected, -1)
        for box in boxes(SHAPE, to_torch(state), mesh.shape, coordinate):
            assert local[box.local].eq(-1).all()  # boxes do not overlap
            local[box.local] = whole[box.whole]
        assert torch.equal(local, expected)


def test_a_grouped_shard_is_a_box_for_each_group_and_a_plain_one_is_one() -> None:
    mesh = mesh_of(2, 2)
    assert len(boxes(SHAPE, to_torch(placements("S(0,3) S(1)")), mesh.shape, (0, 0))) == 3
    assert boxes(SHAPE, to_torch(placements("S(0) S(0)")), mesh.shape, (1, 0)) == (Box((12, 0), (0, 0), (6, 12)),)


def test_a_scalar_is_one_box() -> None:
    assert boxes((), to_torch(placements("R R")), (2, 2), (0, 1)) == (Box((), (), ()),)


def test_a_dim_that_does_not_divide_is_cut_as_dtensor_cuts_it() -> None:
    sizes = [boxes((5,), to_torch(placements("S(0)")), (4,), (index,)) for index in range(4)]
    assert [[box.size[0] for box in found] for found in sizes] == [[2], [2], [1], []]
