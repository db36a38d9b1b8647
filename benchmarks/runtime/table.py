"""The table that the runtime is measured by, of what `side_by_side.py` wrote on four ranks.

    python benchmarks/runtime/table.py FOUR.jsonl [--call N]

A row for each size and mesh: the floor (one GPU alone with a quarter of the batch), the best hand-written code of the file, the planner's own
choice and the hand-written layout as pins, in ms and GiB, and what they are held against: no slower than hand-written code, be it that of the file
or as it was measured first on four H200 (`FIRST`), no slower than the closest peer (AutoParallel, the same machine), and on one axis the project's limits. The last line of a
setting counts. Exit code 1 if anything is missed or was not measured.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Target:
    """What a row is held against: ms of the best hand-written code as first measured, of the peer; limits in ms and GiB."""

    first_ms: float
    peer_ms: float | None = None
    limit: tuple[float, float] | None = None


TARGETS = {
    ("1b", "4"): Target(145, 161, (146, 15.5)),
    ("1b", "2x2"): Target(187, 174),
    ("1b", "1x4"): Target(198),
    ("8b_l8", "4"): Target(239, 245, (241, 18)),
    ("8b_l8", "2x2"): Target(296, 263),
    ("8b_l8", "1x4"): Target(320),
    ("8b", "4"): Target(1022, None, (1022, 25)),
    ("8b", "2x2"): Target(1131),
    ("8b", "1x4"): Target(1248),
}
"""Of 2026-11: 4 NVIDIA H200 of one host, torch 2.11, bf16, fused AdamW, compiled; 8B with all layers recomputed."""

BY_HAND = {"4": ("hand:ddp/head", "hand:fsdp", "hand:fsdp/head"), "2x2": ("hand:fsdp+tp",), "1x4": ("hand:tp",)}
AS_PINS = {"4": "data-4", "2x2": "data-tensor-2x2", "1x4": "tensor-1x4"}

Row = Mapping[str, Any]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("--call", type=int, help="only lines of this call (`call` in the file)")
    options = parser.parse_args()
    lines = [json.loads(line) for line in options.file.read_text().splitlines()]
    rows = {
        (row["size"], row["setting"]): row
        for row in lines
        if row.get("ranks") == 4 and "step_ms" in row and options.call in (None, row.get("call"))
    }
    print("| | floor | by hand | planner's choice | as pins | |\n|---|---|---|---|---|---|")
    missed = 0
    for size, mesh in TARGETS:
        found = list(problems(rows, size, mesh))
        missed += bool(found)
        own, pins = own_choice(rows, size, mesh), rows.get((size, AS_PINS[mesh]))
        cells = (rows.get((size, "floor")), best_by_hand(rows, size, mesh), own, pins)
        print(f"| {size}, {mesh} | {' | '.join(map(cell, cells))} | {'; '.join(found) or 'met'} |")
    return int(missed > 0)


def cell(row: Row | None) -> str:
    return "-" if row is None else f"{row['setting']} {row['step_ms']:.1f}, {row['peak_gib']:.1f}"


def best_by_hand(rows: Mapping[tuple[str, str], Row], size: str, mesh: str) -> Row | None:
    """The fastest hand-written setting of this mesh that was measured."""
    return fastest(rows.get((size, setting)) for setting in BY_HAND[mesh])


def own_choice(rows: Mapping[tuple[str, str], Row], size: str, mesh: str) -> Row | None:
    """The planner's choice: the fastest of those that keep to the limit of memory, if there is one."""
    limit = TARGETS[size, mesh].limit
    chosen = [rows.get((size, f"{layout}-{mesh}")) for layout in ("compiled", "small")]
    return fastest(row for row in chosen if row and (limit is None or row["peak_gib"] <= limit[1])) or fastest(chosen)


def fastest(rows: Any) -> Row | None:
    return min((row for row in rows if row is not None), key=lambda row: row["step_ms"], default=None)


def problems(rows: Mapping[tuple[str, str], Row], size: str, mesh: str) -> Iterator[str]:
    """What is missed, or was not measured."""
    target, hand, own = TARGETS[size, mesh], best_by_hand(rows, size, mesh), own_choice(rows, size, mesh)
    pins = rows.get((size, AS_PINS[mesh]))
    for name, row in (("by hand", hand), ("planner's choice", own), ("as pins", pins)):
        if row is None:
            yield f"{name}: not measured"
    ours = fastest((own, pins))
    if ours is None:
        return
    bounds = {"by hand": hand and hand["step_ms"], "by hand, first": target.first_ms, "peer": target.peer_ms}
    for name, ms in bounds.items():
        if ms is not None and ours["step_ms"] > ms:
            yield f"{name} {ms:.1f} ms: {ours['step_ms'] / ms - 1:+.1%}"
    if target.limit is not None:
        ms, gib = target.limit
        kept = fastest(row for row in (own, pins) if row is not None and row["peak_gib"] <= gib)
        if kept is None or kept["step_ms"] > ms:
            yield f"{ms} ms within {gib} GiB"


if __name__ == "__main__":
    sys.exit(main())
