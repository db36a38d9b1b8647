"""Ops as training steps of Llama run them, one after another for a while: what single launches on a cool device do not show.

    python benchmarks/hardware/ops.py --out h200-ops.jsonl
    python benchmarks/hardware/ops.py --table h200-ops.jsonl

The first on one GPU, bf16. One JSON line per op: its shape, the median of milliseconds of forward and of backward over as many runs as
fit into `--seconds`, and the same of the first 5 runs; of attention also `among_*`: three products of 8B's width before each run, not
timed, since in a step a device comes from these. Attention with as many key heads as query heads and with fewer, products of layers and
of the head, fused AdamW; `--only attention` measures that alone. The second prints a table of such a file, with what the hardware profile predicts.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from autoplan.calibrate import shapes
from autoplan.calibrate.clock import FIRST, Run, times
from autoplan.calibrate.works import Attention, Product
from autoplan.cost.compute import call_seconds
from autoplan.cost.hardware import Hardware, load_hardware
from autoplan.rules.row import Call

ATTENTION = [*shapes.ATTENTION, (32, 25, 25, 1024, 64)]  # the last is GPT-2 XL
DROPPING = [  # the same, a tenth of the weights dropped
    (32, 25, 25, 1024, 64),
    (8, 12, 12, 1024, 64),  # GPT-2
    (8, 12, 12, 512, 64),
    (4, 32, 32, 4096, 64),
    (4, 16, 16, 2048, 128),
    (2, 32, 32, 8192, 128),
]
PRODUCTS = [*shapes.PRODUCTS, (16384, 1600, 50304), *shapes.MISALIGNED]  # GPT-2's head with its vocabulary rounded up to whole tiles
PARAMETERS = [1 << 24, 1 << 27, 1 << 30]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--out", help="measure, and write lines to this file")
    what.add_argument("--table", help="print the lines of this file beside predictions")
    parser.add_argument("--seconds", type=float, default=3.0, help="for each op")
    parser.add_argument("--only", choices=["attention"], help="leave the other ops out")
    parser.add_argument("--hardware", default="h200-sxm")
    options = parser.parse_args()
    if options.table:
        print_table(Path(options.table), load_hardware(options.hardware))
        return
    facts = {"date": f"{datetime.now(UTC):%Y-%m-%d}", "gpu": torch.cuda.get_device_name(), "torch": torch.__version__}
    with open(options.out, "w") as out:
        for line in measured_attention(options.seconds) if options.only else measured(options.seconds):
            print(json.dumps(facts | line), file=out, flush=True)
            print(json.dumps(line), flush=True)


def measured_attention(seconds: float) -> Iterator[dict[str, Any]]:
    """A line for each shape of attention."""
    products = [_random((16384, 4096)), _random((14336, 4096))]
    for dropout, (batch, heads, key_heads, length, size) in [*((0.0, s) for s in ATTENTION), *((0.1, s) for s in DROPPING)]:
        tensors = [_random((batch, length, count, size), heads_first=True) for count in (heads, key_heads, key_heads)]
        options = {"dropout_p": dropout, "is_causal": True, "enable_gqa": key_heads < heads}
        yield {"op": "attention", "shape": [batch, heads, key_heads, length, size], "dropout": dropout} | _both(
            lambda tensors=tensors, options=options: F.scaled_dot_product_attention(*tensors, **options),
            tensors,
            seconds,
            among=lambda: [F.linear(*products) for _ in range(3)],
        )


def measured(seconds: float) -> Iterator[dict[str, Any]]:
    """A line for each op."""
    yield from measured_attention(seconds)
    for rows, before, after in PRODUCTS:
        tensors = [_random((rows, before)), _random((after, before))]
        yield {"op": "product", "shape": [rows, before, after]} | _both(lambda tensors=tensors: F.linear(*tensors), tensors, seconds)
    for count in PARAMETERS:
        parameter = torch.nn.Parameter(torch.randn(count, device="cuda", dtype=torch.bfloat16))
        parameter.grad = torch.randn_like(parameter)
        optimizer = torch.optim.AdamW([parameter], fused=True)
        first, later = _timed(lambda optimizer=optimizer: optimizer.step(), seconds)
        yield {"op": "adamw", "shape": [count], "first_ms": first, "ms": later, "bytes_per_s": _adamw_bytes(count) / later * 1e3}


def _adamw_bytes(count: int) -> int:
    """Parameter, gradient and two moments read, all but the gradient written, 2 bytes each."""
    return 7 * 2 * count


def _both(forward: Run, tensors: list[Tensor], seconds: float, among: Run | None = None) -> dict[str, float]:
    out = forward()
    gradient = torch.randn_like(out)
    found: dict[str, float] = {}
    for name, run in (("forward", forward), ("backward", lambda: torch.autograd.grad(out, tensors, gradient, retain_graph=True))):
        found[f"first_{name}_ms"], found[f"{name}_ms"] = _timed(run, seconds)
        if among:
            found[f"among_{name}_ms"] = _timed(run, seconds, among)[1]
    return found


def _timed(run: Run, seconds: float, before: Run | None = None) -> tuple[float, float]:
    """Median of the first runs and of all, in ms."""
    taken = times(run, seconds, before)
    return 1e3 * median(taken[:FIRST]), 1e3 * median(taken)


def print_table(path: Path, hardware: Hardware) -> None:
    """The lines of a file beside predictions, in ms, the errors against `among_*` where it is there."""
    print("| | forward | among products | predicted | | backward | among products | predicted | |\n|---|---|---|---|---|---|---|---|---|")
    for row in map(json.loads, path.read_text().splitlines()):
        name = f"{row['op']} {' x '.join(map(str, row['shape']))}{', dropout' if row.get('dropout') else ''}"
        if row["op"] == "adamw":
            predicted = 1e3 * _adamw_bytes(row["shape"][0]) / hardware.compute.optimizer_bytes_per_s
            print(f"| {name} | {_beside(row['ms'], None, predicted)} | | | | |")
            continue
        cost = call_seconds(_call(row["op"], row["shape"], row.get("dropout", 0.0)), hardware)
        predicted = {"forward": 1e3 * cost.forward_s, "backward": 1e3 * cost.backward_s}
        cells = [_beside(row[f"{way}_ms"], row.get(f"among_{way}_ms"), ms) for way, ms in predicted.items()]
        print(f"| {name} | {' | '.join(cells)} |")


def _beside(alone: float, among: float | None, predicted: float) -> str:
    times = [alone, among] if among else [alone]
    measured = [f"{ms:.4g}" for ms in times] + [""] * (2 - len(times))
    return " | ".join([*measured, f"{predicted:.4g}", ", ".join(f"{predicted / ms - 1:+.0%}" for ms in times)])


def _random(shape: tuple[int, ...], *, heads_first: bool = False) -> Tensor:
    """Random numbers; with `heads_first` a view [batch, heads, length, size] of [batch, length, heads, size], as models have it."""
    found = torch.randn(shape, device="cuda", dtype=torch.bfloat16)
    return (found.transpose(1, 2) if heads_first else found).requires_grad_()


def _call(op: str, shape: list[int], dropout: float) -> Call:
    """The call that a line is about."""
    return (Attention(*shape, "bfloat16", dropout=bool(dropout)) if op == "attention" else Product(*shape, "bfloat16")).call


if __name__ == "__main__":
    main()
