"""How a process on a GPU joins the others."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]

JOINS = """
import torch
from autoplan.placement import parse_mesh
from autoplan.runtime.ranks.launch import Launch
with Launch() as launch:
    launch.join(parse_mesh("1"))
    kept = torch.empty(1 << 22, device="cuda")
    print([segment["is_expandable"] for segment in torch.cuda.memory_snapshot()])
"""


@pytest.mark.parametrize(("setting", "grow"), [(None, True), ("expandable_segments:False", False)])
def test_memory_grows_in_place_unless_the_user_says_otherwise(setting: str | None, grow: bool) -> None:
    """In a process of its own: the allocator reads its settings once."""
    environment = {name: value for name, value in os.environ.items() if "ALLOC_CONF" not in name and name not in ("RANK", "WORLD_SIZE")}
    environment |= {} if setting is None else {"PYTORCH_CUDA_ALLOC_CONF": setting}
    run = subprocess.run([sys.executable, "-c", JOINS], env=environment, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert set(run.stdout.split("[")[-1].strip("]\n").split(", ")) == {str(grow)}
