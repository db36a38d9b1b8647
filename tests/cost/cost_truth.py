"""What was measured on H200 (torch 2.11.0+cu130, NCCL 2.28.9, bf16, November 2026): the profile is fitted to it."""

import json
from pathlib import Path
from typing import Any

OPS: tuple[dict[str, Any], ...] = tuple(  # at work for a second or more: products and attention, forward and backward
    map(json.loads, (Path(__file__).parents[2] / "benchmarks" / "hardware" / "h200-ops.jsonl").read_text().splitlines())
)
PRODUCTS = ((2**20, 16.7), (2**27, 194.24))  # x * y of n elements: n, microseconds
NORMS = ((8192, 4096, 61.33), (32768, 4096, 172.18), (8192, 128256, 1646.43))  # rms_norm: rows, width, microseconds
COLLECTIVES = (  # group, MiB of the full tensor, microseconds: all-gather, reduce-scatter, all-reduce, all-to-all
    (4, 4, 67.89, 61.6, 68.38, 63.94),
    (4, 16, 96.0, 90.02, 126.66, 99.31),
    (4, 64, 214.42, 218.42, 375.31, 210.85),
    (4, 256, 696.03, 711.71, 1232.7, 708.83),
    (4, 1024, 2544.38, 2555.55, 4638.26, 2454.94),
    (2, 4, 43.06, 48.14, 54.88, 39.41),
    (2, 16, 67.9, 67.52, 90.67, 75.76),
    (2, 64, 176.05, 182.46, 264.45, 156.45),
    (2, 256, 572.86, 605.04, 911.79, 494.45),
    (2, 1024, 1977.42, 2038.86, 3268.99, 1662.4),
)
EAGER_STEPS = (  # Llama on 4 GPUs, data parallel: size, parameters sharded, ms a step, GiB (None: DDP's own buffers come on top)
    ("tiny", False, 17.43, None),
    ("1b", False, 166.65, None),
    ("1b", True, 193.0, 29.0),  # ms of local execution without overlap, GiB of FSDP2
    ("8b_l8", False, 262.75, None),
    ("8b_l8", True, 262.0, 30.55),  # the same
)
COMPILED_STEPS = (  # our runtime on two of them (benchmarks/runtime/README.md): plan of plans-two, ms a step, GiB
    ("8b-data", 1840.0, 34.6),
    ("8b-own", 1839.2, 59.1),
    ("8b-free", 1510.5, 105.2),
    ("8b-compiled", 1530.9, 101.2),
    ("8b_l8-own", 451.6, 41.8),
    ("8b_l8-data", 453.1, 31.9),
    ("8b_l8-compiled", 453.6, 32.9),
    ("8b_l8-tensor", 475.3, 39.0),
    ("1b-own", 270.7, 38.1),
    ("1b-data", 270.8, 28.6),
    ("1b-tensor", 297.9, 37.2),
)
COMPILED_ALONE = ((False, 135.1, 20.7), (True, 159.2, 12.5))  # Llama 1.5B, 2 x 4096 on one: whether all layers recompute, ms, GiB
COMPILED_BY_HAND = (("1b", 145.2, 15.3), ("8b_l8", 239.4, 17.9))  # FSDP2 on four, head and loss compiled too: size, ms, GiB
GPT2_XL_STEPS = ((True, 671.7, 95.3), (False, 780.9, 107.3))  # 32 x 1024 tokens on one H200: whether compiled, ms, GiB
