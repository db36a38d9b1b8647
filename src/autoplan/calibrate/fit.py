"""A hardware profile from timings: every number is the one under which the cost model predicts them best, or the base profile's.

`sources` say where each number is from, by its key in the file; what is not there is the base's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import expm1
from statistics import median
from typing import Any

from autoplan.calibrate.evidence import Evidence
from autoplan.calibrate.numbers import with_number
from autoplan.calibrate.search import Parameter, error, fitted
from autoplan.calibrate.works import Attention, Collective, Product, Timing
from autoplan.cost.hardware import KINDS, Hardware
from autoplan.cost.hardware import Attention as AttentionFit
from autoplan.graph.ir import ITEM_BYTES

LAUNCH, PEAKS, MATMUL, DRAWS = (("compute", name) for name in ("launch_s", "flops_per_s", "matmul", "draws"))
MISALIGNED, LINK, TABLES = (*MATMUL, "misaligned"), ("node_link",), ("node_link", "measured")
START_S, START_BYTES_PER_S = 1e-3, 1e7  # slow enough to decide a prediction, which is the larger of two times
USABLE = 0.94  # of a device's memory: what context, NCCL's buffers and fragments leave (cost/profiles)


@dataclass(frozen=True, slots=True)
class Fitted:
    """A profile, and by key of its file where numbers are from that are not the base's."""

    hardware: Hardware
    sources: Mapping[str, str] = field(default_factory=dict)

    def having(self, hardware: Hardware, sources: Mapping[str, str]) -> Fitted:
        """With further numbers."""
        return Fitted(hardware, {**self.sources, **sources})


def fit(evidence: Evidence) -> Fitted:
    """The whole profile, one kind of numbers after another: later ones are fitted with those before."""
    found = Fitted(evidence.base)
    for stage in (
        _site,
        _vectors,
        _launch,
        _peaks,
        _products,
        _misaligned,
        _other_peaks,
        _attention,
        _draws,
        _optimizer,
        _links,
        _network,
        _host,
    ):
        found = stage(found, evidence)
    return found


def _site(before: Fitted, evidence: Evidence) -> Fitted:
    """Memory and devices of a host. All processes of a CPU are on one host, however many are planned for."""
    site, base = evidence.site, evidence.base
    of = "CUDA reports" if site.kind == "cuda" else f"the host has for each of {_count(site.per_host, 'process', 'processes')}"
    sources = {"device": "as it calls itself", "memory_gib": f"{USABLE} of the {site.memory_bytes / 2**30:.1f} GiB that {of}: assumption"}
    per_node = base.gpus_per_node
    if site.kind == "cuda" or site.hosts > 1 or site.per_host > per_node:
        per_node = site.devices_per_host
        sources["gpus_per_node"] = "GPUs of this host" if site.kind == "cuda" else "processes on each host"
    hardware = before.hardware.changed(device=site.device, memory_bytes=int(USABLE * site.memory_bytes), gpus_per_node=per_node)
    return before.having(hardware, sources)


def _vectors(before: Fitted, evidence: Evidence) -> Fitted:
    timings = evidence.of("vectors")
    if not timings:
        return before
    hardware = fitted(with_number(before.hardware, LAUNCH, 0.0), [Parameter(("compute", "bytes_per_s"))], timings)
    hardware = with_number(hardware, LAUNCH, before.hardware.compute.launch_s)
    return before.having(hardware, {"compute.bytes_per_s": _said(timings, hardware, "x*y of large vectors")})


def _launch(before: Fitted, evidence: Evidence) -> Fitted:
    timings = evidence.of("launch")
    if not timings:
        return before
    hardware = fitted(before.hardware, [Parameter(LAUNCH, START_S)], timings)
    return before.having(hardware, {"compute.launch_s": _said(timings, hardware, "x*y of small vectors, the device idle before")})


