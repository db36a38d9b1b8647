"""What differs between two plans: in their decisions, and in what they predict.

Patterns are compared by what they stand for: `layers.*` with count 32 is `layers.{0-15}` and `layers.{16-31}` if those
lines say the same. The solver's line, provenance and the order of lines are no differences.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from autoplan.plan.dump import flow
from autoplan.plan.patterns import collapse, expand, parse_pattern
from autoplan.plan.plain import Plain, plan_to_json
from autoplan.plan.schema import Plan

_BY_KEY = ("model", "hardware", "options", "recompute", "inputs", "outputs")
_BY_PATTERN = ("params", "buffers", "ops", "reshard", "gather")
_IN_EXECUTION_ORDER = ("ops", "reshard")


@dataclass(frozen=True, slots=True)
class Change:
    """One decision that differs: plain values as the file has them, None on the side that lacks it."""

    section: str
    name: str
    count: int
    old: Plain
    new: Plain


@dataclass(frozen=True, slots=True)
class PredictionChange:
    """One prediction that differs, None on the side that lacks it: numbers, or in words why there is none."""

    name: str
    old: float | str | None
    new: float | str | None

    @property
    def relative(self) -> float | None:
        """The change as a fraction of the old value, None where that is 0 or one of them is no number."""
        old, new = self.old, self.new
        return None if isinstance(old, str | None) or isinstance(new, str | None) or not old else (new - old) / old


@dataclass(frozen=True, slots=True)
class PlanDiff:
    """All differences between two plans."""

    changes: tuple[Change, ...]
    predictions: tuple[PredictionChange, ...]

    @property
    def same(self) -> bool:
        """Whether there is no difference."""
        return not (self.changes or self.predictions)

    def to_json(self) -> dict[str, Plain]:
        """The differences as one JSON-ready object."""
        changes = [{"section": c.section, "name": c.name, "count": c.count, "old": c.old, "new": c.new} for c in self.changes]
        predictions = {p.name: {"old": p.old, "new": p.new, "relative": p.relative} for p in self.predictions}
        return {"same": self.same, "changes": changes, "predictions": predictions}


def diff_plans(old: Plan, new: Plan) -> PlanDiff:
    """The differences from `old` to `new`, in the order of the file."""
    a, b = plan_to_json(old), plan_to_json(new)
    predictions = [*_prediction_changes(a["predicted"], b["predicted"])]
    if "by_hand" in a and "by_hand" in b:  # older plans predict nothing of layouts by hand
        predictions += _prediction_changes(a["by_hand"], b["by_hand"], "by hand ")
    return PlanDiff(tuple(_changes(a, b)), tuple(predictions))


def format_diff(diff: PlanDiff) -> str:
    """The differences for people: `- old` and `+ new` under each name, then a table of the predictions."""
    if diff.same:
        return "no differences\n"
    return "\n".join([*_changed_lines(diff.changes), *_prediction_table(diff.predictions)]) + "\n"


def _changes(a: Mapping[str, Plain], b: Mapping[str, Plain]) -> Iterator[Change]:
    for section in a:
        if section == "mesh" and list(a[section].items()) != list(b[section].items()):
            yield Change(section, "", 1, a[section], b[section])
        elif section in _BY_KEY:
            yield from _changes_by_key(section, a[section], b[section])
        elif section in _BY_PATTERN:
            yield from _changes_by_pattern(section, a[section], b[section])
        elif section == "pins":
            yield from (Change(section, "", 1, pin, None) for pin in a[section] if pin not in b[section])
            yield from (Change(section, "", 1, None, pin) for pin in b[section] if pin not in a[section])
        elif section == "fallbacks":
            yield from _changes_by_pattern(section, _fallbacks(a[section]), _fallbacks(b[section]))


def _changes_by_key(section: str, a: Mapping[str, Plain], b: Mapping[str, Plain]) -> Iterator[Change]:
    for key in _union(a, b):
        if a.get(key) != b.get(key):
            yield Change(section, key, 1, a.get(key), b.get(key))


def _changes_by_pattern(section: str, a: Mapping[str, Plain], b: Mapping[str, Plain]) -> Iterator[Change]:
    """The lines that differ, compared name by name and folded again for reading."""
    old, new = _expanded(a), _expanded(b)
    names = _union(old, new)
    pairs = {name: (old.get(name), new.get(name)) for name in names if old.get(name) != new.get(name)}
    texts = {name: (flow(before), flow(after)) for name, (before, after) in pairs.items()}
    folded = collapse(texts, _prefixes((*a, *b)), existing=names, execution_order=section in _IN_EXECUTION_ORDER)
    for pattern, fold in folded.items():
        yield Change(section, pattern, fold.count, *pairs[fold.members[0]])


def _expanded(lines: Mapping[str, Plain]) -> dict[str, Plain]:
    """Each name with what is said of it, without counts; a pattern that cannot be expanded stays, with its count."""
    expanded: dict[str, Plain] = {}
    for pattern, line in lines.items():
        count = (line[0] if isinstance(line, list) else line).get("count", 1)
        names = expand(pattern, count)
        if names is None:
            expanded[pattern] = line
        else:
            expanded |= dict.fromkeys(names, _without_count(line))
    return expanded


def _without_count(line: Plain) -> Plain:
    if isinstance(line, list):
        return [_without_count(entry) for entry in line]
    return {key: value for key, value in line.items() if key != "count"}


def _fallbacks(lines: Iterable[Mapping[str, Plain]]) -> dict[str, Plain]:
    """Fallbacks as a section by address; what they cost is a prediction, not a decision."""
    return {line["address"]: {"op": line["op"], "count": line["count"]} for line in lines}


def _prefixes(patterns: Iterable[str]) -> set[str]:
    """What stands before the first wildcard of each pattern."""
    prefixes = set()
    for pattern in patterns:
        segments = parse_pattern(pattern).segments
        first = next((i for i, segment in enumerate(segments) if not isinstance(segment, str)), None)
        if first:
            prefixes.add(".".join(map(str, segments[:first])))
    return prefixes


def _prediction_changes(a: Mapping[str, Plain], b: Mapping[str, Plain], above: str = "") -> Iterator[PredictionChange]:
    for name in dict.fromkeys((*a, *b)):
        old, new = a.get(name), b.get(name)
        if isinstance(old, dict) or isinstance(new, dict):
            yield from _prediction_changes(old or {}, new or {}, f"{above}{name} ")
        elif old != new:
            yield PredictionChange(f"{above}{name}", old, new)


def _changed_lines(changes: Iterable[Change]) -> Iterator[str]:
    section = None
    for change in changes:
        if change.section != section:
            section = change.section
            yield section
        if change.name:
            yield f"  {change.name}" + (f"  (x{change.count})" if change.count > 1 else "")
        old, new = _differing_keys(change.old, change.new) if change.name else (change.old, change.new)
        yield from (f"    {sign} {flow(value)}" for sign, value in (("-", old), ("+", new)) if value is not None)


def _differing_keys(old: Plain, new: Plain) -> tuple[Plain, Plain]:
    """Both sides without the keys on which they agree."""
    if not (isinstance(old, dict) and isinstance(new, dict)):
        return old, new
    keys = [key for key in _union(old, new) if old.get(key) != new.get(key)]
    return {key: old[key] for key in keys if key in old} or None, {key: new[key] for key in keys if key in new} or None


def _prediction_table(predictions: tuple[PredictionChange, ...]) -> Iterator[str]:
    if not predictions:
        return
    width = max(len(p.name) for p in predictions)
    yield f"{'predicted':<{width + 2}}  {'old':>9}  {'new':>9}  {'change':>9}"
    for p in predictions:
        change = "" if p.relative is None else f"{p.relative:+.1%}"
        old, new = ("-" if value is None else flow(value) for value in (p.old, p.new))
        yield f"  {p.name:<{width}}  {old:>9}  {new:>9}  {change:>9}".rstrip()


def _union(a: Iterable[str], b: Iterable[str]) -> list[str]:
    """Every name of both, those of `b` first, in their order."""
    return list(dict.fromkeys((*b, *a)))
