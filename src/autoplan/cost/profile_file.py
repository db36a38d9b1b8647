"""Reading a profile strictly: every problem with its file and line, all of them at once."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from autoplan.errors import HardwareError, join_problems

_MAX_BYTES = 1_000_000


class Problems:
    """What is wrong with one file, in the order of its lines."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._found: list[tuple[int, str]] = []

    def add(self, key: str, what: str, section: Section) -> None:
        """Note a problem with `key` of `section`."""
        self._found.append((section.line_of(key), f"{section.name_of(key)}: {what}"))

    def __bool__(self) -> bool:
        return bool(self._found)

    def raise_any(self) -> None:
        """Raise HardwareError with every problem, if there are any."""
        if self._found:
            lines = [f"{self.path}:{line}: {what}" for line, what in sorted(self._found)]
            raise join_problems(HardwareError, lines, next_step="the profiles that ship are examples: configs/hardware")


class Section:
    """A mapping of the file. Reading a wrong or missing key notes a problem and goes on with a harmless value."""

    def __init__(self, node: yaml.MappingNode | None, path: str, problems: Problems, line: int) -> None:
        self._path, self.problems, self._line = path, problems, line
        self._nodes: dict[str, yaml.Node] = {}
        self._lines: dict[str, int] = {}
        self.missing = node is None
        for key_node, value_node in node.value if node else ():
            key = str(key_node.value)
            at = key_node.start_mark.line + 1
            if key in self._nodes:
                self._lines[key] = at
                problems.add(key, "given twice", self)
            self._nodes[key], self._lines[key] = value_node, at

    def names(self) -> tuple[str, ...]:
        """The keys, in the order of the file."""
        return tuple(self._nodes)

    def line_of(self, key: str) -> int:
        """The line of `key`, or of the section where the key is missing."""
        return self._lines.get(key, self._line)

    def name_of(self, key: str) -> str:
        """`compute.matmul.efficiency`."""
        return f"{self._path}.{key}" if self._path else key

    def allow(self, *names: str, optional: tuple[str, ...] = ()) -> None:
        """Note the keys that are unknown or missing."""
        if self.missing:
            return
        for key in self._nodes:
            if key not in names:
                self.problems.add(key, f"unknown; known are {', '.join(names)}", self)
        for name in names:
            if name not in self._nodes and name not in optional:
                self.problems.add(name, "missing", self)

    def section(self, key: str) -> Section:
        """The mapping under `key`."""
        node = self._nodes.get(key)
        if node is not None and not isinstance(node, yaml.MappingNode):
            self.problems.add(key, "must be a mapping", self)
        return Section(node if isinstance(node, yaml.MappingNode) else None, self.name_of(key), self.problems, self.line_of(key))

    def number(self, key: str, *, zero: bool = False, infinite: bool = False) -> float:
        """A positive number; 0 or .inf only where they make sense."""
        value = self._scalar(key)
        if value is None:
            return 1.0
        return self._checked(key, value, zero, infinite)

    def numbers(self, key: str) -> tuple[float, ...]:
        """A list of positive numbers."""
        node = self._nodes.get(key)
        if node is None:
            return ()
        if not isinstance(node, yaml.SequenceNode):
            self.problems.add(key, "must be a list of numbers", self)
            return ()
        return tuple(self._checked(key, _construct(item), False, False) for item in node.value)

    def by_size(self, key: str) -> tuple[tuple[float, float], ...]:
        """Positive numbers by size, sizes rising: a mapping, or a single number, which is that of every size."""
        if not isinstance(self._nodes.get(key), yaml.MappingNode):
            return ((1.0, self.number(key)),)
        table = self.section(key)
        sizes = [name for name in table.names() if name.isdecimal() and int(name)]
        for name in table.names():
            if name not in sizes:
                self.problems.add(name, "is not a size", table)
        if not sizes:
            self.problems.add(key, "has no sizes", self)
        return tuple(sorted({int(name): table.number(name) for name in sizes}.items())) or ((1.0, 1.0),)

    def integer(self, key: str) -> int | None:
        """A positive integer."""
        value = self._scalar(key)
        if value is None:
            return None
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            self.problems.add(key, f"{value!r} is not a positive integer", self)
            return None
        return value

    def text(self, key: str) -> str:
        """A text."""
        value = self._scalar(key)
        if value is not None and not isinstance(value, str):
            self.problems.add(key, f"{value!r} is not a text", self)
        return str(value)

    def plain(self) -> Mapping[str, Any]:
        """The whole section as plain values."""
        return {key: _construct(node) for key, node in self._nodes.items()}

    def _scalar(self, key: str) -> Any:
        node = self._nodes.get(key)
        if node is None:
            return None
        if not isinstance(node, yaml.ScalarNode):
            self.problems.add(key, "must be a single value", self)
            return None
        value = _construct(node)
        if value is None:
            self.problems.add(key, "has no value", self)
        return value

    def _checked(self, key: str, value: Any, zero: bool, infinite: bool) -> float:
        number = _as_number(value)
        if number is None or math.isnan(number) or number < 0 or (number == 0 and not zero) or (math.isinf(number) and not infinite):
            wanted = "a number of at least 0" if zero else "a positive number"
            self.problems.add(key, f"{value!r} is not {wanted}", self)
            return 1.0
        return number


def read_profile(path: Path) -> Section:
    """The file's top mapping; raises HardwareError where it is not YAML or not a mapping."""
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise HardwareError(f"{path}: too large for a hardware profile")
        root = yaml.compose(path.read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{path}:{mark.line + 1}" if mark else str(path)
        raise HardwareError(f"{where}: not YAML: {getattr(error, 'problem', None) or error}") from error
    except (UnicodeDecodeError, OSError) as error:
        raise HardwareError(f"{path}: cannot be read: {error}") from error
    if not isinstance(root, yaml.MappingNode):
        raise HardwareError(f"{path}:1: a hardware profile is a mapping", next_step="the profiles that ship are examples: configs/hardware")
    return Section(root, "", Problems(path), 1)


def _construct(node: yaml.Node) -> Any:
    loader = yaml.SafeLoader("")
    try:
        value = loader.construct_object(node, deep=True)
    except yaml.YAMLError:
        return str(node.value)
    finally:
        loader.dispose()
    return value if isinstance(value, int | float | str | list | dict | bool | None) else str(value)


def _as_number(value: Any) -> float | None:
    """YAML 1.1 reads 1e-5 as text."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        return float(value)
    except ValueError:
        return None