def _peaks(before: Fitted, evidence: Evidence) -> Fitted:
    """Of the device: those of its profile; else the best rate of a product, other dtypes in the base's ratio until they are measured."""
    timings = [each for each in evidence.of("products") if isinstance(each.work, Product)]
    peaks, dtype = before.hardware.compute.flops_per_s, evidence.site.dtype
    if evidence.same_device or not timings:
        return before
    best = max(timings, key=_rate)
    ratio = _rate(best) / before.hardware.compute.peak(dtype)
    hardware = with_number(before.hardware, PEAKS, {**{name: peak * ratio for name, peak in peaks.items()}, dtype: _rate(best)})
    name = evidence.base.name
    scaled = {f"compute.flops_per_s.{each}": f"{name}'s, scaled as {dtype}" for each in peaks}
    return before.having(
        hardware, scaled | {f"compute.flops_per_s.{dtype}": f"measured: the best rate of a product, {best.work}; no datasheet is at hand"}
    )


def _rate(timing: Timing) -> float:
    assert isinstance(timing.work, Product)
    return timing.work.flops / timing.seconds


def _products(before: Fitted, evidence: Evidence) -> Fitted:
    timings = evidence.of("products")
    if not timings:
        return before
    now = before.hardware.compute.matmul
    parameters = [
        Parameter((*MATMUL, "efficiency"), min(0.3, now.efficiency), most=4.0),
        Parameter((*MATMUL, "half_depth"), max(now.half_depth, 10.0), least=0.5, most=1e5),
        Parameter((*MATMUL, "half_tile"), max(now.half_tile, 1e3), least=50.0, most=1e9),
    ]
    hardware = fitted(before.hardware, parameters, timings)
    return before.having(hardware, {"compute.matmul": _said(timings, hardware, "products, forward and backward")})


def _misaligned(before: Fitted, evidence: Evidence) -> Fitted:
    timings = evidence.of("products misaligned")
    if not timings:
        return before
    start = dict(before.hardware.compute.matmul.misaligned)
    widths = sorted({width for each in timings if isinstance(each.work, Product) for width in _widths(each.work)})
    hardware = with_number(before.hardware, MISALIGNED, tuple((width, start.get(width, 0.3)) for width in widths))
    hardware = fitted(hardware, [Parameter((*MISALIGNED, k, 1), most=1.0) for k in range(len(widths))], timings)
    return before.having(hardware, {"compute.matmul.misaligned": _said(timings, hardware, "products with rows no multiple of 16 bytes")})


def _widths(product: Product) -> list[float]:
    """The powers of two, up to 4 bytes, that divide its rows which are no multiple of 16."""
    rows = [length * ITEM_BYTES[product.dtype] for length in (product.depth, product.columns)]
    return [float(min(4, row & -row)) for row in rows if row % 16]


def _other_peaks(before: Fitted, evidence: Evidence) -> Fitted:
    """Of dtypes whose peak the base does not know for this device: that under which a product takes as long as it does."""
    for timing in evidence.of("products in other dtypes"):
        assert isinstance(timing.work, Product)
        dtype = timing.work.dtype
        hardware = fitted(before.hardware, [Parameter((*PEAKS, dtype))], [timing])
        said = f"measured: {timing.work}, {timing.runs} runs, at the efficiency of {evidence.site.dtype}"
        before = before.having(hardware, {f"compute.flops_per_s.{dtype}": said})
    return before


def _attention(before: Fitted, evidence: Evidence) -> Fitted:
    for way in ("forward", "backward"):
        before = _attention_of(f"attention_{way}", evidence.of(f"attention {way}"), before, evidence)
    return before


