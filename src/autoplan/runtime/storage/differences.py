"""How the tensors of a file differ from those of a module, all of it, in few lines: copies of a block are folded as plans fold them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from autoplan.plan.patterns import collapse

Shapes = Mapping[str, Sequence[int]]


def differences(own: Shapes, found: Shapes) -> list[str]:
    """Names that only one side has, and shapes that differ: a line of a message for each kind that there is."""
    reshaped = {
        name: f"{list(found[name])} there, {list(shape)} here"
        for name, shape in own.items()
        if name in found and list(found[name]) != list(shape)
    }
    lines = {
        "missing there": folded(own.keys() - found.keys()),
        "not in this model": folded(found.keys() - own.keys()),
        "other shapes": [f"{pattern} is {what}" for pattern, what in _folded(reshaped)],
    }
    return [f"{kind}: {', '.join(listed)}" for kind, listed in lines.items() if listed]


def folded(names: Iterable[str]) -> list[str]:
    """The names, those of equal copies as one pattern."""
    return [pattern for pattern, _ in _folded(dict.fromkeys(names, ""))]


def _folded(lines: Mapping[str, str]) -> list[tuple[str, str]]:
    parts = [name.split(".") for name in lines]
    prefixes = {".".join(segments[:i]) for segments in parts for i in range(1, len(segments)) if segments[i].isdigit()}
    return [(pattern, fold.content) for pattern, fold in collapse(lines, prefixes).items()]
