"""What a machine can do: a profile (YAML) as values in bytes, flops and seconds.

Every number of a profile carries its source in a comment there. A file given by path, or found in ./configs/hardware, comes
before those that ship with the package.
"""

from __future__ import annotations

import difflib
import hashlib
import json
from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from dataclasses import fields as dataclass_fields
from pathlib import Path
from typing import Any

from autoplan.cost.profile_file import Problems, Section, read_profile
from autoplan.errors import HardwareError, UsageError

KINDS = ("all-gather", "reduce-scatter", "all-reduce", "all-to-all")
PROFILES = Path(__file__).parent / "profiles"
LOCAL_PROFILES = Path("configs/hardware")
GIB = 2**30


@dataclass(frozen=True, slots=True)
class Matmul:
    """Flops per second of [M, K] @ [K, N] = peak x efficiency / (1 + half_depth / K) / (1 + half_tile / (M N)), or its bytes if slower.

    `misaligned` are (bytes, share), bytes rising: what is left of that where rows are a multiple of so many bytes, but not of 16.
    """

    efficiency: float
    half_depth: float
    half_tile: float
    misaligned: tuple[tuple[float, float], ...] = ()

    def aligned(self, row_bytes: int) -> float:
        """The share that rows of so many bytes leave."""
        return next((share for nbytes, share in reversed(self.misaligned) if row_bytes % nbytes == 0), 1.0) if row_bytes % 16 else 1.0


@dataclass(frozen=True, slots=True)
class Attention:
    """Flops per second of attention = peak x efficiency x min(1, flops / at_flops) ^ exponent.

    `efficiencies` are (head size, efficiency), sizes rising; there is at least one.
    """

    efficiencies: tuple[tuple[float, float], ...]
    at_flops: float
    exponent: float

    def efficiency(self, head_size: float) -> float:
        """That of a head size: on the line between its neighbours in the table, beyond the table as at its end."""
        at = bisect_left(self.efficiencies, (head_size,))
        (size, low), (next_size, high) = self.efficiencies[max(at - 1, 0)], self.efficiencies[min(at, len(self.efficiencies) - 1)]
        return low if size == next_size else low + (high - low) * (head_size - size) / (next_size - size)


@dataclass(frozen=True, slots=True)
class Draws:
    """Seconds of each random number: of a mask, which takes at least as long as its bytes, and of each weight that attention drops or keeps.

    Attention draws its numbers forward and once more backward, beside its products.
    """

    mask_s: float = 0.0
    attention_forward_s: float = 0.0
    attention_backward_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Compute:
    """One device: peak flops per second by dtype, what kernels reach of it, and the least time of a kernel.

    `optimizer_bytes_per_s` is what the optimizer's fused kernel reaches of `bytes_per_s`.
    """

    flops_per_s: Mapping[str, float]
    bytes_per_s: float
    optimizer_bytes_per_s: float
    launch_s: float
    matmul: Matmul
    attention_forward: Attention
    attention_backward: Attention
    draws: Draws = Draws()

    def peak(self, dtype: str) -> float:
        """Peak flops per second; dtypes without a number of their own run as float32."""
        return self.flops_per_s.get(dtype) or self.flops_per_s["float32"]


@dataclass(frozen=True, slots=True)
class NodeLink:
    """Links inside a node. `latency_s` is (of 2 ranks, more for each doubling); `bytes_per_s` the bus bandwidth by kind.

    `measured[group size, kind]` is a table of (bytes, seconds), seconds never falling.
    """

    latency_s: tuple[float, float]
    bytes_per_s: Mapping[str, float]
    measured: Mapping[tuple[int, str], tuple[tuple[float, float], ...]]

    def without_tables(self) -> NodeLink:
        """As it is for group sizes that nobody measured: by the formula alone."""
        return replace(self, measured={})


@dataclass(frozen=True, slots=True)
class Network:
    """Between nodes: seconds for each doubling of nodes, and bytes per second of all cards of a node, each way."""

    latency_s: float
    bytes_per_s: float


