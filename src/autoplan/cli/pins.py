"""A pins file: a YAML list of mappings, each what the user has decided already."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from autoplan.errors import PlanError
from autoplan.plan.document import Report, read_document
from autoplan.plan.fields import Cursor

_MAX_BYTES = 1 << 20


def read_pins(pins: str | tuple[Any, ...]) -> tuple[Mapping[str, Any], ...]:
    """The entries of a pins file, or those a request lists itself; raises PlanError with every problem of the file."""
    if not isinstance(pins, str):
        wrong = [pin for pin in pins if not isinstance(pin, dict)]
        if wrong:
            raise PlanError(f"pin {wrong[0]!r} is not a mapping", next_step="write a list of mappings")
        return pins
    report = Report(pins)
    at = Cursor(read_document(_read(pins), report), (), report)
    entries = tuple({key: value.raw() for key, value in item.entries().items()} for item in at.items())
    report.raise_any()
    return entries


def _read(name: str) -> str:
    path = Path(name)
    if not path.is_file():
        raise PlanError(f"no such pins file: {name}", next_step="a pins file is a YAML list of mappings")
    if path.stat().st_size > _MAX_BYTES:
        raise PlanError("larger than a pins file can be", where=name)
    try:
        return path.read_text(encoding="utf-8")
    except (UnicodeDecodeError, OSError) as error:
        raise PlanError(f"the pins cannot be read: {error}", where=name) from None
