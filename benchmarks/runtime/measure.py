"""Train every plan in a folder on this machine's GPUs and keep what was measured beside what was predicted.

    python benchmarks/runtime/measure.py --plans benchmarks/runtime/plans --out results.jsonl [--steps 12] [--eager] [--compile]

One JSON object a line: the plan, how it ran, the torch version, whether the graph captured here has the plan's digest, and
`apply.py --json`'s own object; or the end of its output where it failed.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CAPTURE = """
import sys, json
sys.path.insert(0, {src!r})
import torch
from autoplan.graph import capture, cast_module, graph_digest, model_digest
from autoplan.load import build_meta, load_target
from autoplan.plan import load_plan
plan = load_plan({plan!r})
built = build_meta(load_target(plan.model.target, dict(plan.model.set)))
module, args, kwargs = built.module, built.args, built.kwargs
if plan.options.precision != "fp32":
    module, args, kwargs = cast_module(module, args, kwargs, torch.bfloat16)
graph = capture(module, args, kwargs, mode=plan.options.mode)
print(json.dumps(dict(torch=torch.__version__, gpu=torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    same_graph=graph_digest(graph) == plan.model.graph, same_model=model_digest(built.module) == plan.model.digest)))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--plans", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--limit-s", type=float, default=540)
    parser.add_argument("--eager", action="store_true")
    parser.add_argument("--compile", action="store_true")
    options = parser.parse_args()
    start = time.monotonic()
    modes = [flag for flag, wanted in ((None, options.eager or not options.compile), ("--compile", options.compile)) if wanted]
    with options.out.open("a") as out:
        for flag in modes:
            for plan in sorted(options.plans.glob("*.yaml")):
                left = options.limit_s - (time.monotonic() - start)
                record = {
                    "plan": plan.name,
                    "compile": flag is not None,
                    **(run(plan, flag, options.steps, left) if left > 30 else {"error": "no time left"}),
                }
                out.write(json.dumps(record) + "\n")
                out.flush()
                print(json.dumps(record)[:400], flush=True)


def run(plan: Path, flag: str | None, steps: int, limit_s: float) -> dict[str, object]:
    """What one plan gave: the graph's digest here, then the training run."""
    found: dict[str, object] = {}
    if flag is None:
        code = CAPTURE.format(src=str(ROOT / "src"), plan=str(plan.resolve()))
        captured = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=limit_s)
        found |= json.loads(captured.stdout.splitlines()[-1]) if captured.returncode == 0 else {"capture_error": captured.stderr[-1500:]}
    ranks = 4
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nproc-per-node",
        str(ranks),
        str(ROOT / "apply.py"),
        "--plan",
        str(plan.resolve()),
        "--steps",
        str(steps),
        "--json",
    ]
    begun = time.monotonic()
    try:
        done = subprocess.run([*command, *([flag] if flag else [])], capture_output=True, text=True, timeout=limit_s)
    except subprocess.TimeoutExpired as expired:
        return found | {"error": f"longer than {limit_s:.0f} s", "stderr": (expired.stderr or b"")[-1500:].decode(errors="replace")}
    if done.returncode:
        return found | {"error": f"exit {done.returncode}", "stderr": done.stderr[-3000:]}
    return (
        found
        | json.loads(done.stdout.splitlines()[-1])
        | {
            "wall_s": round(time.monotonic() - begun, 1),
            "notes": [line for line in done.stderr.splitlines() if line.startswith(("note", "step 1"))][:8],
        }
    )


if __name__ == "__main__":
    main()
