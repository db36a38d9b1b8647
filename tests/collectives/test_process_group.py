"""Several tensors in one collective of processes."""

from __future__ import annotations

import group_jobs
import pytest
import torch

from autoplan.placement import Mesh
from autoplan.runtime.verify.pool import WorkerPool


@pytest.mark.parametrize("kind", ["all-gather", "reduce-scatter", "all-reduce"])
@pytest.mark.parametrize("axes", [(0,), (0, 1)])
def test_tensors_together_are_as_each_alone_and_operands_stay(pool: WorkerPool, kind: str, axes: tuple[int, ...]) -> None:
    shapes = [(4, 3), (8,), (4, 2, 5)]
    for together, alone in pool.run(group_jobs.together, kind, shapes, Mesh(("x", "y"), (2, 2)), axes):
        assert len(together) == len(shapes)
        assert all(map(torch.equal, together, alone))
