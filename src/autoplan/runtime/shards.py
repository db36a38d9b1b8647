"""Local parts of global tensors, cut without talking to other ranks."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from autoplan.collectives import run_steps
from autoplan.placement import Mesh, Placements, R, forward_of
from autoplan.redistribution import lower


@dataclass(frozen=True, slots=True)
class _Place:
    """A rank that only cuts: `run_steps` asks for no more where no step is a collective."""

    mesh: Mesh
    coordinate: tuple[int, ...]


def local_part(tensor: Tensor, placements: Placements, mesh: Mesh, coordinate: tuple[int, ...]) -> Tensor:
    """What the rank at `coordinate` holds of a global tensor; a view where it can be."""
    steps = lower(tuple(R for _ in placements), forward_of(placements), mesh)
    return run_steps(tensor, steps, _Place(mesh, coordinate))  # type: ignore[arg-type]