def _attention_of(name: str, timings: Sequence[Timing], before: Fitted, evidence: Evidence) -> Fitted:
    """Efficiency by head size, and the exponent where the base has one: small attention is slower by it."""
    if not timings:
        return before
    base: AttentionFit = getattr(before.hardware.compute, name)
    sizes = sorted({each.work.size for each in timings if isinstance(each.work, Attention)})
    scale = before.hardware.compute.peak(evidence.site.dtype) / evidence.base.compute.peak(evidence.site.dtype)
    start = AttentionFit(tuple((size, base.efficiency(size)) for size in sizes), base.at_flops * scale, base.exponent)
    place = ("compute", name)
    parameters = [Parameter((*place, "efficiencies", k, 1), most=4.0) for k in range(len(sizes))]
    if base.exponent:
        parameters.append(Parameter((*place, "exponent"), least=1e-3, most=2.0))
    hardware = fitted(with_number(before.hardware, place, start), parameters, timings)
    what = "causal, by itself" if name == "attention_forward" else "causal, among products, as it runs in steps; 2.5 times the flops"
    return before.having(
        hardware,
        {
            f"compute.{name}": _said(timings, hardware, what),
            f"compute.{name}.at_flops": f"{evidence.base.name}'s" + (f" times {scale:.3g}, as the peak" if scale != 1 else ""),
            f"compute.{name}.exponent": "fitted too" if base.exponent else f"{evidence.base.name}'s",
        },
    )


def _draws(before: Fitted, evidence: Evidence) -> Fitted:
    """Of masks by themselves; in attention what dropout adds to the same shape without."""
    masks = evidence.of("dropout")
    hardware, sources = before.hardware, {}
    if masks:
        parameter = Parameter((*DRAWS, "mask_s"), START_S, least=1e-16)
        hardware = fitted(hardware, [parameter], masks)
        sources["compute.draws.mask_s"] = _said(masks, hardware, "dropout")
    for way in ("forward", "backward"):
        timings = evidence.of(f"attention {way} with dropout")
        without = {each.work: each.seconds for each in evidence.of(f"attention {way}")}
        added = [_added(each, without, way, hardware) for each in timings if isinstance(each.work, Attention)]
        known = [seconds for seconds in added if seconds is not None]
        if known:
            name = f"attention_{way}_s"
            hardware = with_number(hardware, (*DRAWS, name), max(0.0, median(known)))
            sources[f"compute.draws.{name}"] = _said(timings, hardware, "what dropout adds to the same attention")
    return before.having(hardware, sources)


def _added(timing: Timing, without: Mapping[Any, float], way: str, hardware: Hardware) -> float | None:
    """Seconds more for each weight than without dropout, as predictions count weights; None where that was not measured."""
    assert isinstance(timing.work, Attention)
    plain = without.get(replace(timing.work, dropout=False))
    with_one, with_none = (timing.work.seconds(with_number(hardware, (*DRAWS, f"attention_{way}_s"), each)) for each in (1.0, 0.0))
    weights = with_one - with_none
    return None if plain is None else (timing.seconds - plain) / weights


def _optimizer(before: Fitted, evidence: Evidence) -> Fitted:
    timings = evidence.of("optimizer")
    if not timings:
        return before
    hardware = fitted(before.hardware, [Parameter(("compute", "optimizer_bytes_per_s"))], timings)
    return before.having(hardware, {"compute.optimizer_bytes_per_s": _said(timings, hardware, "fused AdamW, products before it")})


def _links(before: Fitted, evidence: Evidence) -> Fitted:
    """Tables by group size, and the formula for sizes without: latency, which small messages decide, and the bandwidth of large ones."""
    timings = [each for each in evidence.of("links") if not _collective(each).between]
    if not timings:
        return before
    groups = sorted({_collective(each).ranks for each in timings})
    kinds = [kind for kind in KINDS if any(_collective(each).kind == kind for each in timings)]
    parameters = [Parameter((*LINK, "latency_s", k), START_S, least=1e-9) for k in range(2 if len(groups) > 1 else 1)]
    parameters += [Parameter((*LINK, "bytes_per_s", kind), START_BYTES_PER_S) for kind in kinds]
    hardware = fitted(with_number(before.hardware, TABLES, {}), parameters, _ends(timings))
    as_base = f"as {evidence.base.name}"
    return before.having(
        with_number(hardware, TABLES, _tables(timings)),
        {
            "node_link": _said(timings, hardware, "by the formula latency + bytes / bandwidth"),
            "node_link.latency_s": "fitted to the smallest and the largest messages",
            "node_link.latency_s.per_doubling": f"up to {groups[-1]} ranks"
            if len(groups) > 1
            else f"{as_base}: there were groups of one size alone",
            "node_link.bytes_per_s": "bus bandwidth, fitted to the same",
            **{f"node_link.bytes_per_s.{kind}": as_base for kind in KINDS if kind not in kinds},
            "node_link.measured": "seconds by group size; bytes of the full (gathered) tensor",
        },
    )


