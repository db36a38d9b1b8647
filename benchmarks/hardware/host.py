"""What the host is busy with in a step: redistributions of every kind, and forward, backward and optimizer of small models.

    python benchmarks/hardware/host.py --out h200-host.jsonl PLAN...

On one GPU, plans for the mesh 1. One JSON line per redistribution: microseconds of the host of a step forward and of one backward, median
of `RUNS` chains of `CHAIN`, through the runtime's own autograd function and process group (of one rank, so that nothing travels, but
all that the host does is done). One per plan and way to run it (eager; its blocks compiled, or all as one function): ms of the host and
of the whole in forward, backward and optimizer's step, medians of `TURNS` turns of `STEPS` steps, the ops that the graph has and the
functions and parameters of the program; and the same of the module by itself: eager, its layers compiled one by one, compiled as a whole,
and that as CUDA graphs. What draws random numbers is left out of CUDA graphs (GPT-2 with dropout).
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from itertools import chain
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor

import autoplan
from autoplan.collectives.process_group import ProcessGroupCollectives
from autoplan.collectives.redistribute import redistribute_by
from autoplan.errors import UsageError
from autoplan.load import Built, build_on, load_target
from autoplan.placement import P, Placement, R, Shard, parse_mesh
from autoplan.plan import load_plan
from autoplan.plan.schema import Plan
from autoplan.redistribution import Step
from autoplan.runtime.parallelize import local_forward

RUNS, CHAIN, TURNS, STEPS = 50, 20, 6, 8
PLAIN = ("plain", "plain, layers compiled", "plain, compiled", "plain, CUDA graphs")
PLANNED = ("eager", "compiled", "compiled whole", "CUDA graphs", "whole, CUDA graphs")
PHASES = ("forward", "backward", "optimizer", "zero", "step")
S = Shard(0)
WAYS: dict[str, tuple[tuple[Placement, Placement, str] | None, tuple[Placement, Placement, str] | None]] = {
    "all-gather / reduce-scatter": ((S, R, "all-gather"), (P, S, "reduce-scatter")),
    "reduce-scatter / all-gather": ((P, S, "reduce-scatter"), (S, R, "all-gather")),
    "all-reduce / -": ((P, R, "all-reduce"), None),
    "- / all-reduce": (None, (P, R, "all-reduce")),
    "all-to-all / all-to-all": ((S, Shard(1), "all-to-all"), (Shard(1), S, "all-to-all")),
    "slice / all-gather": ((R, S, "slice"), (S, R, "all-gather")),
    "slice / pad": ((R, S, "slice"), (S, P, "pad")),
    "all-gather / slice": ((S, R, "all-gather"), (R, S, "slice")),
    "keep / -": ((R, P, "keep"), None),
}
"""By name the step forward and the one backward."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("plans", nargs="*", metavar="PLAN")
    parser.add_argument("--out", required=True)
    parser.add_argument("--steps-only", action="store_true", help="leave the redistributions out")
    options = parser.parse_args()
    for name, value in {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29511"}.items():
        os.environ.setdefault(name, value)
    facts = {"date": f"{datetime.now(UTC):%Y-%m-%d}", "gpu": torch.cuda.get_device_name(), "torch": torch.__version__}
    with open(options.out, "w") as out, autoplan.join_mesh(load_plan(options.plans[0])):
        for line in chain(() if options.steps_only else redistributions(), *map(steps, options.plans)):
            print(json.dumps(facts | line), file=out, flush=True)
            print(json.dumps(line), flush=True)


def redistributions() -> Iterator[dict[str, Any]]:
    """A line for each way there and back, then for buckets of nine."""
    group = ProcessGroupCollectives(parse_mesh("1"), [(0,)])
    for name, (there, back) in WAYS.items():
        forward, backward = (() if way is None else (Step(way[2], (0,), way[0], way[1], 1),) for way in (there, back))  # type: ignore[arg-type]

        def run(tensor: Tensor, forward: tuple[Step, ...] = forward, backward: tuple[Step, ...] = backward) -> Tensor:
            return redistribute_by(tensor, forward, backward, group)

        yield {"redistribution": name} | {f"{way}_us": 1e6 * s / CHAIN for way, s in _chain(run).items()}
    yield {"redistribution": "a view, to compare"} | {
        f"{way}_us": 1e6 * s / CHAIN for way, s in _chain(lambda tensor: tensor.view_as(tensor)).items()
    }
    tensors = [torch.randn(256, 256, device="cuda", dtype=torch.bfloat16) for _ in range(9)]
    for kind in ("all-gather", "reduce-scatter", "all-reduce"):
        for count in (1, 9):
            seconds = [_host(lambda kind=kind, count=count: group.wait(group.start(kind, tensors[:count], (0,)))) for _ in range(RUNS)]
            yield {"bucket": kind, "tensors": count, "us": 1e6 * median(seconds)}


def _chain(run: Callable[[Tensor], Tensor]) -> dict[str, float]:
    """Seconds of the host for a chain forward, and backward."""
    found: dict[str, list[float]] = {"forward": [], "backward": []}
    for _ in range(RUNS + 5):
        first = tensor = torch.randn(256, 256, device="cuda", dtype=torch.bfloat16).requires_grad_()
        torch.cuda.synchronize()
        start = time.perf_counter()
        for _ in range(CHAIN):
            tensor = run(tensor)
        found["forward"].append(time.perf_counter() - start)
        gradient = torch.ones_like(tensor)
        start = time.perf_counter()
        torch.autograd.grad(tensor, first, gradient)
        found["backward"].append(time.perf_counter() - start)
    return {way: median(seconds[5:]) for way, seconds in found.items()}


def _host(run: Callable[[], Any]) -> float:
    torch.cuda.synchronize()
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def steps(path: str) -> Iterator[dict[str, Any]]:
    """A line for each way to run the plain module, and for each way to run the plan; all have their turns, since the host is not steady."""
    plan = load_plan(path)
    target = load_target(
        plan.model.target, plan.model.set, batch=plan.model.batch, seq=plan.model.seq, mode="train", base=Path(path).parent
    )
    ways = {way: _plain(build_on(target, "cpu", 0), way) for way in PLAIN}
    for way in PLANNED:
        with suppress(UsageError):
            ways[way] = _planned(build_on(target, "cpu", 0), plan, way)
    taken: dict[str, list[list[float]]] = {way: [] for way in ways}
    for turn in range(-1, TURNS):
        for way, run in ways.items():
            found = [_phases(*run) for _ in range(2 + STEPS)][2:]
            if turn >= 0:
                taken[way] += found
    for way, (module, _, _) in ways.items():
        facts = {"model": plan.model.target.rpartition(":")[0].rpartition(".")[2], "plan": Path(path).name, "way": way}
        if not way.startswith("plain"):
            program = local_forward(module).program
            facts |= {"ops": len(program.graph.nodes), "functions": len(program.functions), "parameters": len(list(module.parameters()))}
            facts |= {"predicted_ms": plan.predicted.step_ms}
        yield facts | {f"{name}_ms": 1e3 * median(each) for name, each in zip(PHASES, zip(*taken[way], strict=True), strict=True)}


Ready = tuple[torch.nn.Module, torch.optim.Optimizer, Sequence[Any]]
"""A module, its optimizer and its inputs."""


def _plain(built: Built, way: str) -> Ready:
    built.module.to("cuda", torch.bfloat16)
    for module in {"plain": [], "plain, layers compiled": built.module.layers}.get(way, [built.module]):  # type: ignore[misc, list-item]
        module.compile(dynamic=False, mode="reduce-overhead" if "graphs" in way else None)
    return built.module, _optimizer(built.module), [leaf.to("cuda") for leaf in built.args]


def _planned(built: Built, plan: Plan, way: str) -> Ready:
    mesh = torch.distributed.device_mesh.init_device_mesh("cuda", (1,), mesh_dim_names=plan.mesh.names)
    module = autoplan.parallelize(built.module, built.args, built.kwargs, plan, mesh)
    if way != "eager":
        local_forward(module).compile(whole="whole" in way, cuda_graphs="graphs" in way)
    return module, _optimizer(module), autoplan.shard_inputs(plan, mesh, built.args)  # type: ignore[return-value]


def _optimizer(module: torch.nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(module.parameters(), 1e-4, fused=True)


def _phases(module: torch.nn.Module, optimizer: torch.optim.Optimizer, inputs: Sequence[Any]) -> list[float]:
    """Seconds of the host by phase while the device is not waited for, and of the whole step."""
    torch.cuda.synchronize()
    marks = [time.perf_counter()]
    loss = module(*inputs)
    marks.append(time.perf_counter())
    loss.backward()
    marks.append(time.perf_counter())
    optimizer.step()
    marks.append(time.perf_counter())
    module.zero_grad(set_to_none=True)
    marks.append(time.perf_counter())
    torch.cuda.synchronize()
    return [*(later - earlier for earlier, later in zip(marks, marks[1:], strict=False)), time.perf_counter() - marks[0]]


if __name__ == "__main__":
    main()
