"""Problems in the public format: the optimum by trying everything, and the command line."""

from __future__ import annotations

import gzip
import json
from itertools import product
from pathlib import Path
from random import Random
from typing import Any

import pytest
from iopddl_check import cost_and_peak

from autoplan.planner.iopddl import main, model_of
from autoplan.planner.solver.search import minimise_cost

NEVER = 10**18


def random_file(seed: int) -> dict[str, Any]:
    """Five nodes with overlapping spans, parallel edges in both directions, a loop, and some forbidden pairs and strategies."""
    random = Random(seed)
    sizes = [random.randint(1, 3) for _ in range(5)]
    intervals = [[start, start + random.randint(0, 4)] for start in (random.randint(0, 6) for _ in sizes)]
    pairs = [[random.randrange(5), random.randrange(5)] for _ in range(7)]

    def entries(count: int) -> list[int]:
        return [NEVER if random.random() < 0.1 else random.randint(0, 20) for _ in range(count)]

    return {
        "nodes": {
            "intervals": intervals,
            "costs": [entries(size) for size in sizes],
            "usages": [[random.randint(0, 9) for _ in range(size)] for size in sizes],
        },
        "edges": {"nodes": pairs, "costs": [entries(sizes[u] * sizes[w]) for u, w in pairs]},
        "usage_limit": random.randint(6, 20),
    }


def brute_force(problem: dict[str, Any]) -> int | None:
    choices = product(*(range(len(costs)) for costs in problem["nodes"]["costs"]))
    results = [cost_and_peak(problem, list(choice)) for choice in choices]
    return min((cost for cost, peak in results if cost < NEVER and peak <= problem["usage_limit"]), default=None)


@pytest.mark.parametrize("seed", range(200))
def test_the_solver_finds_what_trying_everything_finds(seed: int) -> None:
    problem = random_file(seed)
    best, result = brute_force(problem), minimise_cost(model_of(problem), None)
    if result is None or result.choice is None:
        assert best is None
        return
    cost, peak = cost_and_peak(problem, list(result.choice))
    assert cost == result.cost == result.bound == best
    assert peak <= problem["usage_limit"]


def test_the_command_prints_the_cost_last_and_writes_the_choice(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    problem = next(problem for problem in map(random_file, range(20)) if brute_force(problem))
    with gzip.open(tmp_path / "problem.json.gz", "wt") as file:
        json.dump({"problem": problem}, file)
    assert main([str(tmp_path / "problem.json.gz"), "-o", str(tmp_path / "choice.json")]) == 0
    cost, _ = cost_and_peak(problem, json.loads((tmp_path / "choice.json").read_text()))
    assert capsys.readouterr().out.splitlines()[-1].startswith(f"cost={cost} bound={cost} gap=0.000000 seconds=")
