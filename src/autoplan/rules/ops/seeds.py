"""Random numbers of a shard: equal on ranks that hold the same values, different on others, given by the op's seed."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from autoplan.placement import Shard
from autoplan.rules.registry import LocalCall

_DEFAULT_GENERATOR = threading.Lock()  # simulated ranks share it


def shard_number(call: LocalCall) -> int:
    """Which shard of the first output this rank holds; R and P axes do not count."""
    number = 0
    for placement, n, index in zip(call.strategy.makes[0], call.mesh.shape, call.group.coordinate, strict=True):
        number = number * n + (index if isinstance(placement, Shard) else 0)
    return number


def generator(seed: int, shard: int, device: torch.device) -> torch.Generator:
    """The generator of a shard's numbers."""
    return torch.Generator(device).manual_seed(_mix(_mix(seed) + shard) >> 1)  # torch takes 63 bits


def _mix(value: int) -> int:
    """The finaliser of splitmix64 (Steele, Lea, Flood: Fast splittable pseudorandom number generators, 2014)."""
    mask = (1 << 64) - 1
    value = (value + 0x9E3779B97F4A7C15) & mask
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & mask
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & mask
    return value ^ (value >> 31)


def keep_mask(x: Tensor, p: float, seed: int, shard: int) -> Tensor:
    """True for a share 1 - p of the elements of `x`.

    An op of its own only where torch.compile needs one, which knows no generators: calling it takes the host longer than all it does.
    """
    return _keep_mask(x, p, seed, shard) if torch.compiler.is_compiling() else _drawn(x, p, seed, shard)


def _drawn(x: Tensor, p: float, seed: int, shard: int) -> Tensor:
    mask = torch.empty(x.shape, dtype=torch.bool, device=x.device)
    return mask.bernoulli_(1 - p, generator=generator(seed, shard, x.device))


_keep_mask = torch.library.custom_op("autoplan::keep_mask", _drawn, mutates_args=())


@_keep_mask.register_fake
def _(x: Tensor, p: float, seed: int, shard: int) -> Tensor:
    return torch.empty(x.shape, dtype=torch.bool, device=x.device)


@contextmanager
def seeded(call: LocalCall, device: torch.device) -> Iterator[None]:
    """The default generator of `device` seeded for this shard, put back afterwards: for ops that take no generator."""
    default = torch.cuda.default_generators[torch.cuda.current_device()] if device.type == "cuda" else torch.default_generator
    with _DEFAULT_GENERATOR:
        before = default.get_state()
        default.manual_seed(generator(call.seed, shard_number(call), torch.device("cpu")).initial_seed())
        try:
            yield
        finally:
            default.set_state(before)
