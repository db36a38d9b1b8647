"""Patterns over FQNs and addresses, and the canonical folding of repeated blocks into them.

A name is dot-separated segments, with `/op#n[i]` behind them if it is an address. In a pattern the segment `*` is any
integer and `{1-30}` one from 1 to 30; every other segment, and the op, is itself.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Hashable, Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from itertools import groupby, product
from math import prod
from typing import Generic, TypeVar

from autoplan.errors import PlanError

Content = TypeVar("Content", bound=Hashable)

_RANGE = re.compile(r"\{(\d{1,9})-(\d{1,9})\}")
_INDEX = re.compile(r"0|[1-9][0-9]{0,8}")
_WILDCARD = re.compile(r"\*|\{\d{1,9}-\d{1,9}\}")
_MAX_EXPANDED = 100_000
_HINT = "as a whole segment, * is any integer and {1-30} a range of them"


@dataclass(frozen=True, slots=True)
class Pattern:
    """A parsed pattern: segments (a text, an inclusive range, or None for `*`) and the op, None for an FQN."""

    text: str
    segments: tuple[str | tuple[int, int] | None, ...]
    op: str | None

    def matches(self, name: str) -> bool:
        """Whether `name` is one of the names this pattern stands for."""
        path, op = _split(name)
        segments = path.split(".")
        return op == self.op and len(segments) == len(self.segments) and all(map(_fits, self.segments, segments))

    @property
    def is_concrete(self) -> bool:
        """Whether it stands for one name only, itself."""
        return all(isinstance(segment, str) for segment in self.segments)

    @property
    def range_count(self) -> int | None:
        """How many names it stands for, None where a `*` leaves that to the model."""
        count = 1
        for segment in self.segments:
            if segment is None:
                return None
            if isinstance(segment, tuple):
                count *= segment[1] - segment[0] + 1
        return count


@lru_cache(maxsize=100_000)
def parse_pattern(text: str) -> Pattern:
    """`layers.*.attn/linear` as a Pattern; raises PlanError where a segment is empty or mixes text and wildcard."""
    path, op = _split(text)
    if op is not None and (not op or re.search(r"[*{}]", op)):
        raise PlanError(f"{text!r}: {op!r} is not the name of an op", next_step="wildcards belong before the slash")
    segments = ("",) if op is not None and not path else tuple(_parse_segment(text, part) for part in path.split("."))
    return Pattern(text, segments, op)


def match(pattern: str, name: str) -> bool:
    """Whether `pattern` stands for the FQN or address `name`."""
    return parse_pattern(pattern).matches(name)


def skeleton(name: str) -> str:
    """`name` with `*` for every integer or wildcard segment: equal for a pattern and all that it matches."""
    path, op = _split(name)
    segments = ["*" if _INDEX.fullmatch(segment) or _WILDCARD.fullmatch(segment) else segment for segment in path.split(".")]
    return ".".join(segments) + ("" if op is None else f"/{op}")


def expand(pattern: str, count: int) -> tuple[str, ...] | None:
    """The `count` names a pattern stands for, None if they cannot be told: two `*`, or a count that does not fit.

    The model is not at hand here, so a `*` is taken to count from 0: right for a block list, and for two plans of one
    model at least the same on both sides.
    """
    parsed = parse_pattern(pattern)
    stars = parsed.segments.count(None)
    ranges = prod(segment[1] - segment[0] + 1 for segment in parsed.segments if isinstance(segment, tuple))
    if stars > 1 or count > _MAX_EXPANDED or (stars and count % ranges) or (not stars and count != ranges):
        return None
    choices = [_choices(segment, count // ranges) for segment in parsed.segments]
    suffix = "" if parsed.op is None else f"/{parsed.op}"
    return tuple(".".join(path) + suffix for path in product(*choices))


def natural_key(pattern: str) -> tuple[object, ...]:
    """Sort key by which `layers.2` comes before `layers.{3-9}` and that before `layers.10`; `*` counts as 0."""
    path, op = _split(_WILDCARD.sub(lambda found: _first_index(found[0]), pattern))
    return tuple(_natural_parts(segment) for segment in path.split(".")), _natural_parts(op or ""), pattern


@dataclass(frozen=True, slots=True)
class Fold(Generic[Content]):
    """One line of a folded section: what is said, and the names it is said of."""

    content: Content
    members: tuple[str, ...]

    @property
    def count(self) -> int:
        """How many names the line stands for."""
        return len(self.members)


def collapse(
    lines: Mapping[str, Content],
    prefixes: Collection[str],
    *,
    existing: Iterable[str] = (),
    execution_order: bool = False,
) -> dict[str, Fold[Content]]:
    """The canonical folding of `lines` (name -> content): pattern -> Fold, in natural order or by first member.

    Only the integer behind the first of `prefixes` ("layers", "encoder.block") found in a name is folded. Names that
    agree but for that index, have equal content and consecutive indexes become one `{a-b}`, or `*` if no other index
    exists; a single name stays itself. `existing` are names that exist without a line of their own (an op whose
    neighbours are resharded but which is not): a `*` must not cover those either. Content that itself holds addresses
    is compared as it is, so the caller writes `*` for the block's own index in it.
    """
    indexes: dict[tuple[str, str], set[int]] = {}
    for name in (*lines, *existing):
        if place := _fold_place(name, prefixes):
            indexes.setdefault((place[0], place[2]), set()).add(place[1])
    families: dict[tuple[str, str], list[int]] = {}
    folded: dict[str, Fold[Content]] = {}
    for name, content in lines.items():
        if place := _fold_place(name, prefixes):
            families.setdefault((place[0], place[2]), []).append(place[1])
        else:
            folded[name] = Fold(content, (name,))
    for (prefix, rest), members in families.items():
        folded |= _fold_family(lines, prefix, rest, sorted(members), len(indexes[prefix, rest]))
    if execution_order:
        position = {name: i for i, name in enumerate(lines)}
        return dict(sorted(folded.items(), key=lambda item: min(position[name] for name in item[1].members)))
    return {pattern: folded[pattern] for pattern in sorted(folded, key=natural_key)}


def _fold_family(lines: Mapping[str, Content], prefix: str, rest: str, indexes: list[int], existing: int) -> dict[str, Fold[Content]]:
    """The lines of one family of names, `prefix.INDEX` + rest, as runs of consecutive indexes with equal content."""

    def name(index: object) -> str:
        return f"{prefix}.{index}{rest}"

    if len(indexes) == existing > 1 and len({lines[name(index)] for index in indexes}) == 1:
        return {name("*"): Fold(lines[name(indexes[0])], tuple(map(name, indexes)))}
    runs: dict[str, Fold[Content]] = {}
    for _, group in groupby(enumerate(indexes), key=lambda item: (item[1] - item[0], lines[name(item[1])])):
        run = [index for _, index in group]
        label = run[0] if len(run) == 1 else f"{{{run[0]}-{run[-1]}}}"
        runs[name(label)] = Fold(lines[name(run[0])], tuple(map(name, run)))
    return runs


def _fold_place(name: str, prefixes: Collection[str]) -> tuple[str, int, str] | None:
    """(prefix, index, rest) of the outermost foldable segment of `name`, None without one."""
    segments = _split(name)[0].split(".")
    for i in range(1, len(segments)):
        prefix = ".".join(segments[:i])
        if _INDEX.fullmatch(segments[i]) and prefix in prefixes:
            return prefix, int(segments[i]), name[len(prefix) + 1 + len(segments[i]) :]
    return None


def _split(name: str) -> tuple[str, str | None]:
    """The path of a name and its op, None for an FQN."""
    path, slash, op = name.partition("/")
    return path, op if slash else None


def _parse_segment(text: str, segment: str) -> str | tuple[int, int] | None:
    if segment == "*":
        return None
    if found := _RANGE.fullmatch(segment):
        first, last = int(found[1]), int(found[2])
        if first < last:
            return first, last
        raise PlanError(f"{text!r}: the range {segment} does not rise", next_step="write {first-last} with first below last")
    if not segment or re.search(r"[*{}]", segment):
        raise PlanError(f"{text!r}: {segment!r} is not a path segment", next_step=_HINT)
    return segment


def _fits(wanted: str | tuple[int, int] | None, segment: str) -> bool:
    if isinstance(wanted, str):
        return wanted == segment
    return bool(_INDEX.fullmatch(segment)) and (wanted is None or wanted[0] <= int(segment) <= wanted[1])


def _choices(segment: str | tuple[int, int] | None, star_count: int) -> list[str]:
    """The texts a segment of a pattern stands for."""
    if isinstance(segment, str):
        return [segment]
    first, last = segment or (0, star_count - 1)
    return [str(index) for index in range(first, last + 1)]


def _first_index(wildcard: str) -> str:
    return "0" if wildcard == "*" else wildcard[1:].partition("-")[0]


def _natural_parts(segment: str) -> tuple[tuple[bool, int, str], ...]:
    """The runs of digits and of other characters in a segment, comparable with those of any other."""
    runs = re.findall(r"[0-9]{1,18}|[^0-9]+", segment)
    return tuple((False, int(run), "") if run[0] in "0123456789" else (True, 0, run) for run in runs)
