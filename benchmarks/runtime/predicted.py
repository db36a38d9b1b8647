"""What the cost model says of the plans that `side_by_side.py` has run, beside what it measured.

    python benchmarks/runtime/predicted.py [--ranks 2] [--size 1b ...]

Reads the last line of every setting in `h200x2-SIZE.jsonl` (`h200x4-SIZE.jsonl` for four ranks) that ran a plan as it is in `plans-two/`
(`plans-four/`), and prints one line of a table for each: ms and GiB as measured, as predicted of compiled steps with the error, and as
predicted of eager ones. Nothing runs; 8B takes some seconds a plan.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parents[1] / "src")]

from make_plans import FOLDERS, SIZES  # noqa: E402

from autoplan.cost.hardware import load_hardware  # noqa: E402
from autoplan.load import Built, build_meta, load_target  # noqa: E402
from autoplan.plan import load_plan  # noqa: E402
from autoplan.plan.schema import Plan, Predicted  # noqa: E402
from autoplan.planner.pipeline import recost  # noqa: E402


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, choices=sorted(FOLDERS), default=2)
    parser.add_argument("--size", nargs="+", choices=sorted(SIZES), default=[size for size in SIZES if size != "tiny"])
    options = parser.parse_args()
    print("| | ms | predicted | | eager | GiB | predicted | | eager |\n|---|---|---|---|---|---|---|---|---|")
    for size in options.size:
        for setting, row in measured(size, options.ranks).items():
            plan = load_plan(HERE / FOLDERS[options.ranks] / f"{size}-{setting}.yaml")
            compiled, eager = predicted(plan, compiled=True), predicted(plan, compiled=False)
            ms, gib = row["step_ms"], row["peak_gib"]
            time = f"{ms:.1f} | {compiled.step_ms:.1f} | {compiled.step_ms / ms - 1:+.1%} | {eager.step_ms:.1f}"
            peaks = compiled.memory_gib.peak, eager.memory_gib.peak
            print(f"| {size}-{setting} | {time} | {gib:.1f} | {peaks[0]:.1f} | {peaks[0] / gib - 1:+.1%} | {peaks[1]:.1f} |", flush=True)


def measured(size: str, ranks: int) -> dict[str, dict[str, Any]]:
    """The last line of every setting that ran a plan as it is in the folder."""
    return {row["setting"]: row for row in _lines(HERE / f"h200x{ranks}-{size}.jsonl") if _is_of_a_plan(size, row, ranks)}


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    if path.exists():
        yield from map(json.loads, path.read_text().splitlines())


def _is_of_a_plan(size: str, row: dict[str, Any], ranks: int) -> bool:
    name = row.get("setting", "/")
    return "step_ms" in row and "/" not in name and (HERE / FOLDERS[ranks] / f"{size}-{name}.yaml").exists()


def predicted(plan: Plan, *, compiled: bool) -> Predicted:
    """The prediction of today for a plan's decisions."""
    built = model(plan.model.target, tuple(plan.model.set.items()))
    plan = replace(plan, options=replace(plan.options, compile=compiled))
    return recost(plan, built.module, built.args, built.kwargs, load_hardware(plan.hardware.profile)).predicted


@cache
def model(target: str, settings: tuple[tuple[str, Any], ...]) -> Built:
    """The model of a plan, on meta."""
    return build_meta(load_target(target, dict(settings)))


if __name__ == "__main__":
    main()
