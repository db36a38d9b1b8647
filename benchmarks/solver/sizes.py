"""How large a problem is before and after each reduction: python benchmarks/solver/sizes.py configs/llama3-8b.yaml [MESH] >> sizes.jsonl

One JSON line: nodes, strategies and pairs of the problem as a model, what each kind of reduction took out of it, what is left, and how
many of the problem's strategies have a bound at or under the optimum (only these can be in it). Memory is the hardware's.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Callable
from time import perf_counter
from typing import Any

from autoplan.cli.options import target_of_request
from autoplan.cost.hardware import load_hardware
from autoplan.load import build_meta
from autoplan.placement import parse_mesh
from autoplan.plan.schema import Options
from autoplan.planner.pairwise import model_of
from autoplan.planner.pipeline import capture_for
from autoplan.planner.problem import Problem
from autoplan.planner.remedies import problem_of
from autoplan.planner.request import PlanRequest
from autoplan.planner.shares import SharedBound
from autoplan.planner.solve import solve
from autoplan.planner.solver.model import Model
from autoplan.planner.solver.reduce import _Reducer
from autoplan.request import load_request

TIME_LIMIT_S = 300.0
REDUCTIONS = {
    "_push_edge": "pairs that cannot be, minima of edges to nodes",
    "_push_usage": "strategies that exceed a limit by themselves",
    "_drop_dominated": "dominated strategies",
    "_settle": "nodes of one strategy",
    "_merge_matching": "nodes that follow a neighbour",
    "_take_out": "nodes with one or two neighbours",
}


def _counted(name: str) -> Callable[..., Any]:
    """The reduction of that name, which notes what it takes; one that another one calls counts as that one's."""
    reduction = getattr(_Reducer, name)

    def run(self: Counted, *arguments: int) -> Any:
        if self.within:
            return reduction(self, *arguments)
        before, self.within = self.size(), True
        try:
            return reduction(self, *arguments)
        finally:
            self.within = False
            self.taken[REDUCTIONS[name]].update({kind: before[kind] - left for kind, left in self.size().items()})

    return run


class Counted(_Reducer):
    """Reduces, and adds up what each kind of reduction took: nodes, strategies, pairs."""

    def __init__(self, model: Model) -> None:
        self.taken: dict[str, Counter[str]] = {says: Counter() for says in REDUCTIONS.values()}
        self.within = False
        super().__init__(model, True)

    _push_edge = _counted("_push_edge")
    _push_usage = _counted("_push_usage")
    _drop_dominated = _counted("_drop_dominated")
    _settle = _counted("_settle")
    _merge_matching = _counted("_merge_matching")
    _take_out = _counted("_take_out")

    def size(self) -> dict[str, int]:
        """Of what is left."""
        costs = [costs for costs in self.costs if costs is not None]
        pairs = sum(edge.cost.size for u, around in enumerate(self.near) for w, edge in around.items() if u < w)
        return {"nodes": len(costs), "strategies": sum(map(len, costs)), "pairs": pairs}


def main() -> None:
    request = load_request(sys.argv[1])
    mesh = sys.argv[2] if len(sys.argv) > 2 else request.mesh
    assert mesh is not None and request.hardware is not None, "a request that names mesh and hardware"
    built = build_meta(target_of_request(request))
    wanted = PlanRequest(
        parse_mesh(mesh), load_hardware(request.hardware), Options(precision=request.precision, optimizer=request.optimizer)
    )
    problem = problem_of(capture_for(built.module, built.args, built.kwargs, wanted.options), wanted).problem
    print(json.dumps({"request": sys.argv[1], "mesh": mesh, **sizes(problem)}))


def sizes(problem: Problem) -> dict[str, Any]:
    """See above."""
    model = model_of(problem)
    start = perf_counter()
    counted = Counted(model)
    before = counted.size()
    counted.run(None)
    reduced, _ = counted.result()
    seconds = perf_counter() - start
    solution = solve(problem, TIME_LIMIT_S)
    found: dict[str, Any] = {
        "problem": {"nodes": len(problem.nodes), "strategies": problem.strategies, "values": len(problem.values)},
        "model": {**before, "rows": len(model.limits)},
        "taken": {says: dict(counts) for says, counts in counted.taken.items()},
        "reduced": {**counted.size(), "rows": len(reduced.limits)},
        "reduce_s": seconds,
    }
    if solution is None:
        return {**found, "status": "needs recomputing"}
    below = SharedBound(problem, None, solution.cost + 1).within(solution.cost)
    admitted = sum(int((conditional <= solution.cost).sum()) for conditional in below.conditional)
    return {**found, "status": solution.status, "gap": solution.gap, "strategies_under_the_optimum": admitted}


if __name__ == "__main__":
    main()
