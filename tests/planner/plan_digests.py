"""Prints a digest of the plan of some small models, with ample and with tight memory: python plan_digests.py [CORE]."""

from __future__ import annotations

import hashlib
import os
import sys

from planner_cases import GPT2, LLAMA, Module, planned, request

from autoplan.models import gpt2, llama
from autoplan.plan import dump_plan
from autoplan.plan.schema import Plan

TIGHT = 0.9  # of what the plan takes that has all the memory it wants: now copies recompute
TIME_LIMIT_S = 600.0  # so that a busy machine proves it too


def main() -> None:
    if len(sys.argv) > 1:
        os.sched_setaffinity(0, {int(sys.argv[1])})
    for name, module in (("llama", llama.build(**LLAMA | {"n_layers": 2})), ("gpt2", gpt2.build(**GPT2 | {"n_layers": 2}))):
        ample = plan_within(module, None)
        for plan in (ample, plan_within(module, TIGHT * ample.predicted.memory_gib.peak)):
            digest = hashlib.sha256(dump_plan(plan).encode()).hexdigest()
            print(name, plan.solver.status, sum(line.blocks for line in plan.recompute.values()), digest)


def plan_within(module: Module, limit_gib: float | None) -> Plan:
    return planned(module, request("2x2", memory_gib=limit_gib, time_limit_s=TIME_LIMIT_S))


if __name__ == "__main__":
    main()
