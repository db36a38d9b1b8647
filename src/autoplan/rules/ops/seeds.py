"""Random numbers of a shard: equal on ranks that hold the same values, different on others, given by the op's seed."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from autoplan.placement import Shard
from autoplan.rules.registry import LocalCall

_DEFAULT_GENERATOR = threading.Lock()  # simulated ranks share it


def shard_seed(call: LocalCall) -> int:
    """A seed from the op's seed and where this rank sits on the axes that cut its first output; R and P axes do not count.

    Splitmix64's finaliser mixes one coordinate after another (Steele, Lea, Flood: Fast splittable pseudorandom number
    generators, 2014).
    """
    value = call.seed
    for placement, index in zip(call.strategy.makes[0], call.group.coordinate, strict=True):
        value = _mix(value * 31 + (index + 1 if isinstance(placement, Shard) else 0))
    return value >> 1  # torch takes 63 bits


def _mix(value: int) -> int:
    mask = (1 << 64) - 1
    value = (value + 0x9E3779B97F4A7C15) & mask
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & mask
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & mask
    return value ^ (value >> 31)


def generator(call: LocalCall, device: torch.device) -> torch.Generator:
    """A generator of this shard's numbers."""
    return torch.Generator(device).manual_seed(shard_seed(call))


@contextmanager
def seeded(call: LocalCall, device: torch.device) -> Iterator[None]:
    """The default generator of `device` seeded for this shard, put back afterwards: for ops that take no generator."""
    cuda = [device] if device.type == "cuda" else []
    with _DEFAULT_GENERATOR, torch.random.fork_rng(devices=cuda):
        torch.manual_seed(shard_seed(call))
        yield
