"""The step's time over the memory limit, from ample to impossible, and the laws that must hold along the way.

    python benchmarks/solver/sweep.py --out sweep-8b.jsonl [--steps 10] [--time-limit 60] [TARGET FLAG ...]

TARGET and its flags are those of `autoplan plan`, by default configs/llama3-8b.yaml --mesh 2x4. Writes a JSON line a limit and a
chart beside. Exits with 1 and says why if a plan is faster than one with more memory (by more than the gap that is left), if
none recomputes, if a plan takes more than its limit, or if what does not fit is not refused with exit 3 in at most 15 lines.
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path
from typing import Any

from chart import Series, write_chart
from measure import append, measured

DEFAULT = ("configs/llama3-8b.yaml", "--mesh", "2x4")
IMPOSSIBLE = 0.01  # of what a plan with ample memory takes
MARGIN = 0.005  # above and below the smallest limit: bytes are counted in units of a millionth of it, rounded up for each op
REFUSED, LINES = 3, 15
ROUNDING = 0.01  # a problem prices a block's bucketed collectives a parameter at a time, a plan's predictions as they run


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--time-limit", type=float, default=60.0)
    options, target = parser.parse_known_args()
    rows: list[dict[str, Any]] = []

    def plan(limit_gib: float | None) -> dict[str, Any]:
        limit = ["--memory-gib", f"{limit_gib:.6g}"] if limit_gib is not None else []
        row = {"limit_gib": limit_gib, **measured(*(target or DEFAULT), "--time-limit", str(options.time_limit), *limit)}
        rows.append(row)
        append(options.out, row)
        print(*(row.get(key) for key in ("limit_gib", "code", "status", "step_ms", "peak_gib", "recomputed")), file=sys.stderr)
        return row

    ample = plan(None)["peak_gib"]
    smallest = smallest_gib(plan(IMPOSSIBLE * ample))
    low = (1 + MARGIN) * smallest
    for step in range(options.steps):
        plan(low + (ample - low) * (1 - step / (options.steps - 1)))
    plan((1 - MARGIN) * smallest)
    broken = laws_broken(sorted(rows, key=lambda row: row["limit_gib"] or float("inf"), reverse=True), low)
    for law in broken:
        print(law, file=sys.stderr)
    draw(options.out.with_suffix(".png"), rows)
    return 1 if broken else 0


def smallest_gib(refused: dict[str, Any]) -> float:
    """The limit that the message says would do."""
    found = re.search(r"the smallest needs ([0-9.e+-]+)", "\n".join(refused.get("message", ())))
    assert found is not None, f"no refusal: {refused}"
    return float(found[1])


def laws_broken(rows: list[dict[str, Any]], low_gib: float) -> list[str]:
    """What does not hold of rows sorted by falling limit."""
    broken, planned = [], [row for row in rows if row["code"] == 0]
    for more, less in zip(planned, planned[1:], strict=False):
        if less["step_ms"] < more["step_ms"] * (1 - more["gap"] - ROUNDING):
            broken.append(f"{less['step_ms']:.6g} ms within {less['limit_gib']:.4g} GiB, but {more['step_ms']:.6g} ms with more")
    for row in rows:
        limit = row["limit_gib"] or float("inf")
        if row["code"] == 0 and row["peak_gib"] > limit:
            broken.append(f"a plan takes {row['peak_gib']:.4g} GiB of {limit:.4g}")
        if row["code"] and (limit >= low_gib or row["code"] != REFUSED or len(row["message"]) > LINES):
            broken.append(f"within {limit:.4g} GiB: exit {row['code']} in {len(row['message'])} lines, {row['message'][:1]}")
        if row["code"] == 0 and limit < low_gib * (1 - MARGIN):
            broken.append(f"a plan fits {limit:.4g} GiB, though {low_gib:.4g} was said to be the least")
    if not any(row["recomputed"] for row in planned):
        broken.append("no plan recomputes")
    return broken


def draw(path: Path, rows: list[dict[str, Any]]) -> None:
    """Step time and recomputed copies over the limit; a row without a limit stands at what it takes."""
    planned = sorted((row for row in rows if row["code"] == 0), key=lambda row: row["limit_gib"] or row["peak_gib"])
    points = [(row["limit_gib"] or row["peak_gib"], row) for row in planned]
    times = Series("step", tuple((limit, row["step_ms"]) for limit, row in points))
    write_chart(path, "Step time over the memory limit", "GiB per device", "ms", [times])
    copies = Series("recomputed", tuple((limit, float(row["recomputed"])) for limit, row in points))
    write_chart(path.with_stem(f"{path.stem}-recomputed"), "Recomputed copies over the memory limit", "GiB per device", "copies", [copies])


if __name__ == "__main__":
    sys.exit(main())
