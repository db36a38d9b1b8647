"""A plan as canonical YAML: the same plan gives the same bytes, one line per decision, nothing wrapped."""

from __future__ import annotations

import re
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path

from autoplan.errors import PlanError
from autoplan.files import replace_text
from autoplan.plan.plain import Plain, plan_to_json
from autoplan.plan.schema import Plan

_WIDEST_PADDED_KEY = 40
_COMMENT_COLUMN = 41
_COMMENTS = {
    "params": "every parameter matches exactly one line",
    "ops": "what inputs do not determine, and collectives inside an op",
    "reshard": "every redistribution of an activation, in execution order",
    "gather": "how stored parameters become used ones",
    "recompute": "the first copies of a block",
    "step_ms": "= the next five",
    "memory_gib": "per device, at the moment of the peak",
    "by_hand": "layouts that one writes by hand, predicted alike",
}
_HEAD = ("model", "mesh", "hardware", "options")
_ONE_LINE = ("autoplan", "solver")

_PLAIN_IN_FLOW = re.compile(r"[A-Za-z][\w.*/#()-]*(?: [A-Za-z][\w.*/#()-]*)*", re.ASCII)
_PLAIN_AS_KEY = re.compile(r"[A-Za-z][\w.*/#()\[\]{}+-]*", re.ASCII)
_NOT_TEXT = {"null", "true", "false", "yes", "no", "on", "off"}  # YAML 1.1 and 1.2 read these as something else
_ESCAPES = {'"': '\\"', "\\": "\\\\", "\n": "\\n", "\t": "\\t"}


def dump_plan(plan: Plan) -> str:
    """The YAML text of `plan`, ending in a newline."""
    return "".join(f"{line}\n" for key, value in plan_to_json(plan).items() for line in _section(key, value))


def write_plan(plan: Plan, path: str | Path) -> None:
    """Replaces the file at `path` in one step: a reader, or a crash, sees the old plan or the new one."""
    text = dump_plan(plan)
    try:
        replace_text(Path(path), text)
    except OSError as error:
        raise PlanError(f"the plan cannot be written: {error.strerror}", where=str(path)) from error


def flow(value: Plain) -> str:
    """`value` in YAML flow style, on one line."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{scalar(key)}: {flow(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(flow, value)) + "]"
    return scalar(value)


def scalar(value: str | int | float | bool | None) -> str:
    """A scalar as YAML in any context: numbers without exponent, text quoted where it would read as something else."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        digits = format(Decimal(repr(value)), "f")
        return digits if "." in digits else f"{digits}.0"
    if isinstance(value, int):
        return str(value)
    return value if _PLAIN_IN_FLOW.fullmatch(value) and value.lower() not in _NOT_TEXT else _quoted(value)


def _section(key: str, value: Plain) -> Iterator[str]:
    if key in _HEAD:
        yield f"{key + ':':<9} {flow(value)}"
    elif key in _ONE_LINE or not value:
        yield f"{key}: {flow(value)}"
    else:
        yield _commented(f"{key}:", key)
        if key == "predicted":
            yield from (_commented(f"  {name}: {flow(item)}", name) for name, item in value.items())
        else:
            yield from _list(value) if isinstance(value, list) else _lines(value)


def _lines(section: dict[str, Plain]) -> Iterator[str]:
    """The lines of a section, one per name, their values in one column as far as the names are short."""
    keys = {name: f"{_key(name)}:" for name in section}
    beside = [len(keys[name]) for name, line in section.items() if not isinstance(line, list)]
    width = max((length for length in beside if length <= _WIDEST_PADDED_KEY), default=0)
    for name, line in section.items():
        if isinstance(line, list):
            yield f"  {keys[name]}"
            yield from _list(line, indent="    ")
        else:
            yield f"  {keys[name]:<{width}} {flow(line)}"


def _list(items: list[Plain], indent: str = "  ") -> Iterator[str]:
    return (f"{indent}- {flow(item)}" for item in items)


def _commented(line: str, key: str) -> str:
    return f"{line:<{_COMMENT_COLUMN}} # {_COMMENTS[key]}" if key in _COMMENTS else line


def _key(name: str) -> str:
    return name if _PLAIN_AS_KEY.fullmatch(name) and name.lower() not in _NOT_TEXT else _quoted(name)


def _quoted(text: str) -> str:
    return '"' + "".join(_ESCAPES.get(char) or _printable(char) for char in text) + '"'


def _printable(char: str) -> str:
    if char.isprintable():
        return char
    code = ord(char)
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
