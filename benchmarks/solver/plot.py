"""Draws what measure.py wrote: python benchmarks/solver/plot.py times.jsonl [FOLDER]. A PNG for each series that grows."""

from __future__ import annotations

import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

from chart import Series, write_chart
from measure import lines_of

GROWING = {"depth": "layers", "rank": "axes of the mesh", "batch": "sequences", "small": "layers"}
STAGES = ("load", "capture", "problem", "solve", "unfold")  # enumerating rules takes a few tenths of a second


def main() -> None:
    source = Path(sys.argv[1])
    folder = Path(sys.argv[2]) if len(sys.argv) > 2 else source.parent
    series: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for line in lines_of(source):
        if line["series"] in GROWING and line["code"] == 0:
            series[line["series"]].append(line)
    for name, lines in series.items():
        lines.sort(key=lambda line: line["x"])
        drawn = [Series("command", tuple((line["x"], line["wall_s"]) for line in lines))]
        drawn += [Series(stage, tuple((line["x"], line["seconds"][stage]) for line in lines)) for stage in STAGES]
        path = folder / f"{source.stem}-{name}.png"
        write_chart(path, f"Planning time by {name}", f"{GROWING[name]} ({lines[0]['request']})", "seconds", drawn)
        print(path)


if __name__ == "__main__":
    main()
