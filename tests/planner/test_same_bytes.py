"""A plan that is proved optimal has the same bytes in every process, however strings hash, many cores there are, and fast they are."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from time import perf_counter

import pytest
from plan_digests import TIGHT, TIME_LIMIT_S
from planner_cases import llama_module, planned, request

from autoplan.plan import dump_plan

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


def test_plans_are_the_same_on_machines_of_any_speed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The search has shares of its time for this and that: where the clock runs 20 times as fast, it comes less far in each."""
    clocks = [module for name, module in sys.modules.items() if name.startswith("autoplan.planner") and hasattr(module, "perf_counter")]
    assert len(clocks) > 3
    module = llama_module()
    limit_gib = TIGHT * planned(module, request("4")).predicted.memory_gib.peak
    plans = []
    for speed in (0.2, 20.0):
        for clock in clocks:
            monkeypatch.setattr(clock, "perf_counter", lambda speed=speed: speed * perf_counter())
        plans.append(planned(module, request("4", memory_gib=limit_gib, time_limit_s=TIME_LIMIT_S)))
    assert [plan.solver.status for plan in plans] == ["optimal"] * 2 and plans[0].recompute
    assert dump_plan(plans[0]) == dump_plan(plans[1])
