"""Hand-written parallelism and our runtime on the same Llama, in the same processes, step by step in turns.

    torchrun --nproc-per-node 2 benchmarks/runtime/side_by_side.py --size 1b --out "$OUT/two.jsonl" [--profile best]

Settings: `hand:KIND` with KIND one of ddp, fsdp, tp, fsdp+tp, each compiled layer by layer, `/head` with norm, head and loss as one
compiled function too; `floor`, one GPU alone with its share of the batch, likewise compiled; `LAYOUT` runs the plan SIZE-LAYOUT.yaml of
`plans-two/` or `plans-four/`, `/ahead` with gathers and reductions one piece ahead, `/recompute` with all layers recomputed, `/kept` with
none by hand even where the size does so. `/eager` compiles nothing.

All settings of a size are built first and then measured in turns of some steps. One JSON object a line for every setting: the median
and the least of the timed steps, each between two synchronisations of all ranks; how long building and the first step took (what an
earlier setting compiled is not compiled again); the peak of this setting's memory on rank 0. `--profile` adds where the GPU's time
went (`best` stands for the best hand-written setting and our best).
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from datetime import date
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parents[1] / "src")]

from emulated import check as emulated_check  # noqa: E402
from emulated import join as join_emulated  # noqa: E402
from hand_written import Recipe, backward_context, hand_written, local_value  # noqa: E402
from make_plans import FOLDERS, RECOMPUTED, SIZES  # noqa: E402
from traces import profiled  # noqa: E402

from autoplan.cost.hardware import load_hardware  # noqa: E402
from autoplan.load import build_skeleton, load_target  # noqa: E402
from autoplan.plan import load_plan  # noqa: E402
from autoplan.plan.schema import Plan, RecomputeLine  # noqa: E402
from autoplan.runtime.inputs import shard_inputs  # noqa: E402
from autoplan.runtime.parallelize import local_forward, parallelize  # noqa: E402
from autoplan.runtime.storage.weights import initialize  # noqa: E402

GIB = 2**30
PROFILE = "h200-sxm"  # of emulated collectives
TARGET = "autoplan.models.llama:build"
DEFAULT = {
    2: "floor hand:ddp/head hand:fsdp/head hand:tp own compiled data data/recompute tensor",
    4: "floor hand:ddp/head hand:fsdp hand:fsdp/head hand:fsdp+tp hand:tp compiled-4 small-4 data-4 compiled-2x2 data-tensor-2x2 "
    "compiled-1x4 tensor-1x4",
}

Step = Callable[[], Tensor]


@dataclass
class Case:
    """One setting that is built: what it measured so far."""

    name: str
    step: Step
    build_s: float
    first_step_s: float
    loss: float
    last_loss: float
    resident_bytes: int
    seconds: list[float] = field(default_factory=list)
    host_seconds: list[float] = field(default_factory=list)
    peak_bytes: int = 0

    def record(self) -> dict[str, Any]:
        return {
            "setting": self.name,
            "step_ms": round(1e3 * median(self.seconds), 2),
            "min_ms": round(1e3 * min(self.seconds), 2),
            "max_ms": round(1e3 * max(self.seconds), 2),
            "host_ms": round(1e3 * median(self.host_seconds), 2),
            "steps": len(self.seconds),
            "build_s": round(self.build_s, 2),
            "first_step_s": round(self.first_step_s, 2),
            "peak_gib": round(self.peak_bytes / GIB, 2),
            "first_loss": round(self.loss, 4),
            "last_loss": round(self.last_loss, 4),
        }


@dataclass(frozen=True)
class Place:
    """Where this process computes, and with how many others."""

    device: torch.device
    ranks: int

    def mesh(self, *shape: int) -> DeviceMesh:
        """A mesh for hand-written code."""
        return init_device_mesh(self.device.type, shape, mesh_dim_names=("dp", "tp"))

    def settle(self) -> None:
        """Wait until this device and all ranks are done."""
        dist.barrier()
        if self.device.type == "cuda":
            torch.cuda.synchronize()


def main() -> None:
    options = parse_options()
    place = start(options)
    emulated = {"emulated": True, "ctas": options.ctas} if options.emulate else {}
    report = Report(options.out, {"size": "", "ranks": place.ranks, "date": str(date.today()), **machine(), **emulated})
    if options.emulate and place.device.type == "cuda":
        report.write({"collectives": emulated_check(load_hardware(PROFILE), options.ctas)})
    begun = time.monotonic()
    for size in options.size:
        report.common["size"] = size
        if not agreed(time.monotonic() - begun < options.limit_s):
            report.write({"error": "no time left"})
            continue
        measure(size, options, place, report, begun + options.limit_s)
        gc.collect()
        torch._dynamo.reset()
        if place.device.type == "cuda":
            torch.cuda.empty_cache()
    dist.barrier()
    sys.stdout.flush()
    os._exit(0)  # as apply.py ends: threads of gloo may outlive the interpreter


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", nargs="+", choices=sorted(SIZES), default=["1b"])
    parser.add_argument("--settings", nargs="+", help="default: all that the number of ranks has")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--plans", type=Path, help="the folder of plans (default: plans-two or plans-four)")
    parser.add_argument("--rounds", type=int, default=5, help="how often every setting has its turn (default 5)")
    parser.add_argument("--turn", type=int, default=4, help="timed steps in a turn, behind one that is not timed (default 4)")
    parser.add_argument("--profile", nargs="*", default=[], metavar="SETTING", help="settings to profile, or `best`")
    parser.add_argument("--limit-s", type=float, default=1e9, help="build nothing more after so many seconds")
    parser.add_argument("--emulate", type=int, metavar="N", help="be one rank of N on one GPU (see emulated.py)")
    parser.add_argument("--ctas", type=int, default=16, help="blocks of an emulated collective (default 16)")
    parser.add_argument("--compile", default="{}", metavar="JSON", help="further arguments of torch.compile for our settings")
    return parser.parse_args()


def start(options: argparse.Namespace) -> Place:
    """Join the other processes: nccl on CUDA, gloo on the CPU; or be one of those that are emulated."""
    torch._dynamo.config.recompile_limit = 64  # tensor parallelism compiles layers more than once
    torch._dynamo.config.optimize_ddp = False  # it would cut each compiled layer at DDP's buckets
    if options.emulate:
        device = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
        join_emulated(options.emulate, load_hardware(PROFILE), options.ctas, device)
        return Place(device, options.emulate)
    if not torch.cuda.is_available():
        torch.set_num_threads(1)
        dist.init_process_group("gloo")
        return Place(torch.device("cpu"), dist.get_world_size())
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
    torch.cuda.set_device(device)
    dist.init_process_group("nccl", device_id=device)
    return Place(device, dist.get_world_size())


def machine() -> dict[str, str]:
    """What the numbers were measured with."""
    if not torch.cuda.is_available():
        return {"torch": torch.__version__, "gpu": "none"}
    return {"torch": torch.__version__, "gpu": torch.cuda.get_device_name(), "nccl": ".".join(map(str, torch.cuda.nccl.version()))}


class Report:
    """One JSON object a line, by rank 0, each with what all have in common."""

    def __init__(self, path: Path, common: dict[str, Any]) -> None:
        self.path = path
        self.common = common

    def write(self, record: dict[str, Any]) -> None:
        if dist.get_rank() == 0:
            line = json.dumps(self.common | record)
            with self.path.open("a") as out:
                out.write(line + "\n")
            print(line[:400], flush=True)


def agreed(yes: bool) -> bool:
    """What rank 0 says."""
    said = [yes]
    dist.broadcast_object_list(said)
    return said[0]


def measure(size: str, options: argparse.Namespace, place: Place, report: Report, deadline: float) -> None:
    """Build all settings, give them their turns, report; then profile."""
    cases: list[Case] = []
    for name in options.settings or DEFAULT[place.ranks].split():
        if not agreed(time.monotonic() < deadline):
            report.write({"setting": name, "error": "no time left"})
            continue
        try:
            cases.append(build(name, size, options, place))
        except Exception as error:
            report.write({"setting": name, "error": repr(error)[:300]})
            traceback.print_exc()
        gc.collect()
    for _ in range(options.rounds):
        for case in cases:
            take_turn(case, options.turn, place)
    for case in cases:
        report.write(case.record())
    for case in chosen(cases, options.profile):
        report.write({"setting": case.name, "profile": profiled(case.step, 2)})


def chosen(cases: Sequence[Case], names: Iterable[str]) -> list[Case]:
    """The cases to profile."""
    ours = [case for case in cases if case.name != "floor" and not case.name.startswith("hand:")]
    hand = [case for case in cases if case.name.startswith("hand:")]
    best = [min(group, key=lambda case: median(case.seconds)) for group in (hand, ours) if group]
    picked = [case for name in names for case in (best if name == "best" else [c for c in cases if c.name == name])]
    return [case for case in cases if agreed(case in picked)]


def take_turn(case: Case, steps: int, place: Place) -> None:
    """Some timed steps behind one that brings the caches and the clock back to this setting."""
    others = allocated(place) - case.resident_bytes
    if place.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    case.step()
    for _ in range(steps):
        place.settle()
        begin = time.perf_counter()
        loss = case.step()
        case.host_seconds.append(time.perf_counter() - begin)
        if place.device.type == "cuda":
            torch.cuda.synchronize()
        case.seconds.append(time.perf_counter() - begin)
    case.last_loss = loss.item()
    if place.device.type == "cuda":
        case.peak_bytes = max(case.peak_bytes, torch.cuda.max_memory_allocated() - others)


def allocated(place: Place) -> int:
    return torch.cuda.memory_allocated() if place.device.type == "cuda" else 0


def build(name: str, size: str, options: argparse.Namespace, place: Place) -> Case:
    """A setting, ready and warm: after two steps."""
    place.settle()
    before, begin = allocated(place), time.perf_counter()
    kind, *marks = name.split("/")
    if kind == "floor" or kind.startswith("hand:"):
        step = hand_step(kind.removeprefix("hand:"), marks, size, place)
    else:
        folder = options.plans or HERE / FOLDERS[place.ranks]
        step = planned_step(load_plan(folder / f"{size}-{kind}.yaml"), marks, json.loads(options.compile), place)
    place.settle()
    built = time.perf_counter()
    loss = step()
    place.settle()
    stepped = time.perf_counter()
    step()
    place.settle()
    gc.collect()
    return Case(name, step, built - begin, stepped - built, loss.item(), loss.item(), allocated(place) - before)


def hand_step(kind: str, marks: Sequence[str], size: str, place: Place) -> Step:
    """One step of a hand-written recipe."""
    compiled, alone = "eager" not in marks, kind == "floor"
    recompute = (size in RECOMPUTED and "kept" not in marks) or "recompute" in marks
    recipe = Recipe("alone" if alone else kind, compiled, compiled and (alone or "head" in marks), recompute)
    shape = {"tp": (1, place.ranks), "fsdp+tp": (place.ranks // 2, 2)}.get(kind, (place.ranks, 1))
    mesh = place.mesh(*shape)
    built = build_skeleton(load_target(TARGET, SIZES[size]))
    module = hand_written(built.module.to(torch.bfloat16), recipe, mesh, place.device)  # type: ignore[arg-type]
    share = SIZES[size]["batch"] // shape[0]
    first = mesh["dp"].get_local_rank() * share
    batch = {key: leaf[first : first + share].to(place.device) for key, leaf in zip(("tokens", "labels"), built.args, strict=True)}
    return partial(one_step, module, batch, optimizer_of(module), lambda: backward_context(mesh))


def planned_step(plan: Plan, marks: Sequence[str], compile_options: dict[str, Any], place: Place) -> Step:
    """One step of our runtime."""
    if "ahead" in marks:
        plan = replace(plan, gather={key: replace(line, prefetch=1) for key, line in plan.gather.items()})
    if "recompute" in marks:
        layers = int(plan.model.set["n_layers"])
        plan = replace(plan, recompute={"layers.*": RecomputeLine(layers, layers, "full")})
    mesh = init_device_mesh(place.device.type, plan.mesh.shape, mesh_dim_names=plan.mesh.names)
    built = build_skeleton(load_target(plan.model.target, plan.model.set))
    module = parallelize(built.module, built.args, built.kwargs, plan, mesh)
    initialize(module, 0)
    if "eager" not in marks:
        local_forward(module).compile(**compile_options)
    batch = shard_inputs(plan, mesh, dict(zip(("tokens", "labels"), built.args, strict=True)))
    batch = {key: leaf.to(place.device) for key, leaf in batch.items()}
    return partial(one_step, module, batch, optimizer_of(module), nullcontext)


def optimizer_of(module: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(module.parameters(), lr=1e-5, fused=True)


def one_step(
    module: nn.Module, batch: dict[str, Tensor], optimizer: torch.optim.Optimizer, context: Callable[[], AbstractContextManager[object]]
) -> Tensor:
    """Forward, backward and the optimizer's step; the loss."""
    with context():
        loss = module(**batch)
        loss.backward()
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return local_value(loss.detach())


if __name__ == "__main__":
    main()
