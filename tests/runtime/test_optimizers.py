"""Fused optimizers over DTensors: the same steps as on whole tensors."""

from __future__ import annotations

import process_jobs

from autoplan.runtime.verify.pool import WorkerPool


def test_fused_optimizers_step_as_on_one_device(pool: WorkerPool) -> None:
    for found in pool.run(process_jobs.fused_steps):
        assert len(found) == 7
        for name, difference in found:
            assert difference < 1e-6, name  # fp32, the same arithmetic
