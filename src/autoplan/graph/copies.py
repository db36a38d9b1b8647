"""Repeated blocks in a draft: the calls of a block that was traced, once more for every call that stands for it.

What the marks in the graph claim is checked: a block reads its arguments and its own parameters and buffers, nothing of it is read
but its results, and where two calls of it were traced under equal circumstances, one is the copy of the other.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from autoplan.graph.draft import Call, Draft, DraftValue, Place
from autoplan.graph.ir import Ref, map_refs
from autoplan.graph.repeats import BlockCall, Unlike


@dataclass(slots=True)
class _Stretch:
    """The calls of one traced block: `draft.calls[start:end]`."""

    fqn: str
    place: Place  # of the call of the block
    grad: bool
    arguments: tuple[int, ...]
    start: int
    first_value: int
    end: int = -1
    results: tuple[int, ...] = ()
    made: range = field(default=range(0))
    repeated: bool = False


class Copies:
    """The blocks of one walk over an exported graph whose ops refer to `calls`; `state` has parameters and buffers by FQN."""

    def __init__(self, draft: Draft, calls: Sequence[BlockCall], state: Mapping[str, int]) -> None:
        self._draft = draft
        self._calls = calls
        self._stretches: dict[int, _Stretch] = {}
        self._own: dict[str, dict[str, int]] = {call.fqn: {} for call in calls}
        for fqn, value in state.items():
            for prefix in _prefixes(fqn):
                if prefix in self._own:
                    self._own[prefix][fqn[len(prefix) :]] = value

    def begin(self, number: int, arguments: Iterable[int], place: Place, grad: bool) -> None:
        """A traced block starts here."""
        draft = self._draft
        self._stretches[number] = _Stretch(self._calls[number].fqn, place, grad, tuple(arguments), len(draft.calls), len(draft.values))

    def end(self, number: int, results: Iterable[int], grad: bool) -> None:
        """The traced block ends here; raises Unlike where gradients are recorded at one end alone."""
        stretch = self._stretches[number]
        if stretch.grad != grad:
            raise Unlike(f"{stretch.fqn} changes whether gradients are recorded")
        stretch.end, stretch.results = len(self._draft.calls), tuple(results)
        stretch.made = range(stretch.first_value, len(self._draft.values))

    def again(self, number: int, arguments: Iterable[int], place: Place, grad: bool) -> tuple[int, ...]:
        """Emit the calls of block call `number`, which repeats one that was traced; the values of its results."""
        repeats = self._calls[number].repeats
        here = _Stretch(self._calls[number].fqn, place, grad, tuple(arguments), len(self._draft.calls), len(self._draft.values))
        fitting = [s for s in (self._stretches[n] for n in repeats) if self._circumstances(s) == self._circumstances(here)]
        if not fitting:
            raise Unlike(f"{here.fqn} is called with gradients for other arguments, or elsewhere, than the calls it repeats")
        template = fitting[0]
        if not template.repeated:
            for other in fitting[1:]:
                self._compare(template, other)
        renamed = self._renamed(template, here)
        for call in self._draft.calls[template.start : template.end]:
            outputs = tuple(range(len(self._draft.values), len(self._draft.values) + len(call.outputs)))
            self._draft.values += [replace(self._draft.values[output]) for output in call.outputs]
            copied = self._copied(call, template, here, renamed)
            copied.outputs = outputs
            self._draft.calls.append(copied)
            renamed.update(zip(call.outputs, outputs, strict=True))
        template.repeated = True
        return tuple(_looked_up(renamed, value, template) for value in template.results)

    def check_reads(self, leaving: Iterable[int]) -> None:
        """Raises Unlike where a value inside a repeated block, and no result of it, is read outside or is `leaving`."""
        hidden: dict[int, _Stretch] = {}
        for stretch in self._stretches.values():
            if stretch.repeated:
                hidden.update(dict.fromkeys(set(stretch.made) - set(stretch.results), stretch))
        for value in leaving:
            if value in hidden:
                raise Unlike(f"{hidden[value].fqn} hands out a value that is no result")
        for position, call in enumerate(self._draft.calls):
            for value in call.reads:
                if value in hidden and not hidden[value].start <= position < hidden[value].end:
                    raise Unlike(f"a value inside {hidden[value].fqn} is read outside")

    def _circumstances(self, stretch: _Stretch) -> tuple[object, ...]:
        """What of a call's surroundings shows in the calls inside: lines of the caller, and where gradients flow."""
        values = self._draft.values
        return stretch.grad, stretch.place.source, tuple((values[a].needs_grad, values[a].would_need_grad) for a in stretch.arguments)

    def _renamed(self, template: _Stretch, here: _Stretch) -> dict[int, int]:
        """What stands in the block `here` for what the template reads: arguments, own parameters and buffers."""
        theirs, ours = self._own[template.fqn], self._own[here.fqn]
        if theirs.keys() != ours.keys() or len(template.arguments) != len(here.arguments):
            raise Unlike(f"{here.fqn} has other parameters or arguments than {template.fqn}")
        renamed: dict[int, int] = {}
        pairs = [*zip(template.arguments, here.arguments, strict=True), *((theirs[name], ours[name]) for name in theirs)]
        for value, stands_for_it in pairs:
            if renamed.setdefault(value, stands_for_it) != stands_for_it or self._kind(value) != self._kind(stands_for_it):
                raise Unlike(f"{here.fqn} shares tensors otherwise than {template.fqn}")
        return renamed

    def _copied(self, call: Call, template: _Stretch, here: _Stretch, renamed: Mapping[int, int]) -> Call:
        args, kwargs = map_refs((call.args, call.kwargs), lambda ref: Ref(_looked_up(renamed, ref.value, template)))
        module = call.place.module
        if not f"{module}.".startswith(f"{template.fqn}."):
            raise Unlike(f"{template.fqn} calls {module or 'the root module'}, which lies outside")
        moved = here.fqn + module[len(template.fqn) :]
        source = moved if call.place.source == module else call.place.source
        return Call(call.target, args, kwargs, Place(moved, source), ())

    def _compare(self, template: _Stretch, other: _Stretch) -> None:
        """Raises Unlike unless `other`, which was traced as well, is the template's copy."""
        renamed = self._renamed(template, other)
        ours, theirs = (self._draft.calls[s.start : s.end] for s in (template, other))
        if len(ours) != len(theirs):
            raise Unlike(f"{other.fqn} has other ops than {template.fqn}")
        for mine, found in zip(ours, theirs, strict=True):
            copied = self._copied(mine, template, other, renamed)
            same_call = (copied.target, copied.args, copied.kwargs, copied.place) == (found.target, found.args, found.kwargs, found.place)
            if not same_call or list(map(self._kind, mine.outputs)) != list(map(self._kind, found.outputs)):
                raise Unlike(f"{other.fqn} has other ops than {template.fqn}")
            renamed.update(zip(mine.outputs, found.outputs, strict=True))
        if tuple(_looked_up(renamed, value, template) for value in template.results) != other.results:
            raise Unlike(f"{other.fqn} has other results than {template.fqn}")

    def _kind(self, number: int) -> tuple[object, ...]:
        value: DraftValue = self._draft.values[number]
        return value.example.shape, value.example.dtype, value.needs_grad, value.would_need_grad


def _looked_up(renamed: Mapping[int, int], value: int, template: _Stretch) -> int:
    if value not in renamed:
        raise Unlike(f"{template.fqn} reads a value that is neither an argument nor its own")
    return renamed[value]


def _prefixes(fqn: str) -> list[str]:
    parts = fqn.split(".")
    return [".".join(parts[:i]) for i in range(1, len(parts))]
