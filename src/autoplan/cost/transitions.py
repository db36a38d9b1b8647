"""What every redistribution costs, by table: all pairs of placements are lowered at once, as arrays.

`redistribution.lower` decides the steps of one pair; a mesh of three axes has half a million pairs in one model. Here the same
decisions are taken for all of them together (tests/cost/test_transitions.py compares the two). Steps that cost the same are one *kind of
step*, a sequence of them is a *way*: pricing a value is pricing some hundred steps and some thousand ways, and looking these up.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from autoplan.cost.communication import step_seconds
from autoplan.cost.hardware import Hardware
from autoplan.placement import Mesh, P, Partial, Placement, Placements, R, Replicate, Shard
from autoplan.redistribution import LOCAL_KINDS, Kind, Step

Array = np.ndarray
MOST_STEPS = 8  # of one redistribution; asserted
KINDS: tuple[Kind, ...] = ("slice", "reduce-scatter", "all-to-all", "pad", "all-reduce", "all-gather", "keep")  # those that shrink first
SLICE, REDUCE_SCATTER, ALL_TO_ALL, PAD, ALL_REDUCE, ALL_GATHER, KEEP = range(len(KINDS))
INWARD = (ALL_GATHER, PAD)  # the innermost axis first, all others outermost first
MERGING = (ALL_REDUCE, ALL_GATHER, REDUCE_SCATTER)
_NOTHING = 99  # the priority of a move that cannot be made


class TransitionTable:
    """Seconds and collectives of redistributions on one mesh; pairs are announced by `announce`, then `seconds` may be asked."""

    def __init__(self, mesh: Mesh, hardware: Hardware) -> None:
        self.mesh = mesh
        self.hardware = hardware
        self._numbers: dict[Placements, int] = {}
        self._announced: list[tuple[Array, Array]] = []
        self._table: Array | None = None
        self._steps = _StepKinds(mesh)
        self._prices: dict[float, Array] = {}

    def announce(self, sources: Iterable[Placements], targets: Iterable[Placements]) -> None:
        """Every pair of these will be asked for."""
        self._announced.append((self._number(sources), self._number(targets)))
        self._table = None

    def seconds(self, nbytes: float, sources: Sequence[Placements], targets: Sequence[Placements]) -> Array:
        """[source, target]: seconds to redistribute a tensor of `nbytes` (global)."""
        ways = self._ways_between(sources, targets)
        total: Array = self._prices_of(nbytes)[ways]
        return total

    def collectives(self, sources: Sequence[Placements], targets: Sequence[Placements]) -> Array:
        """[source, target]: how many collectives a redistribution takes."""
        ways = self._ways_between(sources, targets)
        count: Array = self._collectives[ways]
        return count

    def _number(self, placements: Iterable[Placements]) -> Array:
        return np.array([self._numbers.setdefault(p, len(self._numbers)) for p in placements], dtype=np.int64)

    def _ways_between(self, sources: Sequence[Placements], targets: Sequence[Placements]) -> Array:
        """[source, target]: the number of the way that the redistribution takes."""
        if self._table is None:
            self._fill()
        assert self._table is not None
        ways = self._table[self._number(sources)[:, None], self._number(targets)[None, :]]
        assert (ways >= 0).all(), "a pair that was not announced"
        return ways

    def _fill(self) -> None:
        wanted = np.zeros((len(self._numbers), len(self._numbers)), dtype=bool)
        for sources, targets in self._announced:
            wanted[sources[:, None], targets[None, :]] = True
        sources, targets = np.nonzero(wanted)
        steps = _lower_all(list(self._numbers), sources, targets, self._steps)
        examples, ways = _distinct_rows(steps, len(self._steps.known))
        self._ways = steps[examples]
        self._collectives = self._steps.are_collectives()[self._ways].sum(-1)
        self._table = np.full(wanted.shape, -1, dtype=np.int64)
        self._table[sources, targets] = ways.ravel()
        self._prices = {}

    def _prices_of(self, nbytes: float) -> Array:
        """Seconds by way."""
        if nbytes not in self._prices:
            priced = [0.0, *(step_seconds(step, nbytes, self.mesh, self.hardware) for step in self._steps.known[1:])]
            self._prices[nbytes] = np.array(priced)[self._ways].sum(-1)
        return self._prices[nbytes]


def _distinct_rows(rows: Array, below: int) -> tuple[Array, Array]:
    """Where each distinct row occurs first, and by row which of these it is; the numbers are less than `below`.

    Several numbers are packed into one, since comparing rows takes ten times as long.
    """
    at_a_time = max(1, 63 // below.bit_length())
    while rows.shape[1] > 1:
        groups = [rows[:, i : i + at_a_time] for i in range(0, rows.shape[1], at_a_time)]
        packed = [(group << below.bit_length() * np.arange(group.shape[1])).sum(1) for group in groups]
        numbered = [np.unique(column, return_inverse=True)[1].ravel() for column in packed]
        rows, below = np.stack(numbered, axis=1), max(int(column.max(initial=0)) + 1 for column in numbered)
        at_a_time = max(2, 63 // below.bit_length())
    _, examples, distinct = np.unique(rows[:, 0], return_index=True, return_inverse=True)
    return examples, distinct.ravel()


class _StepKinds:
    """The kinds of steps met so far, each by an example; number 0 is no step at all."""

    def __init__(self, mesh: Mesh) -> None:
        self.mesh = mesh
        self.known: list[Step] = [Step("slice", (), R, R, 1)]
        self._numbers: dict[int, int] = {0: 0}

    def are_collectives(self) -> Array:
        return np.array([False, *(step.kind not in LOCAL_KINDS for step in self.known[1:])])

    def number(self, kind: Array, axes: Array, src: Array, dst: Array, divisor: Array) -> Array:
        """The number of each step; `src` and `dst` are classes of placements (see `_cost_class`), `axes` bits."""
        packed = (((kind + 1) << 40) | (axes << 32) | (src << 28) | (dst << 24)) + divisor
        unique, inverse = np.unique(packed, return_inverse=True)
        return np.array([self._number(int(key)) for key in unique], dtype=np.int64)[inverse.ravel()]

    def _number(self, packed: int) -> int:
        if packed not in self._numbers:
            axes = tuple(axis for axis in range(self.mesh.ndim) if packed >> (32 + axis) & 1)
            src, dst = (_EXAMPLES[packed >> shift & 15] for shift in (28, 24))
            self._numbers[packed] = len(self.known)
            self.known.append(Step(KINDS[(packed >> 40) - 1], axes, src, dst, packed & 0xFFFFFF))
        return self._numbers[packed]


# Placements that cost the same: what counts is whether a cut is of the first dim, and whether it is grouped.
_EXAMPLES: tuple[Placement, ...] = (R, P, Shard(0), Shard(1), Shard(0, 2), Shard(1, 2))


def _cost_class(placement: Placement) -> int:
    match placement:
        case Replicate():
            return 0
        case Partial():
            return 1
        case Shard(dim, groups):
            return 2 + (dim > 0) + 2 * (groups > 1)


@dataclass
class _Open:
    """Per pair the step that is not written down yet, because the next one may join it."""

    kind: Array
    axes: Array
    src: Array
    dst: Array
    divisor: Array
    written: Array = field(init=False)  # how many steps of each pair are written

    def __post_init__(self) -> None:
        self.written = np.zeros(len(self.kind), dtype=np.int64)


def _lower_all(placements: Sequence[Placements], sources: Array, targets: Array, kinds: _StepKinds) -> Array:
    """[pair, step]: the steps from `placements[sources[i]]` to `placements[targets[i]]`, as `redistribution.lower` finds them."""
    mesh = kinds.mesh
    alphabet = list(dict.fromkeys((R, P, *(p for state in placements for p in state))))
    letter = {p: code for code, p in enumerate(alphabet)}
    letters = _Letters(alphabet)
    codes = np.array([[letter[p] for p in state] for state in placements], dtype=np.int64).reshape(len(placements), mesh.ndim)
    current, wanted = codes[sources], codes[targets]
    result = np.zeros((len(sources), MOST_STEPS), dtype=np.int64)
    nothing = np.full(len(sources), -1)
    pending = _Open(nothing.copy(), nothing.copy(), nothing.copy(), nothing.copy(), nothing.copy())
    active = np.flatnonzero((current != wanted).any(1))
    while len(active):
        axis, target = _next_moves(current[active], wanted[active], letters)
        before = current[active, axis]
        kind, _ = letters.first_move(before, target)
        held = letters.is_shard[current[active]]
        sizes = np.where(held, np.array(mesh.shape)[None, :], 1)
        divisor = np.where(kind == ALL_TO_ALL, sizes.prod(1), sizes.prod(1) // sizes[np.arange(len(active)), axis])
        _write(pending, active, kind, 1 << axis, before, target, divisor, result, kinds, letters)
        current[active, axis] = target
        active = active[(current[active] != wanted[active]).any(1)]
    _flush(pending, np.flatnonzero(pending.kind >= 0), result, kinds, letters)
    return result[:, : max(1, int(pending.written.max(initial=0)))]


class _Letters:
    """The placements that occur on any axis, by code; R is 0, P is 1."""

    def __init__(self, alphabet: Sequence[Placement]) -> None:
        self.is_shard = np.array([isinstance(p, Shard) for p in alphabet])
        self.dim = np.array([p.dim if isinstance(p, Shard) else -1 for p in alphabet])
        self.cost_class = np.array([_cost_class(p) for p in alphabet])

    def first_move(self, src: Array, dst: Array) -> tuple[Array, Array]:
        """The kind of step that leaves `src` for `dst`, and where it leads."""
        from_shard, to_shard = self.is_shard[src], self.is_shard[dst]
        crosses = from_shard & to_shard & (self.dim[src] != self.dim[dst])
        kind = np.select(
            [crosses, from_shard & (dst == 1), from_shard, (src == 1) & to_shard, src == 1, to_shard],
            [ALL_TO_ALL, PAD, ALL_GATHER, REDUCE_SCATTER, ALL_REDUCE, SLICE],
            KEEP,
        )
        return kind, np.where(kind == ALL_GATHER, 0, dst)


def _next_moves(current: Array, wanted: Array, letters: _Letters) -> tuple[Array, Array]:
    """The axis that changes next and its new placement, per pair."""
    ndim = current.shape[1]
    priority = np.full(current.shape, _NOTHING)
    targets = np.zeros_like(current)
    open_axes = current != wanted
    for axis in range(ndim):
        kind, target = letters.first_move(current[:, axis], wanted[:, axis])
        tie = np.where(np.isin(kind, INWARD), ndim - 1 - axis, axis)
        can = open_axes[:, axis] & _applies(axis, target, current, wanted, open_axes, letters)
        priority[:, axis] = np.where(can, kind * ndim + tie, _NOTHING)
        targets[:, axis] = target
    chosen = priority.argmin(1)
    rows = np.arange(len(current))
    target = targets[rows, chosen]
    stuck = priority[rows, chosen] == _NOTHING
    if stuck.any():
        chosen[stuck] = _blockers(current[stuck], wanted[stuck], open_axes[stuck], letters)
        target[stuck] = 0
    return chosen, target


def _applies(axis: int, target: Array, current: Array, wanted: Array, open_axes: Array, letters: _Letters) -> Array:
    """Whether nesting allows `axis` to leave its present dim and to cut that of `target`."""
    leaves, cuts = letters.dim[current[:, axis]], letters.dim[target]
    possible = np.ones(len(current), dtype=bool)
    for later in range(axis + 1, current.shape[1]):
        held = letters.dim[current[:, later]]
        possible &= (held < 0) | ((held != leaves) & (held != cuts))
    for earlier in range(axis):
        meets = (letters.dim[current[:, earlier]] == cuts) | (letters.dim[wanted[:, earlier]] == cuts)
        possible &= ~(open_axes[:, earlier] & (cuts >= 0) & meets)
    return possible


def _blockers(current: Array, wanted: Array, open_axes: Array, letters: _Letters) -> Array:
    """The last axis that cuts a dim which an earlier axis has to leave or to cut."""
    found = np.full(len(current), -1)
    for axis in reversed(range(current.shape[1])):
        held = letters.dim[current[:, axis]]
        for earlier in range(axis):
            meets = (letters.dim[current[:, earlier]] == held) | (letters.dim[wanted[:, earlier]] == held)
            found = np.where((found < 0) & (held >= 0) & open_axes[:, earlier] & meets, axis, found)
    assert (found >= 0).all()
    return found


def _write(
    pending: _Open,
    pairs: Array,
    kind: Array,
    axes: Array,
    src: Array,
    dst: Array,
    divisor: Array,
    result: Array,
    kinds: _StepKinds,
    letters: _Letters,
) -> None:
    """A step of each pair: it joins the one before it over another axis, or that one is written down and it waits in its place."""
    joins = (pending.kind[pairs] == kind) & np.isin(kind, MERGING) & (pending.src[pairs] == src) & (pending.dst[pairs] == dst)
    _flush(pending, pairs[~joins & (pending.kind[pairs] >= 0)], result, kinds, letters)
    pending.axes[pairs] = np.where(joins, pending.axes[pairs] | axes, axes)
    pending.divisor[pairs] = np.where(joins, np.minimum(pending.divisor[pairs], divisor), divisor)
    pending.kind[pairs], pending.src[pairs], pending.dst[pairs] = kind, src, dst


def _flush(pending: _Open, pairs: Array, result: Array, kinds: _StepKinds, letters: _Letters) -> None:
    if not len(pairs):
        return
    numbers = kinds.number(
        pending.kind[pairs],
        pending.axes[pairs],
        letters.cost_class[pending.src[pairs]],
        letters.cost_class[pending.dst[pairs]],
        pending.divisor[pairs],
    )
    assert pending.written[pairs].max() < MOST_STEPS
    result[pairs, pending.written[pairs]] = numbers
    pending.written[pairs] += 1
