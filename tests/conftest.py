"""Worker processes that serve all tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from autoplan.runtime.verify.pool import WorkerPool


@pytest.fixture(scope="session")
def pool() -> Iterator[WorkerPool]:
    """Four processes, started once."""
    with WorkerPool(4) as workers:
        yield workers


@pytest.fixture
def one_thread() -> Iterator[None]:
    """For tiny tensors: several threads would only wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
