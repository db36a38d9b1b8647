"""What the registry says of itself: the rules by family, their rows read off the tables in their docstrings."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from inspect import cleandoc
from pathlib import Path
from textwrap import wrap

from autoplan.rules.registry import Rule, all_rules

_PLACEMENT = r"(?:S\([^)]*\)|R|P|-)"
_ROW = re.compile(rf"(?P<ins>(?:{_PLACEMENT}\s+)*)->(?P<outs>(?:\s+{_PLACEMENT}(?=\s|$))+)(?:\s+(?P<note>\S.*))?")
_WIDTH = 110
BY_TAG = "Every op that torch tags as pointwise and that has no rule of its own has the rows of the pointwise ops."
REPLICATED = "Every op can run replicated: with all of its inputs and outputs whole on each rank. An op that is not listed does."


@dataclass(frozen=True, slots=True)
class DocumentedRule:
    """One rule: the ops that share it and its docstring, cleaned."""

    family: str  # the file it stands in
    title: str  # that file's first line
    ops: tuple[str, ...]
    text: str

    def rows(self) -> tuple[tuple[str, str], ...]:
        """(`S(d,g) R -> S(d,g)`, when it holds) of each row; a row that continues on further lines is joined."""
        found: list[tuple[str, str]] = []
        for line in self.text.splitlines():
            if match := _ROW.fullmatch(line.strip()):
                row = " ".join([*match["ins"].split(), "->", *match["outs"].split()])
                found.append((row, match["note"] or ""))
            elif found and line.startswith(" " * 10) and line.strip():
                found[-1] = (found[-1][0], f"{found[-1][1]} {line.strip()}")
        return tuple(found)


def documented_rules(*, users: bool = True) -> tuple[DocumentedRule, ...]:
    """The rules by family and op, those that users registered only where asked for."""
    shared: dict[tuple[str, str], list[Rule]] = {}
    for rule in all_rules():
        if users or rule.is_own:
            shared.setdefault((family_of(rule), rule.doc), []).append(rule)
    return tuple(
        DocumentedRule(family, _title(rules[0]), tuple(rule.op for rule in rules), cleandoc(doc))
        for (family, doc), rules in sorted(shared.items(), key=lambda item: (item[0][0], item[1][0].op))
    )


def family_of(rule: Rule) -> str:
    """The name of the file in which a rule stands, without its ending."""
    return Path(rule.source.rpartition(":")[0]).stem


def _title(rule: Rule) -> str:
    doc = sys.modules[rule.rows.__module__].__doc__ if rule.rows.__module__ in sys.modules else None
    return (doc or "").strip().partition("\n")[0].rstrip(".")


def as_text(rules: Sequence[DocumentedRule]) -> str:
    """The rules for a terminal: the ops that share one, and its table below."""
    parts = []
    for rule in rules:
        table = (f"    {line}".rstrip() for line in rule.text.splitlines())
        parts.append("\n".join([*wrap(", ".join(rule.ops), _WIDTH, break_on_hyphens=False), *table]))
    return "\n\n".join([*parts, BY_TAG, REPLICATED]) + "\n"


def as_markdown(rules: Sequence[DocumentedRule]) -> str:
    """The rules as docs/OPS.md has them."""
    lines = [_HEAD.format(ops=sum(len(rule.ops) for rule in rules), rows=sum(len(rule.rows()) for rule in rules)).strip()]
    family = None
    for rule in rules:
        if rule.family != family:
            family = rule.family
            lines.append(f"## {family}\n\n{rule.title}.")
        names = ", ".join(f"`{op}`" for op in rule.ops)
        lines.append("\n".join([*wrap(names, _WIDTH, break_on_hyphens=False), "", "```text", rule.text, "```"]))
    return "\n\n".join(lines) + "\n"


_HEAD = f"""
# Ops and their rows

Written by `make docs` from the rules in `src/autoplan/rules/ops/`: {{ops}} ops by name, {{rows}} kinds of rows. Change the rules, not this file.

A row says for ONE axis of the mesh how the inputs of an op lie and how its outputs then lie. `S(d)` is cut along dim d, `S(d,g)`
along dim d seen as g equal groups that are each cut, `R` is whole on every rank, `P` is a sum whose terms lie on different ranks,
`-` is not read. A plan has one row for each axis. Every row here is proved in `tests/rules`: forward and gradient, on one axis
and on two, on random shapes and dtypes; `tests/rules/test_completeness.py` lists what else would hold and is left out.

{BY_TAG} {REPLICATED}
"""
