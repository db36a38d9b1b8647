"""What each setting of the runtime costs and saves, on one GPU or two: eager, compiled, recomputed, sharded, gathered ahead.

    python benchmarks/runtime/measure_settings.py --ranks 2 --out "$OUT/settings.jsonl" [--steps 10] [--limit-s 290]

The plans are those of Llama 1.5B in `plans-experts/` with other lines: all layers recompute; the layers' parameters and gradients
are split over the ranks; gathers and reductions overlap. One JSON object a line: the setting, then `apply.py --json`'s own object,
or the end of its output where it failed. Predictions are those of the plan as it was.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "src"))

from autoplan.placement import Shard  # noqa: E402
from autoplan.plan import load_plan, write_plan  # noqa: E402
from autoplan.plan.schema import Collective, GatherLine, Plan, RecomputeLine  # noqa: E402

PLANS = ROOT / "benchmarks" / "runtime" / "plans-experts"
LAYERS = 16

Edit = Callable[[Plan], Plan]


def recomputed(plan: Plan) -> Plan:
    """All layers run again in backward."""
    return replace(plan, recompute={"layers.*": RecomputeLine(LAYERS, LAYERS, "full")})


def ahead(plan: Plan) -> Plan:
    """Gathers are issued one piece ahead, gradients reduced while backward goes on."""
    return replace(plan, gather={key: replace(line, prefetch=1) for key, line in plan.gather.items()})


def sharded(plan: Plan) -> Plan:
    """The layers' parameters are stored split over the ranks, gathered a layer at a time, and gathered again in backward."""
    params = {key: replace(line, store=(Shard(0),)) if key.startswith("layers.") else line for key, line in plan.params.items()}
    gather, reduce = Collective("all-gather", ("x",)), Collective("reduce-scatter", ("x",))
    line = GatherLine("block", True, 0, (gather,), (gather, reduce), LAYERS)
    return replace(plan, params=params, gather={**plan.gather, "layers.*": line})


ONE: dict[str, tuple[Edit, ...]] = {"kept": (), "recomputed": (recomputed,)}
TWO: dict[str, tuple[Edit, ...]] = {
    "replicated": (),
    "replicated, ahead": (ahead,),
    "sharded": (sharded,),
    "sharded, ahead": (sharded, ahead),
    "sharded, ahead, recomputed": (sharded, ahead, recomputed),
}


def edited(plan: Plan, edits: tuple[Edit, ...]) -> Plan:
    """The plan after all edits."""
    for edit in edits:
        plan = edit(plan)
    return plan


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ranks", type=int, choices=(1, 2), required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--limit-s", type=float, default=290)
    options = parser.parse_args()
    start = time.monotonic()
    plan = load_plan(PLANS / f"llama3-1b-{options.ranks}.yaml")
    with tempfile.TemporaryDirectory() as folder, options.out.open("a") as out:
        for compiled in (True, False):
            for name, edits in (ONE if options.ranks == 1 else TWO).items():
                path = Path(folder) / "plan.yaml"
                write_plan(edited(plan, edits), path)
                left = options.limit_s - (time.monotonic() - start)
                found = run(path, options.ranks, options.steps, compiled, left) if left > 20 else {"error": "no time left"}
                record = {"setting": name, "ranks": options.ranks, "compile": compiled, **found}
                out.write(json.dumps(record) + "\n")
                out.flush()
                print(json.dumps(record)[:300], flush=True)


def run(plan: Path, ranks: int, steps: int, compiled: bool, limit_s: float) -> dict[str, object]:
    """What one run of `apply.py` measured."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
    command = [*torchrun, str(ROOT / "apply.py"), "--plan", str(plan), "--steps", str(steps), "--json", *(["--compile"] * compiled)]
    begun = time.monotonic()
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=limit_s)
    except subprocess.TimeoutExpired:
        return {"error": f"longer than {limit_s:.0f} s"}
    if done.returncode:
        return {"error": f"exit {done.returncode}", "stderr": done.stderr[-3000:]}
    first = next((line for line in done.stderr.splitlines() if line.startswith("step 1:")), "")
    return {**json.loads(done.stdout.splitlines()[-1]), "first_step": first, "wall_s": round(time.monotonic() - begun, 1)}


if __name__ == "__main__":
    main()
