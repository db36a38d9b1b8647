"""Random numbers of a shard: equal on ranks that hold the same values, different on others, given by the op's seed."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from autoplan.placement import Mesh, Placements, Shard

_DEFAULT_GENERATOR = threading.Lock()  # simulated ranks share it


def shard_number(placements: Placements, mesh: Mesh, coordinate: tuple[int, ...]) -> int:
    """Which shard of a value the rank at `coordinate` holds; R and P axes do not count."""
    number = 0
    for placement, n, index in zip(placements, mesh.shape, coordinate, strict=True):
        number = number * n + (index if isinstance(placement, Shard) else 0)
    return number


def generator(seed: int, shard: int, device: torch.device) -> torch.Generator:
    """The generator of a shard's numbers."""
    return torch.Generator(device).manual_seed(_shard_seed(seed, shard))


def _shard_seed(seed: int, shard: int) -> int:
    return _mix(_mix(seed) + shard) >> 1  # torch takes 63 bits


def _mix(value: int) -> int:
    """The finaliser of splitmix64 (Steele, Lea, Flood: Fast splittable pseudorandom number generators, 2014)."""
    mask = (1 << 64) - 1
    value = (value + 0x9E3779B97F4A7C15) & mask
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & mask
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & mask
    return value ^ (value >> 31)


def dropped(x: Tensor, p: float, seed: int, shard: int) -> tuple[Tensor, Tensor]:
    """`x` without a share `p` of its elements, the others divided by 1 - p, and the mask of what is left.

    The mask is an op of its own only where torch.compile needs one, which knows no generators. Eager CUDA has one kernel for all that.
    """
    if torch.compiler.is_compiling():
        keep = _keep_mask(x.detach(), p, seed, shard)
    elif x.is_cuda and p < 1:
        return torch.ops.aten._fused_dropout(x, 1 - p, generator(seed, shard, x.device))
    else:
        keep = _drawn(x.detach(), p, seed, shard)
    return x * keep * (1 / (1 - p) if p < 1 else 0.0), keep


def _drawn(x: Tensor, p: float, seed: int, shard: int) -> Tensor:
    mask = torch.empty(x.shape, dtype=torch.bool, device=x.device)
    return mask.bernoulli_(1 - p, generator=generator(seed, shard, x.device))


def random_tensor(
    kind: str, shape: Sequence[int], bounds: Sequence[float], dtype: torch.dtype, device: torch.device, seed: int, shard: int
) -> Tensor:
    """Random numbers: `rand`, `randn`, `randperm`, `randint` (`bounds` low and high), `normal` (mean and standard deviation)."""
    draw = _random if torch.compiler.is_compiling() else _new
    return draw(kind, shape, bounds, dtype, device, seed, shard)


def _new(
    kind: str, shape: Sequence[int], bounds: Sequence[float], dtype: torch.dtype, device: torch.device, seed: int, shard: int
) -> Tensor:
    options: dict[str, Any] = {"generator": generator(seed, shard, device), "dtype": dtype, "device": device}
    if kind == "randperm":
        return torch.randperm(shape[0], **options)
    if kind == "randint":
        return torch.randint(int(bounds[0]), int(bounds[1]), tuple(shape), **options)
    if kind == "normal":
        return torch.normal(bounds[0], bounds[1], shape, **options)
    return torch.rand(shape, **options) if kind == "rand" else torch.randn(shape, **options)


_LIBRARY = torch.library.Library("autoplan", "FRAGMENT")
_LIBRARY.define("keep_mask(Tensor x, float p, SymInt seed, SymInt shard) -> Tensor")
_LIBRARY.impl("keep_mask", _drawn, "CompositeExplicitAutograd")  # not `custom_op`, whose wrappers take the host longer than the drawing
torch.library.register_fake("autoplan::keep_mask", lambda x, p, seed, shard: torch.empty_like(x, dtype=torch.bool), lib=_LIBRARY)
_keep_mask = torch.ops.autoplan.keep_mask.default

_LIBRARY.define("random(str kind, SymInt[] shape, float[] bounds, ScalarType dtype, Device device, SymInt seed, SymInt shard) -> Tensor")
_LIBRARY.impl("random", _new, "CompositeExplicitAutograd")
torch.library.register_fake(
    "autoplan::random", lambda kind, shape, bounds, dtype, device, *_: torch.empty(shape, dtype=dtype, device=device), lib=_LIBRARY
)
_random = torch.ops.autoplan.random.default


@contextmanager
def default_generator_of(seed: int, shard: int, device: torch.device) -> Iterator[None]:
    """The default generator of `device` seeded for a shard, put back afterwards: for ops that take no generator."""
    default = torch.cuda.default_generators[torch.cuda.current_device()] if device.type == "cuda" else torch.default_generator
    with _DEFAULT_GENERATOR:
        before = default.get_state()
        default.manual_seed(_shard_seed(seed, shard))
        try:
            yield
        finally:
            default.set_state(before)
