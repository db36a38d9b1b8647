"""The public problems of the ASPLOS 2025 contest on intra-operator parallelism: python -m autoplan.planner.iopddl FILE [--time-limit S] [-o FILE].

The last line of stdout is `cost=<int> bound=<int> gap=<float> seconds=<float>`; the file written lists one strategy per node.
"""

from __future__ import annotations

import argparse
import gzip
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

from autoplan.files import replace_text
from autoplan.planner.solver.model import FORBIDDEN, Array, Edge, Model, Span
from autoplan.planner.solver.search import minimise_cost

NEVER = 10**18  # how the files write that a pair cannot be


def read_problem(path: Path) -> Model:
    """The problem in a JSON file, which may be gzipped."""
    content = path.read_bytes()
    return model_of(json.loads(gzip.decompress(content) if path.suffix == ".gz" else content)["problem"])


def model_of(problem: dict[str, Any]) -> Model:
    """The problem as arrays; of the time steps only those in which the most is alive."""
    nodes, edges = problem["nodes"], problem["edges"]
    costs = [_bounded(costs) for costs in nodes["costs"]]
    moments = _peaks(nodes["intervals"])
    starts = np.searchsorted(moments, [lower for lower, _ in nodes["intervals"]])
    stops = np.searchsorted(moments, [upper for _, upper in nodes["intervals"]])
    usage = [
        {Span(int(start), int(stop)): np.array(amounts, dtype=np.int64)} if start < stop else {}
        for start, stop, amounts in zip(starts, stops, nodes["usages"], strict=True)
    ]
    pairs: dict[tuple[int, int], Array] = {}
    for (u, w), entries in zip(edges["nodes"], edges["costs"], strict=True):
        matrix = _bounded(entries).reshape(len(costs[u]), len(costs[w]))
        if u == w:
            costs[u] = np.minimum(costs[u] + np.diagonal(matrix), FORBIDDEN)
            continue
        key, matrix = ((u, w), matrix) if u < w else ((w, u), matrix.T)
        pairs[key] = np.minimum(pairs[key] + matrix, FORBIDDEN) if key in pairs else matrix
    limits = np.full(len(moments), problem["usage_limit"], dtype=np.int64)
    return Model(costs, usage, {key: Edge(matrix) for key, matrix in pairs.items()}, limits)


def _bounded(entries: list[int]) -> Array:
    array = np.array(entries, dtype=np.int64)
    return np.where(array >= NEVER, FORBIDDEN, array)


def _peaks(intervals: list[list[int]]) -> Array:
    """The starts after which something ends before the next starts: whatever is alive at once is alive at one of them."""
    alive = [(lower, upper) for lower, upper in intervals if lower < upper]
    starts = np.unique([lower for lower, _ in alive])
    stops = np.unique([upper for _, upper in alive])
    following = np.append(starts[1:], np.iinfo(np.int64).max)
    return starts[np.searchsorted(stops, starts, side="right") < np.searchsorted(stops, following, side="right")]


def main(arguments: Sequence[str] | None = None) -> int:
    """Solve a file; the exit code is 0, or 6 if no choice was found in time, or 3 if there is none."""
    parser = argparse.ArgumentParser(prog="python -m autoplan.planner.iopddl")
    parser.add_argument("file", type=Path)
    parser.add_argument("--time-limit", type=float, default=60.0, help="seconds, reading the file included")
    parser.add_argument("-o", dest="output", type=Path, help="where to write the choice, a JSON list of strategy indices")
    options = parser.parse_args(arguments)
    start = perf_counter()
    result = minimise_cost(read_problem(options.file), start + options.time_limit)
    if result is None or result.choice is None:
        print("nothing fits" if result is None else f"no choice found in {options.time_limit:g} s", file=sys.stderr)
        return 3 if result is None else 6
    assert result.cost is not None
    if options.output is not None:
        replace_text(options.output, json.dumps(list(result.choice)))
    gap = (result.cost - result.bound) / result.cost if result.cost else 0.0
    print(f"cost={result.cost} bound={result.bound} gap={gap:.6f} seconds={perf_counter() - start:.2f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
