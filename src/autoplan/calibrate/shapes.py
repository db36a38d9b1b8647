"""Which works say what a device can do: large enough to keep it busy, and as models have them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from autoplan.calibrate.works import Attention, Collective, Drop, Multiply, Product, Update, Way, Work
from autoplan.cost.hardware import KINDS
from autoplan.placement import parse_mesh

WAYS: tuple[Way, Way] = ("forward", "backward")

ATTENTION = (  # batch, query heads, key heads, length, head size
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
)
ATTENTION_QUICK = ((4, 32, 8, 4096, 64), (8, 12, 12, 1024, 64), (4, 32, 32, 2048, 96), (2, 32, 8, 8192, 128), (1, 8, 8, 8192, 128), (2, 16, 8, 4096, 256))  # fmt: skip
ATTENTION_CPU = ((2, 4, 4, 128, 32), (4, 4, 4, 256, 32), (1, 8, 8, 256, 64), (1, 4, 4, 512, 64), (2, 4, 4, 128, 128), (1, 4, 4, 384, 128))
DROPPING = ((8, 12, 12, 1024, 64), (4, 32, 32, 4096, 64), (2, 32, 32, 8192, 128))  # they are among ATTENTION: what dropout adds is fitted

PRODUCTS = (  # rows, from, to
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
)
PRODUCTS_QUICK = ((16384, 4096, 4096), (16384, 4096, 1024), (8192, 4096, 14336), (16384, 2048, 2048), (8192, 1024, 4096), (1024, 4096, 4096), (4096, 2048, 2048), (8192, 768, 3072))  # fmt: skip
PRODUCTS_CPU = (
    (512, 512, 512),
    (1024, 512, 1024),
    (1024, 256, 256),
    (256, 1024, 1024),
    (2048, 128, 512),
    (512, 64, 512),
    (512, 512, 64),
    (128, 128, 128),
    (64, 512, 512),
)
MISALIGNED = (  # GPT-2's vocabulary and the like: rows that are not a multiple of 16 bytes
    (16384, 1600, 50257),
    (16384, 1600, 50260),
    (16384, 1600, 12565),
    (16384, 4096, 4095),
    (16384, 4095, 4096),
    (16384, 4094, 4096),
    (16384, 4092, 4096),
)
MISALIGNED_QUICK = ((16384, 1600, 12565), (16384, 4095, 4096), (16384, 4094, 4096))
SIZES = tuple(2**k for k in range(16, 31, 2))  # bytes of collectives, 64 KiB to 1 GiB
SIZES_CPU = tuple(2**k for k in range(12, 23, 2))  # 4 KiB to 4 MiB


def works_of_device(kind: str, dtype: str, others: Sequence[str], *, quick: bool) -> Iterator[Work]:
    """What one device does by itself. Of the dtypes in `others` the peak is not known."""
    if kind == "cuda":
        yield from (Multiply(2**k, dtype) for k in (26, 27))
        yield from (Multiply(2**k, dtype, "launch") for k in (12, 16))
        yield from _products(PRODUCTS_QUICK if quick else PRODUCTS, dtype)
        yield from _products(MISALIGNED_QUICK if quick else MISALIGNED, dtype, "products misaligned")
        yield from (Product(2048, 2048, 2048, each, family="products in other dtypes") for each in others)
        yield from _attention(ATTENTION_QUICK if quick else ATTENTION, dtype)
        yield from _attention(DROPPING[:1] if quick else DROPPING, dtype, dropout=True)
        yield from (Drop(count, dtype) for count in (2**24, 13 * 2**22))
        yield from (Update(2**k, 2 ** (k - 23), dtype) for k in (27, 29))
        return
    yield from (Multiply(2**k, dtype) for k in (21, 22))  # beyond 32 MiB malloc takes fresh pages from the kernel each time
    yield from (Multiply(2**k, dtype, "launch") for k in (4, 8))
    yield from _products(PRODUCTS_CPU, dtype)
    yield from (Product(256, 256, 256, each, family="products in other dtypes") for each in others)
    yield from _attention(ATTENTION_CPU, dtype)
    yield from _attention(ATTENTION_CPU[2:4], dtype, dropout=True)
    yield from (Drop(2**k, dtype) for k in (18, 20))
    yield from (Update(2**k, 2 ** (k - 18), dtype) for k in (20, 22))


def collectives(kind: str, ranks: int, per_host: int, item_bytes: int, *, quick: bool) -> Iterator[Collective]:
    """Inside hosts groups of 2, 4, 8, ... and of all; across hosts one rank of each, and all. Between the sizes of tables a few more."""
    sizes = SIZES if kind == "cuda" else SIZES_CPU
    between = () if quick else tuple(3 * size for size in sizes[1:-1:2])
    for group in group_sizes(per_host):
        mesh = parse_mesh(f"{ranks // group}x{group}" if group < ranks else str(ranks))
        for size, is_between in [*((size, False) for size in sizes), *((size, True) for size in between)]:
            full = _divisible(size, group * item_bytes)
            yield from (Collective(each, mesh, (mesh.ndim - 1,), full, per_host, is_between) for each in KINDS)
    if ranks == per_host:
        return
    hosts = ranks // per_host
    mesh = parse_mesh(f"{hosts}x{per_host}")
    for axes in ((0,), (0, 1)) if per_host > 1 else ((0, 1),):
        for size in sizes[::2] if quick else sizes:
            full = _divisible(size, mesh.group_size(axes) * item_bytes)
            yield from (Collective(each, mesh, axes, full, per_host) for each in KINDS)


def group_sizes(per_host: int) -> tuple[int, ...]:
    """2, 4, 8, ... as far as such groups fill a host, and the whole host."""
    doublings = {2**k for k in range(1, per_host.bit_length()) if per_host % 2**k == 0}
    return tuple(sorted(doublings | ({per_host} if per_host > 1 else set())))


def _products(shapes: Sequence[tuple[int, int, int]], dtype: str, family: str = "products") -> Iterator[Work]:
    yield from (Product(*shape, dtype, way, family) for shape in shapes for way in WAYS)


def _attention(shapes: Sequence[tuple[int, int, int, int, int]], dtype: str, *, dropout: bool = False) -> Iterator[Work]:
    yield from (Attention(*shape, dtype, way, dropout) for shape in shapes for way in WAYS)


def _divisible(nbytes: int, unit: int) -> int:
    return -(-nbytes // unit) * unit
