"""What every redistribution costs, by table: all pairs of placements are lowered at once, as arrays.

`redistribution.lower` decides the steps of one pair; a mesh of three axes has half a million pairs in one model. Here the same
decisions are taken for all of them together (tests/cost/test_transitions.py compares the two). Steps that cost the same are one *kind of
step*, a sequence of them is a *way*: pricing a value is pricing some hundred steps and some thousand ways, and looking these up.
Pairs that differ in the names of dims alone take the same way and are lowered once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from autoplan.assignment.gathers import BUCKETED
from autoplan.cost.buckets import carried_seconds
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


@dataclass(frozen=True, slots=True, eq=False)
class Moves:
    """The redistributions from each of some placements to each of others, by their numbers in a table."""

    sources: Array
    targets: Array


@dataclass(frozen=True, slots=True)
class Start:
    """A collective that parameters of a block may be in together: in the round of their steps, of that kind, over these axes."""

    depth: int
    kind: Kind
    axes: tuple[int, ...]


class TransitionTable:
    """Seconds and collectives of redistributions on one mesh; these are announced first, all of them, and then asked."""

    def __init__(self, mesh: Mesh, hardware: Hardware) -> None:
        self.mesh = mesh
        self.hardware = hardware
        self._placements: list[Placements] = []
        self._numbers: dict[Placements, int] = {}
        self._announced: list[Moves] = []
        self._table: Array | None = None
        self._steps = _StepKinds(mesh)
        self._prices: dict[tuple[float, float | None], Array] = {}

    def number(self, placements: Placements) -> int:
        """The number by which these placements are announced."""
        number = self._numbers.setdefault(placements, len(self._placements))
        if number == len(self._placements):
            self._placements.append(placements)
        return number

    def placements(self, numbers: Iterable[int]) -> list[Placements]:
        """The placements that have these numbers."""
        return [self._placements[number] for number in numbers]

    def announce(self, sources: Sequence[int], targets: Sequence[int]) -> Moves:
        """The redistributions from each of the sources to each of the targets, by number, which will be asked for."""
        moves = Moves(np.array(sources, dtype=np.int64), np.array(targets, dtype=np.int64))
        self._announced.append(moves)
        self._table = None
        return moves

    def seconds(self, nbytes: float, moves: Moves) -> Array:
        """[source, target]: seconds to redistribute a tensor of `nbytes` (global)."""
        ways = self._ways_of(moves)
        total: Array = self._prices_of(nbytes)[ways]
        return total

    def carried_seconds(self, nbytes: float, block_bytes: float, moves: Moves) -> Array:
        """[source, target]: seconds to redistribute a parameter of `nbytes` with the others of its block, but for starts of collectives."""
        ways = self._ways_of(moves)
        total: Array = self._prices_of(nbytes, block_bytes)[ways]
        return total

    def starts(self, moves: Moves, amount: Callable[[Start], float]) -> Array:
        """[source, target]: the sum of what is said of each start of a collective with others."""
        ways = self._ways_of(moves)
        amounts = np.zeros((self._ways.shape[1], len(self._steps.known)))
        for depth, number in {(depth, int(number)) for depth, column in enumerate(self._ways.T) for number in np.unique(column)}:
            step = self._steps.known[number]
            if number and step.kind in BUCKETED:
                amounts[depth, number] = amount(Start(depth, step.kind, step.axes))
        by_way = sum(of_depth[column] for of_depth, column in zip(amounts, self._ways.T, strict=True))
        total: Array = by_way[ways]
        return total

    def starts_of(self, source: int, target: int) -> tuple[Start, ...]:
        """The starts of collectives with others on the way from one to the other, which was announced."""
        numbers = self._ways[self._ways_of(Moves(np.array([source]), np.array([target])))[0, 0]]
        steps = [(depth, self._steps.known[number]) for depth, number in enumerate(numbers) if number]
        return tuple(Start(depth, step.kind, step.axes) for depth, step in steps if step.kind in BUCKETED)

    def collectives(self, moves: Moves) -> Array:
        """[source, target]: how many collectives a redistribution takes."""
        ways = self._ways_of(moves)
        count: Array = self._collectives[ways]
        return count

    def steps(self, moves: Moves) -> Array:
        """[source, target]: how many steps a redistribution takes, those in which ranks do not talk to each other too."""
        ways = self._ways_of(moves)
        count: Array = self._lengths[ways]
        return count

    def _ways_of(self, moves: Moves) -> Array:
        """[source, target]: the number of the way that the redistribution takes."""
        if self._table is None:
            self._fill()
        assert self._table is not None
        ways: Array = self._table[moves.sources[:, None], moves.targets[None, :]]
        return ways

    def _fill(self) -> None:
        wanted = np.zeros((len(self._placements), len(self._placements)), dtype=bool)
        for moves in self._announced:
            wanted[moves.sources[:, None], moves.targets[None, :]] = True
        sources, targets = np.nonzero(wanted)
        steps, alike = _lower_all(self._placements, sources, targets, self._steps)
        examples, ways = _distinct_rows(steps, len(self._steps.known))
        self._ways = steps[examples]
        self._collectives = self._steps.are_collectives()[self._ways].sum(-1)
        self._lengths = np.count_nonzero(self._ways, axis=-1)
        self._table = np.full(wanted.shape, -1, dtype=np.int32)
        self._table[sources, targets] = ways[alike]
        self._prices = {}

    def _prices_of(self, nbytes: float, block_bytes: float | None = None) -> Array:
        """Seconds by way; of a parameter in a block but for starts."""
        if (nbytes, block_bytes) not in self._prices:
            priced = [0.0, *(self._step_seconds(step, nbytes, block_bytes) for step in self._steps.known[1:])]
            self._prices[nbytes, block_bytes] = np.array(priced)[self._ways].sum(-1)
        return self._prices[nbytes, block_bytes]

    def _step_seconds(self, step: Step, nbytes: float, block_bytes: float | None) -> float:
        if block_bytes is None or step.kind not in BUCKETED:
            return step_seconds(step, nbytes, self.mesh, self.hardware)
        return carried_seconds(step, nbytes, block_bytes, self.mesh, self.hardware)


def _distinct_rows(rows: Array, below: int) -> tuple[Array, Array]:
    """Where each distinct row occurs first, and by row which of these it is; the numbers are less than `below`.

    Several numbers are packed into one, since comparing rows takes ten times as long.
    """
    while rows.shape[1] > 1:
        bits = max(1, (below - 1).bit_length())
        at_a_time = max(2, 63 // bits)
        packed = [_packed(rows[:, i : i + at_a_time], bits) for i in range(0, rows.shape[1], at_a_time)]
        if len(packed) > 1:
            packed = [np.unique(column, return_inverse=True)[1].ravel() for column in packed]
        rows, below = np.stack(packed, axis=1), max(int(column.max(initial=0)) + 1 for column in packed)
    _, examples, distinct = np.unique(rows[:, 0], return_index=True, return_inverse=True)
    return examples, distinct.ravel()


def _packed(rows: Array, bits: int) -> Array:
    """The numbers of each row in one, each in so many bits."""
    packed = np.zeros(len(rows), dtype=np.int64)
    for position in range(rows.shape[1]):
        packed |= rows[:, position].astype(np.int64) << (bits * position)
    return packed


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


def _lower_all(placements: Sequence[Placements], sources: Array, targets: Array, kinds: _StepKinds) -> tuple[Array, Array]:
    """The steps from `placements[sources[i]]` to `placements[targets[i]]`, as `redistribution.lower` finds them.

    They are row `rows[i]` of `steps[row, step]`, where `steps, rows` comes back.
    """
    alphabet = list(dict.fromkeys((R, P, *(p for state in placements for p in state))))
    letter = {p: code for code, p in enumerate(alphabet)}
    letters = _Letters(alphabet)
    codes = np.array([[letter[p] for p in state] for state in placements], dtype=np.int64).reshape(len(placements), kinds.mesh.ndim)
    examples, rows = _alike(codes, sources, targets, letters)
    return _lower(codes[sources[examples]], codes[targets[examples]], kinds, letters), rows


def _alike(codes: Array, sources: Array, targets: Array, letters: _Letters) -> tuple[Array, Array]:
    """An example of each kind of pair, and the kind of every pair: those of one kind differ in the names of dims alone.

    What counts of a pair's placements is which of them are equal, which cut the same dim, and the class of their cost.
    """
    pair = [codes[places, axis] for places in (sources, targets) for axis in range(codes.shape[1])]
    columns = [letters.cost_class[column].astype(np.int8) for column in pair]
    for names in (pair, [letters.dim[column] for column in pair]):
        columns += [_first_equal(names[: position + 1]) for position in range(1, len(names))]
    return _distinct_rows(np.stack(columns, axis=1), max(len(pair), len(_EXAMPLES)))


def _first_equal(columns: Sequence[Array]) -> Array:
    """The first of the columns that equals the last, by row."""
    first = np.full(len(columns[-1]), len(columns) - 1, dtype=np.int8)
    for position in reversed(range(len(columns) - 1)):
        first[columns[position] == columns[-1]] = position
    return first


def _lower(current: Array, wanted: Array, kinds: _StepKinds, letters: _Letters) -> Array:
    """[pair, step]: the steps from `current` to `wanted`, both [pair, axis]; `current` is overwritten."""
    mesh = kinds.mesh
    result = np.zeros((len(current), MOST_STEPS), dtype=np.int64)
    nothing = np.full(len(current), -1)
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
