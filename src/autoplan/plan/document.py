"""YAML text as a tree that knows its lines, and refuses what a plan has no use for. Nothing is constructed.

Built from the parser's events, with a stack of our own: no aliases (a few lines of them expand to gigabytes), no tags, no
duplicate keys, no recursion whatever the depth of the file, and every key keeps its line.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

import yaml

from autoplan.errors import PlanError

MAX_BYTES = 16 * 2**20
MAKE_ONE = "make one with: autoplan plan TARGET --mesh 2x4 -o plan.yaml"
_MAX_DEPTH = 32
_MAX_PROBLEMS = 100
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

_INTEGER = re.compile(r"[-+]?(?:0|[1-9][0-9]{0,3999})")
_FLOAT = re.compile(r"[-+]?(?:[0-9]+\.[0-9]*|\.[0-9]+|[0-9]+(?=[eE]))(?:[eE][-+]?[0-9]+)?")
_WORDS = {"null": None, "~": None, "": None, "true": True, "false": False}


@dataclass(slots=True)
class Node:
    """A value and its line: a scalar, a list of nodes, or a dict of nodes whose line is that of their key."""

    value: Any
    line: int


@dataclass(slots=True)
class Report:
    """The problems found in one source so far, with their lines; identical ones count once."""

    source: str
    problems: dict[str, int] = field(default_factory=dict)

    def add(self, what: str, line: int | None = None, next_step: str | None = None) -> None:
        """Notes a problem; gives up on the file, with all that was found, once there are too many to read."""
        where = self.source if line is None else f"{self.source}:{line}"
        self.problems.setdefault(str(PlanError(what, where=where, next_step=next_step)), line or 0)
        if len(self.problems) == _MAX_PROBLEMS:
            self.raise_any("\nthere may be more: reading stopped here")

    def raise_any(self, ending: str = "") -> None:
        """Raises one PlanError with every problem in the order of the lines, if there is any."""
        if self.problems:
            raise PlanError("\n".join(sorted(self.problems, key=self.problems.__getitem__)) + ending)


def read_document(text: str, report: Report) -> Node:
    """The one YAML document in `text`; raises PlanError for what is not one, notes duplicate keys in `report`."""
    composer = _Composer(report)
    try:
        for event in yaml.parse(text, Loader=_LOADER):
            composer.take(event)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        report.add(f"not YAML: {error.problem or error.context}", mark.line + 1 if mark else None, "see this line and the one before it")
    except yaml.reader.ReaderError as error:
        report.add(f"not a text file: {error.reason}", text.count("\n", 0, error.position) + 1)
    else:
        if composer.root is not None:
            return composer.root
        report.add("the plan is empty", next_step=MAKE_ONE)
    report.raise_any()
    raise AssertionError("a problem was noted")


def resolve(text: str) -> Any:
    """A plain scalar as None, bool, int, float or, if it is nothing of these, the text itself."""
    if text in _WORDS:
        return _WORDS[text]
    if _INTEGER.fullmatch(text):
        return int(text)
    return float(text) if _FLOAT.fullmatch(text) else text


class _Composer:
    """Turns the parser's events into nodes. The stack holds the open collections and, for mappings, the key awaiting its value."""

    def __init__(self, report: Report) -> None:
        self.report = report
        self.root: Node | None = None
        self.open: list[tuple[Node, Node | None]] = []

    def take(self, event: Any) -> None:
        """Adds one event of the parser (PyYAML's stubs know few of their attributes)."""
        line = event.start_mark.line + 1
        self._refuse(event, line)
        if isinstance(event, yaml.ScalarEvent):
            self._place(Node(resolve(event.value) if event.implicit[0] else event.value, line), event.value)
        elif isinstance(event, yaml.MappingStartEvent | yaml.SequenceStartEvent):
            node = Node({} if isinstance(event, yaml.MappingStartEvent) else [], line)
            self._place(node, None)
            self.open.append((node, None))
        elif isinstance(event, yaml.MappingEndEvent | yaml.SequenceEndEvent):
            self.open.pop()

    def _refuse(self, event: Any, line: int) -> None:
        problem: tuple[str, str | None] | None = None
        if getattr(event, "anchor", None):
            problem = "anchors and aliases (&, *) are not read", 'write the value out, and quote a name that starts with "*"'
        elif getattr(event, "tag", None) not in (None, "!"):
            problem = f"tags are not read: {event.tag[:60]!r}", "write the plain value"
        elif len(self.open) > _MAX_DEPTH:
            problem = f"nested deeper than {_MAX_DEPTH} levels", None
        elif isinstance(event, yaml.DocumentStartEvent) and self.root is not None:
            problem = "a second document", "a plan file holds one plan"
        if problem:
            self.report.add(problem[0], line, problem[1])
            self.report.raise_any()

    def _place(self, node: Node, text: str | None) -> None:
        """Hangs a node where it belongs: the root, an item, a key, or the value of the key before it."""
        if not self.open:
            self.root = node
            return
        parent, key = self.open[-1]
        if isinstance(parent.value, list):
            parent.value.append(node)
        elif key is None:
            self._open_key(parent, node, text)
        else:
            parent.value[key.value] = Node(node.value, key.line)
            self.open[-1] = (parent, None)

    def _open_key(self, parent: Node, key: Node, text: str | None) -> None:
        if text is None:
            self.report.add("a key that is itself a list or a mapping", key.line, "keys are names")
            self.report.raise_any()
        elif text in parent.value:
            self.report.add(f"duplicate key {text[:80]!r}", key.line, f"first on line {parent.value[text].line}; keep one of them")
        self.open[-1] = (parent, Node(text, key.line))
