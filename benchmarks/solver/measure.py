"""How long planning takes, as a user sees it: whole commands, imports included, one after the other.

    python benchmarks/solver/measure.py --out times.jsonl [--only llama3-8b] [--time-limit 60]

One JSON object a line: the request, the mesh, wall and CPU seconds, the peak of resident memory, and what `autoplan plan
--json` printed (seconds by stage, status, gap, size of the problem). Run it on a machine that does nothing else.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
RUNS = (
    ("configs/llama3-8b.yaml", "2x4"),
    ("configs/llama3-8b.yaml", "4x8"),
    ("configs/llama3-8b.yaml", "2x2x2"),
    ("configs/gpt2.yaml", "2x4"),
    ("configs/llama3-70b.yaml", "8x8"),
    ("configs/llama3-405b.yaml", "16x8"),
    ("configs/llama3-405b.yaml", "8x8x8"),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--only", default="", help="requests whose name contains this")
    parser.add_argument("--time-limit", type=float, default=60.0)
    options = parser.parse_args()
    with options.out.open("a", encoding="utf-8") as out:
        for request, mesh in RUNS:
            if options.only in request and (ROOT / request).exists():
                found = measured(request, mesh, options.time_limit)
                out.write(json.dumps(found) + "\n")
                out.flush()
                print(request, mesh, f"{found['wall_s']:.1f} s", found.get("status"), found.get("gap"), file=sys.stderr)


def measured(request: str, mesh: str, time_limit_s: float) -> dict[str, object]:
    """One run of the command line, with what it took."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "autoplan", "plan", request, "--mesh", mesh, "--json", "-o", f"{folder}/plan.yaml"]
        start = time.perf_counter()
        process = subprocess.Popen(
            [*command, "--time-limit", str(time_limit_s)], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        assert process.stdout is not None
        printed = process.stdout.read()
        _, status, used = os.wait4(process.pid, 0)
        wall_s = time.perf_counter() - start
    taken = {
        "wall_s": wall_s,
        "cpu_s": used.ru_utime + used.ru_stime,
        "rss_gib": used.ru_maxrss / 2**20,
        "code": os.waitstatus_to_exitcode(status),
    }
    return {"request": request, "mesh": mesh, "cores": os.cpu_count()} | taken | (json.loads(printed) if printed else {})


if __name__ == "__main__":
    main()
