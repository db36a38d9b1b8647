"""The shapes that so many devices can be arranged in."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from autoplan.placement import Mesh, parse_mesh


def mesh_shapes(devices: int, per_node: int, most_axes: int) -> list[Mesh]:
    """Every mesh of that many devices, few axes first, with no axis of one device.

    Inside a node all links are equal, and the order of axes says nothing: one mesh stands for all orders. Beyond, the last axes
    are those inside a node, and each order is a mesh of its own.
    """
    shapes = [shape for axes in range(1, most_axes + 1) for shape in _factors(devices, axes)]
    if devices <= per_node:
        shapes = [shape for shape in shapes if list(shape) == sorted(shape)]
    return [parse_mesh(shape_text(shape)) for shape in shapes]


def shape_text(shape: Sequence[int]) -> str:
    """A shape as `--mesh` takes it: `2x4`."""
    return "x".join(map(str, shape))


def _factors(number: int, count: int) -> Iterator[tuple[int, ...]]:
    """Ordered products of `count` numbers, none of them 1 but where it stands alone."""
    if count == 1:
        yield (number,)
        return
    for first in range(2, number // 2 + 1):
        if number % first == 0:
            yield from ((first, *rest) for rest in _factors(number // first, count - 1) if 1 not in rest)