@dataclass(frozen=True, slots=True)
class Host:
    """Seconds of the host per op, forward and backward together, and per collective of a redistribution, in eager mode."""

    op_s: float
    redistribution_s: float

    @property
    def one_way_s(self) -> float:
        """Seconds per op forward alone, or per step of a redistribution that does not communicate."""
        return self.op_s / 2


@dataclass(frozen=True)
class Hardware:
    """A machine of equal devices, `gpus_per_node` to a node. `digest` names the content of its profile, comments aside.

    `hides` is the part of a collective's time that computing beside it gains: 0 where nothing does, less than 1 as far as both
    take turns on cores and memory.
    """

    name: str
    device: str
    memory_bytes: int  # of one device, usable by tensors
    gpus_per_node: int
    compute: Compute
    node_link: NodeLink
    network: Network
    host: Host
    hides: float = 0.0
    digest: str = field(default="")

    def __hash__(self) -> int:
        return hash(self.digest)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Hardware) and self.digest == other.digest

    def changed(self, **fields: Any) -> Hardware:
        """The same machine but for these fields, with a digest of its own: costs that are remembered are so by digest."""
        other = replace(self, **fields)
        content = repr([getattr(other, each.name) for each in dataclass_fields(other) if each.name != "digest"])
        return replace(other, digest="changed:" + hashlib.sha256(content.encode()).hexdigest())

    def mask_seconds(self, count: float) -> float:
        """Seconds in which one kernel draws and writes a mask of `count` numbers of a byte."""
        return max(self.copy_seconds(count), count * self.compute.draws.mask_s)

    def copy_seconds(self, nbytes: float) -> float:
        """Seconds of one kernel that reads and writes `nbytes` in all; nothing for none."""
        return max(self.compute.launch_s, nbytes / self.compute.bytes_per_s) if nbytes else 0.0


def profile_names() -> tuple[str, ...]:
    """Names of the profiles in ./configs/hardware and of those that ship."""
    return tuple(sorted({path.stem for folder in (LOCAL_PROFILES, PROFILES) for path in folder.glob("*.yaml")}))


def load_hardware(name_or_path: str | Path) -> Hardware:
    """The profile of that name or file; raises UsageError for an unknown name, HardwareError for all that is wrong in a file."""
    text = str(name_or_path)
    if "/" in text or text.endswith((".yaml", ".yml")):
        path = Path(text)
        if not path.is_file():
            raise HardwareError(f"{text}: no such hardware profile", next_step=f"give a file, or one of {', '.join(profile_names())}")
        return _parse(path)
    for folder in (LOCAL_PROFILES, PROFILES):
        path = folder / f"{text}.yaml"
        if path.is_file():
            return _parse(path)
    names = profile_names()
    close = difflib.get_close_matches(text, names, 1, cutoff=0.4)
    guess = f"did you mean {close[0]}? " if close else ""
    raise UsageError(f"unknown hardware {text!r}", where=f"known: {', '.join(names)}", next_step=f"{guess}a path to a profile works too")


def _parse(path: Path) -> Hardware:
    top = read_profile(path)
    hardware = _hardware(path, top, top.problems)
    top.problems.raise_any()
    assert hardware is not None
    return hardware


def _hardware(path: Path, top: Section, problems: Problems) -> Hardware | None:
    top.allow(
        "autoplan_hardware",
        "device",
        "memory_gib",
        "gpus_per_node",
        "compute",
        "node_link",
        "network",
        "host",
        "overlap",
        optional=("overlap",),
    )
    if top.integer("autoplan_hardware") not in (1, None):
        problems.add("autoplan_hardware", "only version 1 is known", top)
    device = top.text("device")
    memory_gib = top.number("memory_gib")
    gpus_per_node = top.integer("gpus_per_node")
    compute = _compute(top.section("compute"))
    link = _node_link(top.section("node_link"))
    network, host = top.section("network"), top.section("host")
    network.allow("latency_s", "bytes_per_s")
    host.allow("op_s", "redistribution_s")
    numbers = (
        Network(network.number("latency_s", zero=True), network.number("bytes_per_s", infinite=True)),
        Host(host.number("op_s", zero=True), host.number("redistribution_s", zero=True)),
        _hides(top.section("overlap")) if "overlap" in top.names() else 0.0,
    )
    if problems:
        return None
    digest = "sha256:" + hashlib.sha256(json.dumps(top.plain(), sort_keys=True).encode()).hexdigest()
    assert gpus_per_node is not None
    return Hardware(path.stem, device, int(memory_gib * GIB), gpus_per_node, compute, link, *numbers, digest)


