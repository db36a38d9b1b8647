"""How long planning takes, as a user sees it: whole commands, imports included, one after the other.

    python benchmarks/solver/measure.py --out times.jsonl [--series requests] [--only llama3-8b] [--time-limit 60]

One JSON object a line: what was asked for, wall and CPU seconds, the peak of resident memory, and what `autoplan plan --json`
printed (seconds by stage, status, gap, size of the problem). The series `depth`, `rank` and `batch` let one thing grow; `small` is a
trial of the script itself. `plot.py` draws them. Run it on a machine that does nothing else.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True, slots=True)
class Run:
    """One command: a request, a mesh, settings beside the request's, other flags; `x` is where it stands in its series."""

    series: str
    request: str
    mesh: str
    x: int = 0
    settings: tuple[str, ...] = ()
    flags: tuple[str, ...] = ()

    @property
    def arguments(self) -> list[str]:
        """Of `autoplan plan`."""
        settings = ["--set", *self.settings] if self.settings else []
        return [f"configs/{self.request}.yaml", "--mesh", self.mesh, *settings, *self.flags]


TINY = ("dim=64", "n_heads=4", "n_kv_heads=2", "ffn_dim=128", "vocab_size=128", "batch=8", "seq=64")
RUNS = (
    *(
        Run("requests", request, mesh)
        for request, meshes in {
            "llama3-8b": ("8", "2x4", "4x8", "2x2x2"),
            "gpt2": ("8", "2x4", "2x2x2"),
            "gpt2-xl": ("8", "2x4", "2x2x2"),
            "vit-h": ("8", "2x4", "2x2x2"),
            "mixtral-8x7b": ("8", "2x4", "2x2x2"),
            "llama3-70b": ("64", "8x8", "4x4x4"),
            "llama3-405b": ("128", "16x8", "8x8x8"),
        }.items()
        for mesh in meshes
    ),
    *(Run("depth", "llama3-8b", "2x4", n, (f"n_layers={n}", "batch=8", "seq=2048")) for n in (2, 8, 32, 64, 126)),
    *(Run("rank", "llama3-8b", mesh, mesh.count("x") + 1) for mesh in ("16", "4x4", "2x2x4")),
    *(Run("batch", "llama3-8b", "2x4", n, (f"batch={n}", "seq=2048")) for n in (8, 16, 32, 64, 128)),
    *(Run("small", "llama3-8b", "2x2", n, (f"n_layers={n}", *TINY)) for n in (2, 4)),
)
"""`rank` keeps to 16 devices and `depth` to a batch that fits without recomputing, so that one thing grows at a time."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--series", default="requests", choices=sorted({run.series for run in RUNS}))
    parser.add_argument("--only", default="", help="requests whose name contains this")
    parser.add_argument("--time-limit", type=float, default=60.0)
    options = parser.parse_args()
    for run in RUNS:
        if run.series == options.series and options.only in run.request:
            found = measured(*run.arguments, "--time-limit", str(options.time_limit))
            append(options.out, {"series": run.series, "request": run.request, "mesh_asked": run.mesh, "x": run.x, **found})
            print(run.request, run.mesh, *run.settings, f"{found['wall_s']:.1f} s", found.get("status"), found.get("gap"), file=sys.stderr)


def measured(*arguments: str) -> dict[str, Any]:
    """One run of `autoplan plan`: what it took, what it printed, how many copies its plan recomputes, and of what it refuses the message."""
    with tempfile.TemporaryDirectory() as folder:
        plan, said = Path(folder, "plan.yaml"), Path(folder, "stderr")
        command = [sys.executable, "-m", "autoplan", "plan", *arguments, "--json", "-o", str(plan)]
        start = time.perf_counter()
        with said.open("wb") as stderr:
            process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=stderr, text=True)
            assert process.stdout is not None
            printed = process.stdout.read()
            _, status, used = os.wait4(process.pid, 0)
        taken = {
            "cores": os.cpu_count(),
            "wall_s": time.perf_counter() - start,
            "cpu_s": used.ru_utime + used.ru_stime,
            "rss_gib": used.ru_maxrss / 2**20,  # ru_maxrss is in KiB on Linux
            "code": os.waitstatus_to_exitcode(status),
        }
        if taken["code"]:
            text = said.read_text(encoding="utf-8")
            return taken | {"message": text[text.find("error: ") :].rstrip().splitlines()}
        return taken | json.loads(printed) | {"recomputed": recomputed(yaml.safe_load(plan.read_text(encoding="utf-8")))}


def recomputed(plan: Mapping[str, Any]) -> int:
    """How many copies of blocks a plan recomputes."""
    return sum(line["blocks"] for line in (plan.get("recompute") or {}).values())


def append(path: Path, line: Mapping[str, Any]) -> None:
    """One JSON line more."""
    with path.open("a", encoding="utf-8") as out:
        out.write(json.dumps(line) + "\n")


def lines_of(path: Path) -> Iterator[dict[str, Any]]:
    """The JSON lines of a file."""
    yield from map(json.loads, path.read_text(encoding="utf-8").splitlines())


if __name__ == "__main__":
    main()