def _collective(timing: Timing) -> Collective:
    assert isinstance(timing.work, Collective)
    return timing.work


def _ends(timings: Sequence[Timing]) -> list[Timing]:
    """Those of the smallest quarter of the sizes and of the largest: protocols change in between, and no line goes through all."""
    sizes = sorted({_collective(each).full_bytes for each in timings})
    quarter = -(-len(sizes) // 4)
    at_ends = {*sizes[:quarter], *sizes[-quarter:]}
    return [each for each in timings if _collective(each).full_bytes in at_ends]


def _tables(timings: Sequence[Timing]) -> dict[tuple[int, str], tuple[tuple[float, float], ...]]:
    """(bytes, seconds) by group size and kind, for groups of which every kind was measured with the same sizes."""
    found: dict[tuple[int, str], list[tuple[float, float]]] = {}
    for timing in timings:
        work = _collective(timing)
        found.setdefault((work.ranks, work.kind), []).append((work.full_bytes, timing.seconds))
    tables = {key: tuple(sorted(points)) for key, points in found.items()}
    whole = {group for group, _ in tables if len({tuple(nbytes for nbytes, _ in tables.get((group, kind), ())) for kind in KINDS}) == 1}
    return {key: points for key, points in tables.items() if key[0] in whole}


def _network(before: Fitted, evidence: Evidence) -> Fitted:
    timings = evidence.of("network")
    if not timings:
        return before
    site = evidence.site
    parameters = [Parameter(("network", "latency_s"), START_S, least=1e-9), Parameter(("network", "bytes_per_s"), START_BYTES_PER_S)]
    hardware = fitted(before.hardware, parameters, _ends(timings))
    return before.having(
        hardware,
        {
            "network": _said(timings, hardware, f"{site.hosts} hosts of {site.per_host} ranks"),
            "network.latency_s": "for each doubling of hosts, fitted to the smallest and the largest messages",
            "network.bytes_per_s": f"of a host with {site.per_host} ranks at work, fitted to the same",
        },
    )


def _host(before: Fitted, evidence: Evidence) -> Fitted:
    hardware, sources = before.hardware, {}
    for name, family, what in (
        ("op_s", "host ops", "eager steps of small models, by ops of their graphs"),
        ("redistribution_s", "host redistributions", "what the host does for one collective, forward and backward"),
    ):
        timings = evidence.of(family)
        if timings:
            hardware = fitted(hardware, [Parameter(("host", name), getattr(hardware.host, name) or 1e-5)], timings)
            sources[f"host.{name}"] = _said(timings, hardware, what)
    return before.having(hardware, sources)


def _said(timings: Sequence[Timing], hardware: Hardware, what: str) -> str:
    """`measured: what`, how often, and how well the profile predicts it."""
    errors = sorted((error(hardware, timing) for timing in timings), key=abs)
    runs = sum(timing.runs for timing in timings)
    return f"measured: {what}; {_count(len(timings), 'timing')} of {_count(runs, 'run')}; predictions {percent(median(map(abs, errors)))} off, at most {percent(errors[-1])}"


def _count(number: int, one: str, more: str | None = None) -> str:
    return f"1 {one}" if number == 1 else f"{number} {more or one + 's'}"


def percent(log_ratio: float) -> str:
    """How far a prediction is off, of what was measured."""
    off = 100 * expm1(log_ratio)
    return f"{off:.0f} %" if abs(off) >= 10 else f"{off:.2g} %"
