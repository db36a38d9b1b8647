"""A plan's lines against a model's names: every name to its line, or one PlanError that names all that does not fit."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Mapping

from autoplan.errors import PlanError, join_problems
from autoplan.plan.patterns import parse_pattern, skeleton
from autoplan.plan.schema import Plan, RecomputeLine

Shapes = Mapping[str, tuple[int, ...]]

_NOUNS = {"params": "parameter", "buffers": "buffer", "inputs": "input", "outputs": "output", "gather": "module", "recompute": "module"}


def match_params(plan: Plan, shapes: Shapes) -> dict[str, str]:
    """The key of its `params` line for every parameter of the model (FQN -> global shape); raises PlanError."""
    return _match_shaped(plan, "params", shapes)


def match_buffers(plan: Plan, shapes: Shapes) -> dict[str, str]:
    """The key of its `buffers` line for every buffer of the model (FQN -> global shape); raises PlanError."""
    return _match_shaped(plan, "buffers", shapes)


def match_lines(plan: Plan, section: str, names: Iterable[str], *, complete: bool = False) -> dict[str, str]:
    """The key of its line in `section` for every one of `names` that has one; raises PlanError.

    Wrong are: a line that matches nothing, one whose count is not what it matches, a name matched by two lines and, if
    the section is to be `complete`, a name matched by none.
    """
    found = _match(plan, section, names)
    _raise_any(_problems(plan, section, found, complete))
    return {name: keys[0] for name, keys in found.items() if keys}


def _match_shaped(plan: Plan, section: str, shapes: Shapes) -> dict[str, str]:
    found = _match(plan, section, shapes)
    _raise_any([*_problems(plan, section, found, complete=True), *_shape_problems(plan, section, found, shapes)])
    return {name: keys[0] for name, keys in found.items()}


def _match(plan: Plan, section: str, names: Iterable[str]) -> dict[str, list[str]]:
    """For every name the keys of the lines that match it."""
    by_skeleton: dict[str, list[str]] = {}
    for key in getattr(plan, section):
        by_skeleton.setdefault(skeleton(key), []).append(key)
    return {name: [key for key in by_skeleton.get(skeleton(name), ()) if parse_pattern(key).matches(name)] for name in names}


def _problems(plan: Plan, section: str, found: Mapping[str, list[str]], complete: bool) -> Iterator[PlanError]:
    noun = _NOUNS.get(section, "op")
    members: dict[str, list[str]] = {key: [] for key in getattr(plan, section)}
    for name, keys in found.items():
        for key in keys:
            members[key].append(name)
    for key, names in members.items():
        where = plan.provenance.where(section, key)
        if not names:
            yield PlanError(f"{key}: the model has no such {noun}", where=where, next_step=_remedy(key, found))
        elif wrong := [count for count in _counts(plan, section, key) if count != len(names)]:
            word = "of" if section == "recompute" else "count"
            hint = f"write {word}: {len(names)}"
            yield PlanError(f"{key}: {word} {wrong[0]}, but the model has {len(names)} such {noun}s", where=where, next_step=hint)
    yield from _ambiguities(plan, section, found)
    if complete:
        yield from _orphans(plan, section, noun, found)


def _ambiguities(plan: Plan, section: str, found: Mapping[str, list[str]]) -> Iterator[PlanError]:
    """Names matched by several lines, once per set of lines."""
    clashes: dict[tuple[str, ...], list[str]] = {}
    for name, keys in found.items():
        if len(keys) > 1:
            clashes.setdefault(tuple(keys), []).append(name)
    for lines, names in clashes.items():
        where = ", ".join(plan.provenance.where(section, key) for key in lines)
        what = f"{_first_of(names)}: matched by {len(lines)} lines, {' and '.join(lines)}"
        yield PlanError(what, where=where, next_step="exactly one line may match")


def _orphans(plan: Plan, section: str, noun: str, found: Mapping[str, list[str]]) -> Iterator[PlanError]:
    """Names matched by no line, once per block pattern."""
    orphans: dict[str, list[str]] = {}
    for name, keys in found.items():
        if not keys:
            orphans.setdefault(skeleton(name), []).append(name)
    for names in orphans.values():
        what = f"{_first_of(names)}: this {noun} of the model is matched by no line of {section}"
        yield PlanError(
            what,
            where=plan.provenance.where(section),
            next_step=f"add a line for it, or plan again{_near(names[0], getattr(plan, section))}",
        )


def _shape_problems(plan: Plan, section: str, found: Mapping[str, list[str]], shapes: Shapes) -> Iterator[PlanError]:
    """Lines whose shape is not that of what they match, once per line."""
    reported = set()
    for name, keys in found.items():
        for key in keys:
            planned, actual = getattr(plan, section)[key].shape, shapes[name]
            if tuple(actual) != planned and key not in reported:
                reported.add(key)
                what = f"{key}: shape {list(planned)}, but {name} of the model has {list(actual)}"
                yield PlanError(
                    what, where=plan.provenance.where(section, key), next_step="plan again for this model, or give the plan's own --set"
                )


def _counts(plan: Plan, section: str, key: str) -> tuple[int, ...]:
    """The counts a line states."""
    line = getattr(plan, section)[key]
    if isinstance(line, tuple):
        return tuple(entry.count for entry in line)
    return (line.of if isinstance(line, RecomputeLine) else getattr(line, "count", 1),)


def _remedy(key: str, names: Iterable[str]) -> str:
    return f"remove the line, or plan again{_near(key, names)}"


def _near(name: str, known: Iterable[str]) -> str:
    """`; did you mean ...?` with the known name most like this one, nothing if none is."""
    near = difflib.get_close_matches(skeleton(name), sorted({skeleton(other) for other in known}), n=1, cutoff=0.8)
    return f"; did you mean {near[0]}?" if near else ""


def _first_of(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more"


def _raise_any(problems: Iterable[PlanError]) -> None:
    problems = list(problems)
    if problems:
        raise join_problems(PlanError, problems)
