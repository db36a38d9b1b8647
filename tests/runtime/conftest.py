"""One thread, and no leaking of torch's generator."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch


@pytest.fixture(autouse=True)
def _alone(one_thread: None) -> Iterator[None]:
    with torch.random.fork_rng():
        yield
