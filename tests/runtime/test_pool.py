"""The pool: many jobs, and errors that say what happened."""

from __future__ import annotations

import process_jobs
import pytest

from autoplan.runtime.verify.pool import WorkerError, WorkerPool


def test_every_rank_runs_every_job(pool: WorkerPool) -> None:
    assert pool.run(process_jobs.rank_and, 2) == [(0, 8), (1, 8), (2, 8), (3, 8)]
    assert pool.run(process_jobs.rank_and, 1) == [(0, 4), (1, 4), (2, 4), (3, 4)]


def test_a_worker_that_dies_is_named_with_its_last_words_and_the_pool_starts_anew() -> None:
    with WorkerPool(2) as own:
        with pytest.raises(WorkerError, match="(?s)rank 1 of 2 died with exit code 9.*about to go"):
            own.run(process_jobs.die)
        assert own.run(process_jobs.rank_and, 3) == [(0, 6), (1, 6)]


def test_an_exception_comes_with_its_traceback_and_the_workers_stay(pool: WorkerPool) -> None:
    before = pool.run(process_jobs.process)
    with pytest.raises(WorkerError, match="(?s)rank 1: Traceback.*rank one does not like this"):
        pool.run(process_jobs.fail)
    assert pool.run(process_jobs.process) == before
