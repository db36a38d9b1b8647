"""A plan that is proved optimal has the same bytes in every process, however strings hash and however many cores there are."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent


def digests(hash_seed: str, *core: str) -> list[str]:
    environment = os.environ | {"PYTHONHASHSEED": hash_seed, "PYTHONPATH": os.pathsep.join([str(HERE), str(HERE.parents[1] / "src")])}
    command = [sys.executable, str(HERE / "plan_digests.py"), *core]
    return subprocess.run(command, env=environment, check=True, capture_output=True, text=True, timeout=1200).stdout.splitlines()


@pytest.mark.slow
@pytest.mark.zoo  # minutes on two busy cores
def test_plans_are_the_same_on_one_core_and_on_all_and_under_any_hash_seed() -> None:
    available = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    one = digests("0", *map(str, available[:1]))
    assert one == digests("1")
    assert [line.split()[1] for line in one] == ["optimal"] * 4
    recomputed = [int(line.split()[2]) for line in one]
    assert recomputed[0] == recomputed[2] == 0 and recomputed[1] > 0 and recomputed[3] > 0
