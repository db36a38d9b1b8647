"""Ops as training steps of Llama run them, one after another for a while: what single launches on a cool device do not show.

    python benchmarks/hardware/ops.py --out h200-ops.jsonl

On one GPU, bf16. One JSON line per op: its shape, the median of milliseconds of forward and of backward over as many runs as fit into
`--seconds`, the same of the first 5 runs, and what the hardware profile predicts. Attention with as many key heads as query heads and
with fewer, products of layers and of the head, fused AdamW.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
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
ATTENTION = [  # batch, query heads, key heads, length, head size: Llama 1B and 8B, with and without shared key heads
    (4, 32, 8, 4096, 64),
    (4, 32, 32, 4096, 64),
    (2, 32, 8, 8192, 128),
    (2, 32, 32, 8192, 128),
]
PRODUCTS = [  # rows, from, to: Llama 8B with 2 x 8192 tokens, its head, the head of 1B with 4 x 4096
    (16384, 4096, 4096),
    (16384, 4096, 1024),
    (16384, 4096, 14336),
    (16384, 14336, 4096),
    (16384, 4096, 128256),
    (16384, 2048, 128256),
]
PARAMETERS = [1 << 24, 1 << 27, 1 << 30]
Run = Callable[[], None]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", required=True)
    parser.add_argument("--seconds", type=float, default=3.0, help="for each op")
    parser.add_argument("--hardware", default="h200-sxm")
    options = parser.parse_args()
    hardware = load_hardware(options.hardware)
    facts = {"date": f"{datetime.now(UTC):%Y-%m-%d}", "gpu": torch.cuda.get_device_name(), "torch": torch.__version__}
    with open(options.out, "w") as out:
        for line in measured(hardware, options.seconds):
            print(json.dumps(facts | line), file=out, flush=True)
            print(json.dumps(line), flush=True)


def measured(hardware: Hardware, seconds: float) -> Iterator[dict[str, Any]]:
    """A line for each op."""
    for batch, heads, key_heads, length, size in ATTENTION:
        shapes = [(batch, count, length, size) for count in (heads, key_heads, key_heads)]
        call = _call("aten.scaled_dot_product_attention.default", shapes, shapes[0], is_causal=True, enable_gqa=key_heads < heads)
        tensors = [_random(shape) for shape in shapes]
        yield {"op": "attention", "shape": [batch, heads, key_heads, length, size]} | _both(
            lambda tensors=tensors, shared=key_heads < heads: F.scaled_dot_product_attention(*tensors, is_causal=True, enable_gqa=shared),
            tensors,
            seconds,
            call_seconds(call, hardware),
        )
    for rows, before, after in PRODUCTS:
        shapes = [(rows, before), (after, before)]
        call = _call("aten.linear.default", shapes, (rows, after))
        tensors = [_random(shape) for shape in shapes]
        yield {"op": "product", "shape": [rows, before, after]} | _both(
            lambda tensors=tensors: F.linear(*tensors), tensors, seconds, call_seconds(call, hardware)
        )
    for count in PARAMETERS:
        parameter = torch.nn.Parameter(torch.randn(count, device="cuda", dtype=torch.bfloat16))
        parameter.grad = torch.randn_like(parameter)
        optimizer = torch.optim.AdamW([parameter], fused=True)
        first, later = _timed(lambda optimizer=optimizer: optimizer.step(), seconds)
        moved = 7 * 2 * count  # parameter, gradient and two moments read, all but the gradient written, 2 bytes each
        yield {"op": "adamw", "shape": [count], "first_ms": first, "ms": later, "bytes_per_s": moved / later * 1e3}


def _both(forward: Callable[[], Tensor], tensors: list[Tensor], seconds: float, cost: Any) -> dict[str, Any]:
    out = forward()
    gradient = torch.randn_like(out)
    one = _timed(lambda: forward(), seconds)
    two = _timed(lambda: torch.autograd.grad(out, tensors, gradient, retain_graph=True), seconds)
    names = ("first_forward_ms", "forward_ms", "first_backward_ms", "backward_ms")
    predicted = {"predicted_forward_ms": 1e3 * cost.forward_s, "predicted_backward_ms": 1e3 * cost.backward_s}
    return dict(zip(names, (*one, *two), strict=True)) | predicted


def _timed(run: Callable[[], Any], seconds: float) -> tuple[float, float]:
    """Median of the first runs and of all, in ms: events around each, nothing waited for in between."""
    for _ in range(3):
        run()
    torch.cuda.synchronize()
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    run()
    end.record()
    torch.cuda.synchronize()
    count = max(2 * FIRST, min(2000, int(seconds * 1e3 / max(start.elapsed_time(end), 1e-3))))
    marks = [torch.cuda.Event(enable_timing=True) for _ in range(count + 1)]
    marks[0].record()
    for mark in marks[1:]:
        run()
        mark.record()
    torch.cuda.synchronize()
    times = [before.elapsed_time(after) for before, after in zip(marks, marks[1:], strict=False)]
    return median(times[:FIRST]), median(times)


def _random(shape: tuple[int, ...]) -> Tensor:
    return torch.randn(shape, device="cuda", dtype=torch.bfloat16, requires_grad=True)


def _call(op: str, shapes: list[tuple[int, ...]], out: tuple[int, ...], **keywords: Any) -> Call:
    operands, outputs = (tuple(TensorSpec(shape, "bfloat16", needs_grad=True) for shape in some) for some in (shapes, [out]))
    return Call(op, tuple(map(Ref, range(len(shapes)))), keywords, operands, outputs, axis_size=1)


if __name__ == "__main__":
    main()
