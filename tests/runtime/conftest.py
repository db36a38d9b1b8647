"""One thread, no leaking of torch's generator, and a mesh of one process."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
import torch.distributed as dist

from autoplan.runtime.verify.runs import worker_mesh


@pytest.fixture(autouse=True)
def _alone(one_thread: None) -> Iterator[None]:
    with torch.random.fork_rng():
        yield


@pytest.fixture
def one_rank() -> Iterator[None]:
    """This process as a mesh of its own."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    worker_mesh.cache_clear()
    dist.destroy_process_group()