def _hides(section: Section) -> float:
    section.allow("hides")
    hides = section.number("hides", zero=True)
    if hides > 1:
        section.problems.add("hides", "is a part: at most 1", section)
    return hides


def _compute(section: Section) -> Compute:
    section.allow(
        "flops_per_s",
        "bytes_per_s",
        "optimizer_bytes_per_s",
        "launch_s",
        "matmul",
        "attention_forward",
        "attention_backward",
        "draws",
        optional=("optimizer_bytes_per_s", "draws"),
    )
    peaks = section.section("flops_per_s")
    flops_per_s = {dtype: peaks.number(dtype) for dtype in peaks.names()}
    if "float32" not in flops_per_s:
        section.problems.add("flops_per_s", "float32 is missing", section)
    matmul = section.section("matmul")
    matmul.allow("efficiency", "half_depth", "half_tile", "misaligned", optional=("misaligned",))
    return Compute(
        flops_per_s=flops_per_s,
        bytes_per_s=section.number("bytes_per_s"),
        optimizer_bytes_per_s=section.number("optimizer_bytes_per_s" if "optimizer_bytes_per_s" in section.names() else "bytes_per_s"),
        launch_s=section.number("launch_s", zero=True),
        matmul=Matmul(
            matmul.number("efficiency"),
            matmul.number("half_depth", zero=True),
            matmul.number("half_tile", zero=True),
            matmul.by_size("misaligned") if "misaligned" in matmul.names() else (),
        ),
        attention_forward=_attention(section.section("attention_forward")),
        attention_backward=_attention(section.section("attention_backward")),
        draws=_draws(section.section("draws")) if "draws" in section.names() else Draws(),
    )


def _draws(section: Section) -> Draws:
    section.allow("mask_s", "attention_forward_s", "attention_backward_s")
    return Draws(*(section.number(key, zero=True) for key in ("mask_s", "attention_forward_s", "attention_backward_s")))


def _attention(section: Section) -> Attention:
    section.allow("efficiency", "at_flops", "exponent")
    return Attention(section.by_size("efficiency"), section.number("at_flops"), section.number("exponent", zero=True))


def _node_link(section: Section) -> NodeLink:
    section.allow("latency_s", "bytes_per_s", "measured", optional=("measured",))
    latency, speeds = section.section("latency_s"), section.section("bytes_per_s")
    latency.allow("pair", "per_doubling")
    speeds.allow(*KINDS)
    measured: dict[tuple[int, str], tuple[tuple[float, float], ...]] = {}
    tables = section.section("measured") if "measured" in section.names() else None
    for group in tables.names() if tables else ():
        assert tables is not None
        table = tables.section(group)
        table.allow("bytes", *KINDS)
        if not group.isdecimal() or int(group) < 2:
            section.problems.add("measured", f"{group!r} is not a group of ranks", tables)
            continue
        sizes = table.numbers("bytes")
        for kind in KINDS:
            measured[int(group), kind] = _rising(sizes, table.numbers(kind), table, kind)
    return NodeLink(
        (latency.number("pair", zero=True), latency.number("per_doubling", zero=True)),
        {kind: speeds.number(kind, infinite=True) for kind in KINDS},
        measured,
    )


def _rising(sizes: tuple[float, ...], seconds: tuple[float, ...], table: Section, kind: str) -> tuple[tuple[float, float], ...]:
    """The table with the noise of small messages taken out: no size takes longer than a larger one."""
    if len(sizes) != len(seconds) or not sizes or list(sizes) != sorted(set(sizes)):
        table.problems.add(kind, f"needs one time for each of {len(sizes)} rising sizes in bytes", table)
        return ()
    least, points = float("inf"), []
    for size, time in zip(reversed(sizes), reversed(seconds), strict=True):
        least = min(least, time)
        points.append((size, least))
    return tuple(reversed(points))
