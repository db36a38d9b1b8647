"""Meshes of so many devices."""

from __future__ import annotations

from math import prod

import pytest

from autoplan.planner.shapes import mesh_shapes


def shapes(devices: int, per_node: int = 8, most_axes: int = 3) -> list[tuple[int, ...]]:
    return [mesh.shape for mesh in mesh_shapes(devices, per_node, most_axes)]


def test_inside_a_node_the_order_of_axes_says_nothing() -> None:
    assert shapes(8) == [(8,), (2, 4), (2, 2, 2)]
    assert shapes(6, most_axes=2) == [(6,), (2, 3)]
    assert shapes(1) == [(1,)] and shapes(2) == [(2,)] and shapes(7) == [(7,)]


def test_beyond_a_node_every_order_is_a_mesh() -> None:
    assert shapes(16, most_axes=2) == [(16,), (2, 8), (4, 4), (8, 2)]
    assert shapes(16)[4:] == [(2, 2, 4), (2, 4, 2), (4, 2, 2)]


@pytest.mark.parametrize("devices", [1, 12, 30, 64, 97])
def test_no_shape_comes_twice_and_all_have_the_devices(devices: int) -> None:
    found = shapes(devices)
    assert len(set(found)) == len(found)
    assert all(prod(shape) == devices and (1 not in shape or shape == (1,)) for shape in found)
    assert [len(shape) for shape in found] == sorted(len(shape) for shape in found)
