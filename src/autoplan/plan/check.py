"""Whether placements can be: a tensor of this shape, cut over this mesh. Each answer is ready to print."""

from __future__ import annotations

from collections.abc import Iterator

from autoplan.placement import Mesh, Placements, Shard

_DIM_NAMES = {1: ("elements",), 2: ("rows", "columns")}


def cutting_problems(shape: tuple[int, ...], placements: Placements, mesh: Mesh) -> Iterator[tuple[str, str]]:
    """What is wrong with cutting `shape` so, as (problem, remedy); nothing if it can be done."""
    local = list(shape)
    for placement, axis, size in zip(placements, mesh.names, mesh.shape, strict=False):
        if not isinstance(placement, Shard):
            continue
        dim, groups = placement.dim, placement.groups
        if dim >= len(shape):
            yield f"{placement} on {axis} of a tensor with {_dims(len(shape))}, shape {list(shape)}", _legal_dims(len(shape))
        elif local[dim] % (groups * size):
            yield f"{placement} on {axis}={size} does not divide {_extent(shape, local[dim], dim, groups)}", _divisors(local[dim], groups)
        else:
            local[dim] //= size


def _extent(shape: tuple[int, ...], size: int, dim: int, groups: int) -> str:
    """What is to be cut: `4096 rows`, `12 of dim 2`, `768 rows in 3 groups`, `50 rows (of 100, cut by the axes before)`."""
    names = _DIM_NAMES.get(len(shape))
    extent = f"{size} {names[dim]}" if names else f"{size} of dim {dim}"
    extent += f" in {groups} groups" if groups > 1 else ""
    return extent if size == shape[dim] else f"{extent} (of {shape[dim]}, cut by the axes before)"


def _divisors(size: int, groups: int) -> str:
    """Up to four axis sizes that would do, the smallest ones."""
    if size % groups:
        return f"{groups} groups do not divide {size}"
    share = size // groups
    found = [n for n in range(2, min(share, 4096) + 1) if share % n == 0][:4]
    return f"sizes that divide: {', '.join(map(str, found))}" if found else "no size divides it; write R"


def _dims(count: int) -> str:
    return "1 dim" if count == 1 else f"{count} dims"


def _legal_dims(count: int) -> str:
    return "a scalar cannot be split; write R" if count == 0 else "the only dim is 0" if count == 1 else f"dims are 0 to {count - 1}"
