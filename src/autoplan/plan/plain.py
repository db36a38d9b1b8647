"""A plan as plain mappings, lists and scalars: what the YAML file and `--json` both say, rounded as the file rounds.

Keys come in the order of the file, and those that hold their default are left out.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from autoplan.placement import Placements
from autoplan.plan.patterns import natural_key
from autoplan.plan.schema import (
    FORMAT,
    BufferLine,
    ByHandLine,
    Collective,
    FallbackLine,
    GatherLine,
    HardwareInfo,
    InputLine,
    ModelInfo,
    OpLine,
    Options,
    OutputLine,
    ParamLine,
    Plan,
    Predicted,
    RecomputeLine,
    ReshardEntry,
    SolverInfo,
    Uses,
)

Plain = Any
"""None, bool, int, float, str, or lists and string-keyed dicts of these."""

Line = (
    InputLine
    | OutputLine
    | ParamLine
    | BufferLine
    | OpLine
    | GatherLine
    | RecomputeLine
    | FallbackLine
    | ByHandLine
    | tuple[ReshardEntry, ...]
)


def plan_to_json(plan: Plan) -> dict[str, Plain]:
    """The whole plan as one JSON-ready object, section by section in the order of the file."""
    return {
        "autoplan": FORMAT,
        "model": _model(plan.model),
        "mesh": dict(zip(plan.mesh.names, plan.mesh.shape, strict=True)),
        "hardware": _hardware(plan.hardware),
        "options": _options(plan.options),
        "pins": [_copy(pin) for pin in plan.pins],
        "inputs": _section(plan.inputs),
        "outputs": _section(plan.outputs),
        "params": _section(plan.params, natural=True),
        "buffers": _section(plan.buffers, natural=True),
        "ops": _section(plan.ops),
        "reshard": _section(plan.reshard),
        "gather": _section(plan.gather, natural=True),
        "recompute": _section(plan.recompute, natural=True),
        "fallbacks": [line_to_json(line) for line in plan.fallbacks],
        "predicted": predicted_to_json(plan.predicted),
        **_given(by_hand=_section(plan.by_hand) or None),
        "solver": _solver(plan.solver),
    }


def line_to_json(line: Line) -> Plain:
    """One line of a section; the entries of a reshard line are a list only if there are several."""
    match line:
        case InputLine():
            return {"shape": list(line.shape), "dtype": line.dtype, "place": _placements(line.place)}
        case OutputLine():
            return {"place": _placements(line.place)}
        case ParamLine():
            return {"shape": list(line.shape), **_count(line.count), "store": _placements(line.store), "use": _uses(line.use)}
        case BufferLine():
            return {"shape": list(line.shape), **_count(line.count), "use": _placements(line.use)}
        case OpLine():
            gradient = None if line.gradient is None else _placements(line.gradient)
            return _count(line.count) | _given(row=line.row, inside=_collectives(line.inside), gradient=gradient)
        case GatherLine():
            decisions = {"group": line.group, "regather": line.regather, "prefetch": line.prefetch}
            return {"count": line.count, **decisions, **_both_ways(line)}  # stated even if 1: without it load counts the blocks
        case RecomputeLine():
            return {"blocks": line.blocks, "of": line.of, "policy": line.policy}
        case FallbackLine():
            return {"address": line.address, "op": line.op, "count": line.count, "added_ms": _ms(line.added_ms)}
        case ByHandLine():
            step_ms, peak_gib = line.step_ms, line.peak_gib
            return _given(
                step_ms=None if step_ms is None else _ms(step_ms),
                peak_gib=None if peak_gib is None else round_significant(peak_gib),
                none=line.none,
            )
        case tuple():
            entries = [_reshard_entry(entry) for entry in line]
            return entries[0] if len(entries) == 1 else entries


def predicted_to_json(predicted: Predicted) -> dict[str, Plain]:
    """The predictions, rounded to three significant digits."""
    times = ("step_ms", "compute_ms", "recompute_ms", "optimizer_ms", "host_ms")
    parts = ("peak", "parameters", "gradients", "optimizer", "activations", "gathered", "transient")
    communication = predicted.communication_ms
    return {
        **{name: _ms(getattr(predicted, name)) for name in times},
        "communication_ms": {"exposed": _ms(communication.exposed), "hidden": _ms(communication.hidden)},
        "memory_gib": {name: round_significant(getattr(predicted.memory_gib, name)) for name in parts},
    }


def round_significant(value: float, digits: int = 3) -> float:
    """`value` rounded to that many significant digits."""
    return float(f"{value:.{digits}g}")


def _section(lines: Mapping[str, Line], natural: bool = False) -> dict[str, Plain]:
    names: Iterable[str] = sorted(lines, key=natural_key) if natural else lines
    return {name: line_to_json(lines[name]) for name in names}


def _model(model: ModelInfo) -> dict[str, Plain]:
    settings = {key: _copy(model.set[key]) for key in sorted(model.set)}
    example = _given(batch=model.batch, seq=model.seq, rules=model.rules)
    identity = {"parameters": model.parameters, "digest": model.digest, "graph": model.graph}
    return {"target": model.target, "set": settings, **example, **identity}


def _hardware(hardware: HardwareInfo) -> dict[str, Plain]:
    return {"profile": hardware.profile, "digest": hardware.digest} | _given(per_host=hardware.per_host)


def _options(options: Options) -> dict[str, Plain]:
    limit = None if options.memory_gib is None else _whole(options.memory_gib)
    asked = {"mode": options.mode, "optimizer": options.optimizer, "precision": options.precision}
    rest = _given(memory_gib=limit, seed=options.seed or None, keep_outputs=options.keep_outputs or None, compile=options.compile or None)
    return asked | rest


def _solver(solver: SolverInfo) -> dict[str, Plain]:
    gaps = {
        name: None if gap is None else round_significant(gap) for name, gap in (("gap", solver.gap), ("unfolded_gap", solver.unfolded_gap))
    }
    unfolded = _given(unfolded_gap=gaps["unfolded_gap"])
    return {"status": solver.status, "gap": gaps["gap"], "folded": solver.folded, **unfolded}


def _reshard_entry(entry: ReshardEntry) -> dict[str, Plain]:
    decided = {"from": _placements(entry.from_), "to": _placements(entry.to)}
    consumers = {"for": list(entry.for_)} if entry.for_ else {}
    return _count(entry.count) | decided | _both_ways(entry) | consumers


def _both_ways(line: ReshardEntry | GatherLine) -> dict[str, Plain]:
    return _given(forward=_collectives(line.forward), backward=_collectives(line.backward))


def _uses(use: Uses) -> Plain:
    if isinstance(use, Mapping):
        return {op: _placements(use[op]) for op in sorted(use, key=natural_key)}
    return _placements(use)


def _placements(placements: Placements) -> list[str]:
    return [str(placement) for placement in placements]


def _collectives(collectives: tuple[Collective, ...]) -> list[str] | None:
    return [str(collective) for collective in collectives] or None


def _count(count: int) -> dict[str, int]:
    return {} if count == 1 else {"count": count}


def _given(**values: Plain) -> dict[str, Plain]:
    return {key: value for key, value in values.items() if value is not None}


def _ms(value: float) -> float | int:
    return _whole(round_significant(value))


def _whole(value: float) -> float | int:
    return int(value) if value == int(value) else value


def _copy(value: Plain) -> Plain:
    if isinstance(value, Mapping):
        return {str(key): _copy(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [_copy(item) for item in value]
    return value
