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
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from autoplan.cost.compute import call_seconds
from autoplan.cost.hardware import Hardware, load_hardware
from autoplan.graph.ir import Ref
from autoplan.rules.row import Call, TensorSpec

FIRST = 5
ATTENTION = [  # batch, query heads, key heads, length, head size
    (4, 32, 8, 4096, 64),  # Llama 3.2 1B, with and without shared key heads
    (4, 32, 32, 4096, 64),
    (1, 32, 8, 8192, 64),
    (8, 12, 12, 1024, 64),  # GPT-2
    (4, 32, 32, 2048, 96),
    (2, 32, 8, 8192, 128),  # Llama 8B, with and without shared key heads
    (2, 32, 32, 8192, 128),
    (4, 16, 8, 4096, 128),  # the 1.5B of benchmarks/runtime
    (1, 32, 32, 8192, 128),
    (1, 8, 8, 8192, 128),
    (4, 32, 32, 2048, 128),
    (2, 16, 8, 4096, 256),
    (32, 25, 25, 1024, 64),  # GPT-2 XL
]
DROPPING = [  # the same, a tenth of the weights dropped
    (32, 25, 25, 1024, 64),
    (8, 12, 12, 1024, 64),  # GPT-2
    (8, 12, 12, 512, 64),
    (4, 32, 32, 4096, 64),
    (4, 16, 16, 2048, 128),
    (2, 32, 32, 8192, 128),
]
PRODUCTS = [  # rows, from, to
    (16384, 4096, 4096),  # Llama 8B with 2 x 8192 tokens, its head, the head of 1.5B with 4 x 4096
    (16384, 4096, 1024),
    (16384, 4096, 14336),
    (16384, 14336, 4096),
    (16384, 4096, 128256),
    (16384, 2048, 128256),
    (8192, 4096, 4096),  # the same with 8192 tokens, and parts of it
    (8192, 4096, 1024),
    (8192, 4096, 14336),
    (8192, 14336, 4096),
    (8192, 4096, 128256),
    (8192, 4096, 3584),
    (4096, 8192, 8192),
    (8192, 1024, 4096),
    (32768, 4096, 1024),
    (16384, 2048, 2048),  # layers of 1.5B
    (16384, 2048, 1024),
    (16384, 2048, 8192),
    (16384, 8192, 2048),
    (2048, 4096, 4096),  # small ones
    (1024, 4096, 4096),
    (512, 4096, 4096),
    (4096, 2048, 2048),
    (8192, 768, 3072),
    (16384, 1600, 50304),  # GPT-2's head, its vocabulary rounded up to whole tiles and as it is; rows that are not a multiple of 16 bytes
    (16384, 1600, 50257),
    (16384, 1600, 50260),
    (16384, 1600, 12565),
    (16384, 4096, 4095),
    (16384, 4095, 4096),
    (16384, 4094, 4096),
    (16384, 4092, 4096),
]
PARAMETERS = [1 << 24, 1 << 27, 1 << 30]
Run = Callable[[], Any]


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
    """Median of the first runs and of all, in ms: events around each, nothing waited for in between."""

    def once() -> tuple[torch.cuda.Event, torch.cuda.Event]:
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        if before:
            before()
        start.record()
        run()
        end.record()
        return start, end

    for _ in range(3):
        once()
    torch.cuda.synchronize()
    began = time.perf_counter()
    once()
    torch.cuda.synchronize()
    count = max(2 * FIRST, min(2000, int(seconds / (time.perf_counter() - began))))
    marks = [once() for _ in range(count)]
    torch.cuda.synchronize()
    times = [start.elapsed_time(end) for start, end in marks]
    return median(times[:FIRST]), median(times)


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
    if op == "attention":
        batch, heads, key_heads, length, size = shape
        shapes = [(batch, count, length, size) for count in (heads, key_heads, key_heads)]
        keywords: dict[str, Any] = {"dropout_p": dropout, "is_causal": True, "enable_gqa": key_heads < heads}
        name, out = "scaled_dot_product_attention", shapes[0]
    else:
        rows, before, after = shape
        shapes, keywords, name, out = [(rows, before), (after, before)], {}, "linear", (rows, after)
    operands, outputs = (tuple(TensorSpec(each, "bfloat16", needs_grad=True) for each in some) for some in (shapes, [out]))
    return Call(f"aten.{name}.default", tuple(map(Ref, range(len(shapes)))), keywords, operands, outputs, axis_size=1)


if __name__ == "__main__":
    main()
