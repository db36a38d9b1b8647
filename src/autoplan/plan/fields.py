"""Typed reading of a document's nodes. A problem is noted and reading goes on, so that one run names them all.

Every reader of a `Cursor` gives back a value of its type whatever the file says; a plan is made of the values only if no
problem was noted.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from autoplan.errors import AutoplanError
from autoplan.placement import Mesh, Placement, Placements, parse_placement
from autoplan.plan.document import Node, Report
from autoplan.plan.patterns import parse_pattern
from autoplan.plan.schema import COLLECTIVE_KINDS, Collective

T = TypeVar("T")

_LINE_SECTIONS = ("inputs", "outputs", "params", "buffers", "ops", "reshard", "gather", "recompute")


@dataclass(frozen=True, slots=True)
class Cursor:
    """A place in the document: its node, None where the file has nothing, and the keys that lead there."""

    node: Node | None
    path: tuple[str, ...]
    report: Report

    @property
    def given(self) -> bool:
        """Whether the file says anything here."""
        return self.node is not None

    @property
    def is_mapping(self) -> bool:
        """Whether the file has a mapping here."""
        return isinstance(self._value, dict)

    @property
    def is_list(self) -> bool:
        """Whether the file has a list here."""
        return isinstance(self._value, list)

    @property
    def name(self) -> str:
        """The last key."""
        return self.path[-1]

    def fail(self, what: str, next_step: str | None = None) -> None:
        """Notes a problem with this place: `layers.*.wq.weight store: ...`, and its line."""
        path = self.path[1:] if len(self.path) > 1 and self.path[0] in _LINE_SECTIONS else self.path
        self.fail_bare(f"{' '.join(map(shown, path))}: {what}" if path else what, next_step)

    def fail_bare(self, what: str, next_step: str | None = None) -> None:
        """Notes a problem whose text names the place itself."""
        assert self.node is not None
        self.report.add(what, self.node.line, next_step)

    def record(self, required: Sequence[str], optional: Sequence[str] = ()) -> dict[str, Cursor]:
        """A cursor for each of the keys a mapping may have, noting those missing and unknown."""
        entries = self.entries()
        known = (*required, *optional)
        for key, entry in entries.items():
            if key not in known:
                near = difflib.get_close_matches(key[:80], known, n=1)
                hint = f"did you mean {near[0]}?" if near else f"the keys here are {', '.join(known)}"
                Cursor(entry.node, self.path, self.report).fail(f"unknown key {shown(key)!r}", hint)
        missing = [key for key in required if key not in entries]
        if self.is_mapping and missing:
            self.fail(f"{' and '.join(missing)} {'is' if len(missing) == 1 else 'are'} missing")
        return {key: entries.get(key, Cursor(None, (*self.path, key), self.report)) for key in known}

    def entries(self) -> dict[str, Cursor]:
        """A cursor for each entry of a mapping."""
        table: dict[str, Node] = self._typed(dict, "a mapping", {})
        return {key: Cursor(node, (*self.path, key), self.report) for key, node in table.items()}

    def items(self) -> list[Cursor]:
        """A cursor for each item of a list."""
        nodes: list[Node] = self._typed(list, "a list", [])
        return [Cursor(node, self.path, self.report) for node in nodes]

    def text(self, default: str = "") -> str:
        """A text that is not empty."""
        text = self._typed(str, "text", default)
        if self.given and text == "" and isinstance(self._value, str):
            self.fail("it is empty")
        return text

    def integer(self, default: int = 0, least: int = 0) -> int:
        """An integer of at least `least`."""
        value = self._typed(int, "an integer", default)
        if self.given and type(self._value) is int and value < least:
            self.fail(f"{shown(value)} is below {least}")
        return value

    def number(self, default: float = 0.0) -> float:
        """A finite number, not negative."""
        value = self._typed((int, float), "a number", default)
        if value < 0 or not math.isfinite(_as_float(value)):
            self.fail(f"{shown(value)} is not a finite number of at least 0")
            return default
        return float(value)

    def optional_number(self) -> float | None:
        """A finite number, None where the file says null or nothing."""
        return None if self.node is None or self._value is None else self.number()

    def flag(self, default: bool = False) -> bool:
        """True or false."""
        return self._typed(bool, "true or false", default)

    def choice(self, choices: Sequence[str], default: str | None = None) -> str:
        """One of `choices`."""
        text = self._typed(str, f"one of {', '.join(choices)}", default or choices[0])
        if text not in choices:
            near = difflib.get_close_matches(text[:80], choices, n=1)
            self.fail(f"{shown(text)!r} is not one of {', '.join(choices)}", f"did you mean {near[0]}?" if near else None)
        return text

    def shape(self) -> tuple[int, ...] | None:
        """The sizes of a tensor, None if the file has no list of them."""
        sizes = tuple(item.integer() for item in self.items())
        return sizes if self.is_list else None

    def placements(self, mesh: Mesh | None) -> Placements:
        """One placement per axis of the mesh; the mesh is None if it could not be read itself."""
        found: list[Placement | None] = [item._parsed(_placement, None) for item in self.items()]
        placements = tuple(placement for placement in found if placement)
        if mesh and self.is_list and len(placements) == len(found) != mesh.ndim:
            number = f"{len(found)} placement{'' if len(found) == 1 else 's'}"
            axes = f"{mesh.ndim} {'axis' if mesh.ndim == 1 else 'axes'} ({', '.join(mesh.names)})"
            self.fail(f"{number}, the mesh has {axes}", "write one per axis, in mesh order")
        return placements

    def collectives(self, mesh: Mesh | None) -> tuple[Collective, ...]:
        """A list of collectives over axes of the mesh."""
        return tuple(item._parsed(lambda text: parse_collective(text, mesh), Collective("", ())) for item in self.items())

    def pattern(self) -> str:
        """The text of a pattern."""
        return self._parsed(lambda text: parse_pattern(text).text, "")

    def key_pattern(self) -> str:
        """The last key, which must be a pattern."""
        try:
            parse_pattern(self.name)
        except AutoplanError as error:
            self.fail_bare(error.what, error.next_step)
        return self.name

    def raw(self) -> Any:
        """Whatever the file says, as plain values."""
        return None if self.node is None else _raw(self.node)

    @property
    def _value(self) -> Any:
        return None if self.node is None else self.node.value

    def _typed(self, types: Any, wanted: str, default: T) -> T:
        """The value if it has the type, else `default`, with the problem noted."""
        if self.node is None:
            return default
        value: T = self.node.value
        if isinstance(value, types) and (types is bool or not isinstance(value, bool)):
            return value
        self.fail(f"{_described(value)} is not {wanted}")
        return default

    def _parsed(self, parse: Callable[[str], T], default: T) -> T:
        text = self._typed(str, "text", None)
        if text is None:
            return default
        try:
            return parse(text)
        except AutoplanError as error:
            self.fail(error.what, error.next_step)
            return default


def parse_collective(text: str, mesh: Mesh | None) -> Collective:
    """`all-gather x,y` as a Collective; raises AutoplanError for an unknown kind or axis."""
    kind, _, axes = text.partition(" ")
    names = tuple(axis.strip() for axis in axes.split(","))
    if kind not in COLLECTIVE_KINDS:
        raise AutoplanError(f"{shown(text)!r} is not a collective", next_step=_did_you_mean(kind, COLLECTIVE_KINDS))
    if mesh and not set(names) <= set(mesh.names):
        raise AutoplanError(f"{shown(text)!r} is not over axes of the mesh ({', '.join(mesh.names)})", next_step="write all-gather x")
    if len(set(names)) < len(names):
        raise AutoplanError(f"{shown(text)!r} repeats an axis", next_step="name every axis once")
    return Collective(kind, names)


def shown(value: object) -> str:
    """`value` as messages print it: never more than a line of it."""
    text = str(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _did_you_mean(text: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(text[:80], list(known), n=1)
    return f"did you mean {near[0]}?" if near else 'write a kind and its axes, quoted if there are several: "all-gather x,y"'


def _placement(text: str) -> Placement | None:
    try:
        return parse_placement(text)
    except AutoplanError as error:
        hint = '"S(0,3)" needs its quotes' if text.startswith("S(") or text.endswith(")") else error.next_step
        raise AutoplanError(f"{shown(text)!r} is not a placement", next_step=hint) from None


def _as_float(value: float) -> float:
    try:
        return float(value)
    except OverflowError:
        return math.inf


def _described(value: Any) -> str:
    if isinstance(value, dict):
        return "a mapping"
    if isinstance(value, list):
        return "a list"
    return "null" if value is None else repr(shown(value)) if isinstance(value, str) else shown(value).lower()


def _raw(node: Node) -> Any:
    if isinstance(node.value, dict):
        return {key: _raw(item) for key, item in node.value.items()}
    return [_raw(item) for item in node.value] if isinstance(node.value, list) else node.value
