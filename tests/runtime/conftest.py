"""Worker processes that serve all tests, and no leaking of torch's generator."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from autoplan.runtime.pool import WorkerPool


@pytest.fixture(scope="session")
def pool() -> Iterator[WorkerPool]:
    """Four processes, started once."""
    with WorkerPool(4) as workers:
        yield workers


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    with torch.random.fork_rng():
        yield
    torch.set_num_threads(before)
