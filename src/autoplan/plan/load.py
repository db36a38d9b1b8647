"""Strict loading: a plan file as a Plan, or one PlanError with every problem in it and the line of each."""

from __future__ import annotations

import stat
from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar

from autoplan.errors import PlanError
from autoplan.placement import Mesh, Partial, Placements
from autoplan.plan.check import cutting_problems
from autoplan.plan.document import MAKE_ONE, MAX_BYTES, Node, Report, read_document
from autoplan.plan.fields import Cursor, shown
from autoplan.plan.patterns import parse_pattern
from autoplan.plan.schema import (
    FORMAT,
    GATHER_GROUPS,
    LAYOUTS,
    MODES,
    OPTIMIZERS,
    PRECISIONS,
    BufferLine,
    ByHandLine,
    CommunicationMs,
    FallbackLine,
    GatherLine,
    HardwareInfo,
    InputLine,
    MemoryGib,
    ModelInfo,
    OpLine,
    Options,
    OutputLine,
    ParamLine,
    Plan,
    Predicted,
    Provenance,
    RecomputeLine,
    ReshardEntry,
    SolverInfo,
    Uses,
)

Line = TypeVar("Line")

_REQUIRED = ("autoplan", "model", "mesh", "hardware", "options", "inputs", "outputs", "params", "predicted", "solver")
_OPTIONAL = ("pins", "buffers", "ops", "reshard", "gather", "recompute", "fallbacks", "by_hand")


