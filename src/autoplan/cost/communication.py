"""Seconds of collectives and of redistributions, from tables where they were measured and from a formula elsewhere.

All groups of one collective run at once. Ranks are row-major, so a group over the last axes sits inside a node as long as it
fits there, and a group that spans nodes shares the network cards of its nodes with the other groups.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from dataclasses import dataclass
from functools import lru_cache
from math import exp, log, log2

from autoplan.cost.hardware import Hardware
from autoplan.placement import Mesh, Placement, Shard
from autoplan.redistribution import Step


@dataclass(frozen=True, slots=True)
class Span:
    """Where the groups over some axes sit: ranks of a group, nodes it touches, and what the busiest node has to send.

    `rings` is the number of groups that leave the busiest node. `pairs` is the number of (rank in the node, rank of its group
    elsewhere) pairs there.
    """

    ranks: int
    nodes: int
    rings: int
    pairs: int


@lru_cache(maxsize=4096)
def span(axes: tuple[int, ...], mesh: Mesh, gpus_per_node: int) -> Span:
    """The span of the groups over `axes` on nodes of `gpus_per_node` ranks."""
    ranks = mesh.group_size(axes)
    if mesh.size <= gpus_per_node:
        return Span(ranks, 1, 0, 0)
    groups: dict[tuple[int, ...], Counter[int]] = {}
    for rank, coordinate in enumerate(mesh.coordinates()):
        key = tuple(0 if axis in axes else index for axis, index in enumerate(coordinate))
        groups.setdefault(key, Counter())[rank // gpus_per_node] += 1
    rings: Counter[int] = Counter()
    pairs: Counter[int] = Counter()
    for members in groups.values():
        for node, here in members.items():
            if here < ranks:
                rings[node] += 1
                pairs[node] += here * (ranks - here)
    return Span(ranks, max(map(len, groups.values())), max(rings.values(), default=0), max(pairs.values(), default=0))


@lru_cache(maxsize=200_000)
def collective_seconds(kind: str, axes: tuple[int, ...], full_bytes: float, mesh: Mesh, hardware: Hardware) -> float:
    """Seconds of one collective over `axes`; `full_bytes` is the gathered local tensor (all-reduce and all-to-all: the tensor itself).

    A group of one rank costs nothing. Across nodes: the larger of the time inside the node and the time of the network cards,
    for which a ring sends bytes (n-1)/n per group (twice for an all-reduce), and an all-to-all bytes/n per pair of ranks.
    """
    where = span(axes, mesh, hardware.gpus_per_node)
    if where.ranks == 1 or full_bytes <= 0:
        return 0.0
    if where.nodes == 1:
        return _inside_node(kind, where.ranks, full_bytes, hardware)
    sent = full_bytes * (where.pairs / where.ranks if kind == "all-to-all" else where.rings * _traffic(kind, where.ranks))
    link = hardware.node_link
    inside = full_bytes * _traffic(kind, where.ranks) / link.bytes_per_s[kind]
    latency = _latency(where.ranks, hardware) + hardware.network.latency_s * log2(where.nodes)
    return latency + max(inside, sent / hardware.network.bytes_per_s)


def _inside_node(kind: str, ranks: int, full_bytes: float, hardware: Hardware) -> float:
    table = hardware.node_link.measured.get((ranks, kind))
    if table:
        return _interpolate(table, full_bytes)
    return _latency(ranks, hardware) + full_bytes * _traffic(kind, ranks) / hardware.node_link.bytes_per_s[kind]


def _latency(ranks: int, hardware: Hardware) -> float:
    pair, per_doubling = hardware.node_link.latency_s
    return pair + per_doubling * (log2(ranks) - 1)


def _traffic(kind: str, ranks: int) -> float:
    """Bytes through one rank's link per byte of the full tensor (nccl-tests' bus bandwidth)."""
    return (2 if kind == "all-reduce" else 1) * (ranks - 1) / ranks


def _interpolate(table: tuple[tuple[float, float], ...], nbytes: float) -> float:
    """Log-log between neighbours; below the table its least time, above it the last bandwidth."""
    first, last = table[0], table[-1]
    if nbytes <= first[0]:
        return first[1]
    if nbytes >= last[0]:
        return last[1] * nbytes / last[0]
    (x0, t0), (x1, t1) = table[(at := bisect_left(table, (nbytes,))) - 1], table[at]
    return exp(log(t0) + (log(t1) - log(t0)) * log(nbytes / x0) / log(x1 / x0))


def steps_seconds(steps: tuple[Step, ...], global_bytes: float, mesh: Mesh, hardware: Hardware) -> float:
    """Seconds of a redistribution of a tensor of `global_bytes`: its collectives, and the copies before and after them."""
    return sum(step_seconds(step, global_bytes, mesh, hardware) for step in steps)


def step_seconds(step: Step, global_bytes: float, mesh: Mesh, hardware: Hardware) -> float:
    """Seconds of one step, with the copies that the runtime makes (collectives/redistribute)."""
    seconds = copied_seconds(step, global_bytes, mesh, hardware)
    if step.is_collective:
        seconds += collective_seconds(step.kind, step.axes, global_bytes / step.full_divisor, mesh, hardware)
    return seconds


def copied_seconds(step: Step, global_bytes: float, mesh: Mesh, hardware: Hardware) -> float:
    """Seconds of the copies before and after one step."""
    ranks = mesh.group_size(step.axes)
    copied = _copied_bytes(step, global_bytes / step.full_divisor, ranks) if ranks > 1 else ()
    return sum(map(hardware.copy_seconds, copied))


def _copied_bytes(step: Step, full: float, ranks: int) -> tuple[float, ...]:
    """Bytes read and written by each copy of a step: collectives take and give the parts of ranks one after the other."""
    part = full / ranks
    match step.kind:
        case "slice":
            return (2 * part,) if _strided(step.dst) else ()
        case "keep":
            return (full,)
        case "pad":
            return (full, 2 * part)
        case "all-reduce":
            return (2 * full,)
        case "all-gather":
            return (2 * full,) if _strided(step.src) else ()
        case "reduce-scatter":
            return (2 * full,) if _strided(step.dst) else ()
        case "all-to-all":
            return ((2 * full,) if _strided(step.dst) else ()) + ((2 * full,) if _strided(step.src) else ())


def _strided(placement: Placement) -> bool:
    """Whether a rank's part lies scattered in the full tensor."""
    assert isinstance(placement, Shard)
    return placement.dim > 0 or placement.groups > 1
