"""A fitted profile as the text of its file: every number with its source, as the profiles that ship have it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from math import isinf
from typing import Any

from autoplan.calibrate.evidence import Evidence
from autoplan.calibrate.fit import Fitted
from autoplan.cost.hardware import GIB, KINDS, Attention, Hardware
from autoplan.plan.dump import scalar

_COLUMN = 34  # where sources begin
_DIGITS = 3


def profile_text(fitted: Fitted, evidence: Evidence) -> str:
    """The whole file."""
    return "\n".join([*_header(evidence), *_lines(_plain(fitted.hardware), fitted.sources, evidence.base.name)]) + "\n"


def _header(evidence: Evidence) -> Iterator[str]:
    site, measured = evidence.site, evidence.measured
    where = "one process" if site.ranks == 1 else f"{site.ranks} ranks on {'one host' if site.hosts == 1 else f'{site.hosts} hosts'}"
    yield f"# {site.device}, measured by `autoplan calibrate` on {site.date}: {site.software}, {where}."
    yield "#"
    yield f'# "measured" below: here and then, all ranks at work at once, {site.dtype} unless said; each timing is the median of its runs, and of the'
    yield "# ranks. How far predictions of this profile are off is said beside it: typically, and at most."
    yield f'# "{evidence.base.name}": as in that profile, which says where it has the number from.'
    if site.ranks == 1:
        yield "# One process alone: nothing was measured of links and network."
    for what, why in measured.left_out.items():
        yield f"# Left out: {what}: {why}"


def _plain(hardware: Hardware) -> dict[str, Any]:
    """The file's content; numbers as text."""
    compute, link = hardware.compute, hardware.node_link
    matmul = {name: number(getattr(compute.matmul, name)) for name in ("efficiency", "half_depth", "half_tile")}
    if compute.matmul.misaligned:
        matmul["misaligned"] = _by_size(compute.matmul.misaligned)
    return {
        "autoplan_hardware": "1",
        "device": scalar(hardware.device),
        "memory_gib": f"{hardware.memory_bytes / GIB:.1f}",
        "gpus_per_node": str(hardware.gpus_per_node),
        "compute": {
            "flops_per_s": {dtype: number(peak) for dtype, peak in compute.flops_per_s.items()},
            "bytes_per_s": number(compute.bytes_per_s),
            "optimizer_bytes_per_s": number(compute.optimizer_bytes_per_s),
            "launch_s": number(compute.launch_s),
            "matmul": matmul,
            "attention_forward": _attention(compute.attention_forward),
            "attention_backward": _attention(compute.attention_backward),
            "draws": {name: number(getattr(compute.draws, name)) for name in ("mask_s", "attention_forward_s", "attention_backward_s")},
        },
        "node_link": {
            "latency_s": {"pair": number(link.latency_s[0]), "per_doubling": number(link.latency_s[1])},
            "bytes_per_s": {kind: number(link.bytes_per_s[kind]) for kind in KINDS},
            **({"measured": _tables(hardware)} if link.measured else {}),
        },
        "network": {"latency_s": number(hardware.network.latency_s), "bytes_per_s": number(hardware.network.bytes_per_s)},
        "host": {"op_s": number(hardware.host.op_s), "redistribution_s": number(hardware.host.redistribution_s)},
        "overlap": {"hides": number(hardware.hides)},
    }


def _attention(fit: Attention) -> dict[str, str]:
    return {"efficiency": _by_size(fit.efficiencies), "at_flops": number(fit.at_flops), "exponent": number(fit.exponent)}


def _by_size(table: tuple[tuple[float, float], ...]) -> str:
    return "{" + ", ".join(f"{size:.0f}: {number(value)}" for size, value in table) + "}"


def _tables(hardware: Hardware) -> dict[str, dict[str, str]]:
    """By group size: bytes, and the seconds of each kind."""
    measured = hardware.node_link.measured
    found: dict[str, dict[str, str]] = {}
    for group in sorted({group for group, _ in measured}):
        sizes = [f"{nbytes:.0f}" for nbytes, _ in measured[group, KINDS[0]]]
        times = {kind: [number(seconds, 4) for _, seconds in measured[group, kind]] for kind in KINDS}
        found[str(group)] = {name: f"[{', '.join(each)}]" for name, each in {"bytes": sizes, **times}.items()}
    return found


def number(value: float, digits: int = _DIGITS) -> str:
    """`4.15e+12`, `0.71`, `.inf`: what YAML 1.1 reads as a float."""
    if isinf(value):
        return ".inf"
    if value == 0:
        return "0.0"
    mantissa, _, power = f"{value:.{digits - 1}e}".partition("e")
    if -3 <= int(power) < 4:
        return repr(float(f"{value:.{digits - 1}e}"))
    return f"{float(mantissa)}e{int(power):+d}"


def _lines(content: Mapping[str, Any], sources: Mapping[str, str], base: str, above: str = "") -> Iterator[str]:
    """A line for each key, with its source, or that of a number without one: the base, where nothing above it has a source either."""
    indent = "  " * above.count(".")
    for key, value in content.items():
        place = f"{above}{key}"
        source = sources.get(place)
        if isinstance(value, Mapping):
            yield _line(f"{indent}{key}:", source)
            yield from _lines(value, sources, base, f"{place}.")
        else:
            inherits = key == "autoplan_hardware" or _inherits(place, sources)
            yield _line(f"{indent}{key}: {value}", source or (None if inherits else f"as {base}"))


def _inherits(place: str, sources: Mapping[str, str]) -> bool:
    """Whether something that it is part of has a source."""
    parts = place.split(".")
    return any(".".join(parts[:end]) in sources for end in range(1, len(parts)))


def _line(text: str, source: str | None) -> str:
    return f"{text:<{_COLUMN}} # {source}" if source else text