def load_plan(path: str | Path) -> Plan:
    """The plan in the file at `path`; raises PlanError."""
    source = str(path)
    try:
        if not stat.S_ISREG(Path(path).stat().st_mode):
            raise PlanError("a plan is a file", where=source, next_step=MAKE_ONE)
        with open(path, "rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise PlanError(f"the plan cannot be read: {error.strerror}", where=source, next_step=MAKE_ONE) from None
    if len(data) > MAX_BYTES:
        raise PlanError(f"larger than a plan can be ({MAX_BYTES // 2**20} MiB)", where=source, next_step=MAKE_ONE)
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        text = "\0"
    if "\0" in text:
        raise PlanError("a binary file, not a plan", where=source, next_step=MAKE_ONE)
    return parse_plan(text, source)


def parse_plan(text: str, source: str = "plan") -> Plan:
    """The plan that `text` says; raises one PlanError with all problems, each naming `source` and its line."""
    report = Report(source)
    root = Cursor(read_document(text, report), (), report)
    _check_format(root)
    plan = _plan(root)
    report.raise_any()
    return plan


def _check_format(root: Cursor) -> None:
    """Raises at once for what is no plan of this format: its other keys would only bring noise."""
    version = root.entries().get("autoplan") if root.is_mapping else None
    if version is None:
        root.fail("not a plan: it does not begin with autoplan: 1", MAKE_ONE)
    elif type(version.raw()) is not int or version.raw() != FORMAT:
        hint = f"this autoplan reads format {FORMAT}; plan again, or install the autoplan that wrote it"
        version.fail(f"{shown(version.raw())} is not a plan format", hint)
    else:
        return
    root.report.raise_any()


def _plan(root: Cursor) -> Plan:
    at = root.record(_REQUIRED, _OPTIONAL)
    mesh = _mesh(at["mesh"])
    params = _section(at["params"], lambda line: _param(line, mesh))
    return Plan(
        model=_model(at["model"]),
        mesh=mesh or Mesh((), ()),
        hardware=_hardware(at["hardware"]),
        options=_options(at["options"]),
        pins=tuple(_pin(pin) for pin in at["pins"].items()),
        inputs={name: _input(line, mesh) for name, line in at["inputs"].entries().items()},
        outputs={name: _output(line, mesh) for name, line in at["outputs"].entries().items()},
        params=params,
        buffers=_section(at["buffers"], lambda line: _buffer(line, mesh)),
        ops=_section(at["ops"], lambda line: _op(line, mesh)),
        reshard=_section(at["reshard"], lambda line: _reshard(line, mesh)),
        gather=_section(at["gather"], lambda line: _gather(line, mesh, params)),
        recompute=_section(at["recompute"], _recompute),
        fallbacks=tuple(_fallback(item) for item in at["fallbacks"].items()),
        predicted=_predicted(at["predicted"]),
        by_hand={name: _by_hand(line) for name, line in at["by_hand"].record((), LAYOUTS).items() if line.given},
        solver=_solver(at["solver"]),
        provenance=Provenance(root.report.source, dict(_lines(root.node))),
    )


def _section(at: Cursor, read: Callable[[Cursor], Line]) -> dict[str, Line]:
    """The lines of a section by pattern."""
    return {line.key_pattern(): read(line) for line in at.entries().values()}


def _mesh(at: Cursor) -> Mesh | None:
    """The mesh, None if it cannot be one: then nothing is checked against it."""
    axes = at.entries()
    sizes = {name: axis.integer(least=1) for name, axis in axes.items()}
    unnamable = [name for name in axes if not name.isidentifier()]
    for name in unnamable:
        axes[name].fail("an axis name is letters, digits and _", "write {x: 2, y: 4}")
    if at.is_mapping and not axes:
        at.fail("a mesh has at least one axis", "write {x: 2, y: 4}")
    return Mesh(tuple(sizes), tuple(sizes.values())) if sizes and min(sizes.values()) > 0 and not unnamable else None


def _model(at: Cursor) -> ModelInfo:
    get = at.record(("target", "parameters", "digest", "graph"), ("set", "batch", "seq", "rules"))
    settings = {key: value.raw() for key, value in get["set"].entries().items()}
    batch, seq = (get[key].integer(least=1) if get[key].given else None for key in ("batch", "seq"))
    rules = get["rules"].text() if get["rules"].given else None
    identity = (get["target"].text(), get["parameters"].integer(), get["digest"].text(), get["graph"].text())
    return ModelInfo(*identity, settings, batch, seq, rules)


def _hardware(at: Cursor) -> HardwareInfo:
    get = at.record(("profile", "digest"), ("per_host",))
    per_host = get["per_host"].integer(least=1) if get["per_host"].given else None
    return HardwareInfo(get["profile"].text(), get["digest"].text(), per_host)


def _options(at: Cursor) -> Options:
    get = at.record(("mode", "optimizer", "precision"), ("memory_gib", "seed", "keep_outputs", "compile"))
    return Options(
        mode=get["mode"].choice(MODES),
        optimizer=get["optimizer"].choice(OPTIMIZERS),
        precision=get["precision"].choice(PRECISIONS),
        memory_gib=get["memory_gib"].optional_number(),
        seed=get["seed"].integer(),
        keep_outputs=get["keep_outputs"].flag(),
        compile=get["compile"].flag(),
    )


def _pin(at: Cursor) -> Mapping[str, Any]:
    return {key: value.raw() for key, value in at.entries().items()}


def _input(at: Cursor, mesh: Mesh | None) -> InputLine:
    get = at.record(("shape", "dtype", "place"))
    shape = get["shape"].shape()
    return InputLine(shape or (), get["dtype"].text(), _placed(get["place"], mesh, shape))


def _output(at: Cursor, mesh: Mesh | None) -> OutputLine:
    return OutputLine(at.record(("place",))["place"].placements(mesh))


def _param(at: Cursor, mesh: Mesh | None) -> ParamLine:
    get = at.record(("shape", "store", "use"), ("count",))
    shape = get["shape"].shape()
    store = _placed(get["store"], mesh, shape)
    if any(isinstance(placement, Partial) for placement in store):
        get["store"].fail("a parameter cannot be stored as a partial sum", "write R, or S(dim) to split it")
    return ParamLine(shape or (), store, _uses(get["use"], mesh, shape), _count(at, get["count"]))


def _uses(at: Cursor, mesh: Mesh | None, shape: tuple[int, ...] | None) -> Uses:
    if at.is_mapping:
        return {use.key_pattern(): _placed(use, mesh, shape) for use in at.entries().values()}
    return _placed(at, mesh, shape)


def _buffer(at: Cursor, mesh: Mesh | None) -> BufferLine:
    get = at.record(("shape", "use"), ("count",))
    shape = get["shape"].shape()
    return BufferLine(shape or (), _placed(get["use"], mesh, shape), _count(at, get["count"]))


def _op(at: Cursor, mesh: Mesh | None) -> OpLine:
    get = at.record((), ("row", "inside", "gradient", "count"))
    return OpLine(
        row=get["row"].text() if get["row"].given else None,
        inside=get["inside"].collectives(mesh),
        gradient=get["gradient"].placements(mesh) if get["gradient"].given else None,
        count=_count(at, get["count"]),
    )


def _reshard(at: Cursor, mesh: Mesh | None) -> tuple[ReshardEntry, ...]:
    if not at.is_list:
        return (_reshard_entry(at, at.name, mesh),)
    entries = at.items()
    if not entries:
        at.fail("no entries", "write one mapping, or a list of them")
    elif len(entries) > 1:
        for entry in entries:
            if entry.is_mapping and "for" not in entry.entries():
                entry.fail("one of several entries, without its consumers", "add for: [ADDRESS, ...]")
    return tuple(_reshard_entry(entry, at.name, mesh) for entry in entries)


def _reshard_entry(at: Cursor, pattern: str, mesh: Mesh | None) -> ReshardEntry:
    get = at.record(("from", "to"), ("forward", "backward", "count", "for"))
    return ReshardEntry(
        from_=get["from"].placements(mesh),
        to=get["to"].placements(mesh),
        forward=get["forward"].collectives(mesh),
        backward=get["backward"].collectives(mesh),
        count=_count(at, get["count"], pattern),
        for_=tuple(consumer.pattern() for consumer in get["for"].items()),
    )


def _gather(at: Cursor, mesh: Mesh | None, params: Mapping[str, ParamLine]) -> GatherLine:
    get = at.record(("group", "regather", "prefetch"), ("forward", "backward", "count"))
    return GatherLine(
        group=get["group"].choice(GATHER_GROUPS),
        regather=get["regather"].flag(),
        prefetch=get["prefetch"].integer(),
        forward=get["forward"].collectives(mesh),
        backward=get["backward"].collectives(mesh),
        count=_count(at, get["count"]) if get["count"].given else _blocks(at.name, params),
    )


def _blocks(pattern: str, params: Mapping[str, ParamLine]) -> int:
    """How many blocks `layers.*` stands for, from the lines of its parameters: the largest count that one of them has."""
    return max((line.count for name, line in params.items() if name == pattern or name.startswith(f"{pattern}.")), default=1)


def _recompute(at: Cursor) -> RecomputeLine:
    get = at.record(("blocks", "of", "policy"))
    line = RecomputeLine(get["blocks"].integer(), get["of"].integer(), get["policy"].text())
    if line.blocks > line.of and get["of"].given:
        at.fail(f"blocks {line.blocks} is more than of {line.of}", "blocks counts those of the class that recompute")
    return line


def _fallback(at: Cursor) -> FallbackLine:
    get = at.record(("address", "op", "count", "added_ms"))
    return FallbackLine(get["address"].pattern(), get["op"].text(), get["count"].integer(least=1), get["added_ms"].number())


def _predicted(at: Cursor) -> Predicted:
    get = at.record(tuple(field.name for field in fields(Predicted)))
    return Predicted(
        communication_ms=_numbers(get.pop("communication_ms"), CommunicationMs),
        memory_gib=_numbers(get.pop("memory_gib"), MemoryGib),
        **{name: cursor.number() for name, cursor in get.items()},  # type: ignore[arg-type]
    )


def _numbers(at: Cursor, kind: Any) -> Any:
    """A dataclass whose fields are all numbers."""
    get = at.record(tuple(field.name for field in fields(kind)))
    return kind(**{name: cursor.number() for name, cursor in get.items()})


def _by_hand(at: Cursor) -> ByHandLine:
    if at.is_mapping and "none" in at.entries():
        return ByHandLine(none=at.record(("none",))["none"].text())
    get = at.record(("step_ms", "peak_gib"))
    return ByHandLine(get["step_ms"].number(), get["peak_gib"].number())


def _solver(at: Cursor) -> SolverInfo:
    get = at.record(("status", "gap", "folded"), ("unfolded_gap",))
    return SolverInfo(get["status"].text(), get["gap"].optional_number(), get["folded"].flag(), get["unfolded_gap"].optional_number())


def _placed(at: Cursor, mesh: Mesh | None, shape: tuple[int, ...] | None) -> Placements:
    """Placements of a tensor of that shape, which they must be able to cut."""
    placements = at.placements(mesh)
    if mesh and shape is not None:
        for what, next_step in cutting_problems(shape, placements, mesh):
            at.fail_bare(f"{at.path[1]}: {what}", next_step)
    return placements


def _count(at: Cursor, count: Cursor, pattern: str | None = None) -> int:
    """How many names a line stands for: what it says, or what its ranges say, which must agree."""
    try:
        expected = parse_pattern(pattern or at.name).range_count
    except PlanError:
        expected = None
    stated = count.integer(default=expected or 1, least=1)
    if count.given and expected not in (None, stated):
        count.fail(f"{stated}, but {pattern or at.name} stands for {expected}", f"write {expected}, or mend the pattern")
    return stated


def _lines(node: Node | None, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], int]]:
    """Every key path of the document with its line; mappings in a list go by their index."""
    if node is None:
        return
    if path:
        yield path, node.line
    if isinstance(node.value, dict):
        for key, child in node.value.items():
            yield from _lines(child, (*path, key))
    elif isinstance(node.value, list):
        for index, child in enumerate(node.value):
            if isinstance(child.value, dict):
                yield from _lines(child, (*path, str(index)))
