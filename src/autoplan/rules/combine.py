"""From rows on one axis to strategies on a mesh: the product of rows over the axes, in mesh order.

Running the op on what the first axis leaves is again a call of the same op, so each further axis asks the rule about the
sizes the earlier ones have left. A rule thereby never sees more than one axis.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import product

from autoplan.errors import TargetError
from autoplan.placement import Mesh, Partial, R, Shard
from autoplan.rules.registry import Rule, is_random, rule_of
from autoplan.rules.row import AxisStates, Call, Row, Strategy, axis_states, join_axes


def strategies_of(call: Call, mesh: Mesh) -> tuple[Strategy, ...]:
    """Every strategy of a call on `mesh`, without repetitions; the all-replicated one is first."""
    found: dict[tuple[object, ...], Strategy] = {}
    for choices, part in _Products(call, mesh.shape).of(call, 0):
        rows = tuple(choice.row for choice in choices)
        if len({row.local for row in rows if row.local}) > 1:
            continue  # two local implementations of one op cannot both run it
        for axes in product(*(choice.forms for choice in choices)):
            strategy = join_axes(rows, axes, part)
            found.setdefault((strategy.needs, strategy.makes, strategy.local), strategy)
    return tuple(found.values())


def rows_of(call: Call) -> tuple[Row, ...]:
    """The rows of a call on an axis of `call.axis_size` ranks: the all-R row, then the rule's that divide.

    A rule whose op needs a local implementation even where nothing is split (a random op must draw the same numbers on
    every rank) gives the all-R row itself.
    """
    rule = rule_of(call.op)
    given = _rows_given(rule, call) if rule is not None else ()
    replicated = next((row for row in given if row.is_replicated), replicated_row(call))
    if call.axis_size == 1:
        return (replicated,)
    rows = dict.fromkeys(row for row in given if not row.is_replicated and _is_possible(call, row))
    # operands that only lend their shape do so under every row
    unread = [bool(rows) and all(row.ins[k] is None for row in rows) for k in range(len(call.operands))]
    if any(unread):
        replicated = replace(replicated, ins=tuple(None if skip else p for p, skip in zip(replicated.ins, unread, strict=True)))
    return (replicated, *rows)


def _rows_given(rule: Rule, call: Call) -> tuple[Row, ...]:
    """What the rule says of a call; raises TargetError where a user's rule fails or does not fit its op."""
    try:
        rows = tuple(rule.rows(call))
        for row in rows:
            shape = (len(row.ins), len(row.outs))
            assert shape == (len(call.operands), len(call.outputs)), (
                f"{row} is no row for {len(call.operands)} -> {len(call.outputs)} tensors"
            )
    except Exception as error:
        if rule.is_own:
            raise
        what = f"the rule of {call.op} failed: {type(error).__name__}: {error}"
        raise TargetError(what, where=rule.source, next_step="a rule yields a Row for each way to split one axis") from error
    return rows


def replicated_row(call: Call) -> Row:
    """Everything on every rank; a random op that has no rule draws the same numbers on all of them."""
    local = "drawn" if rule_of(call.op) is None and is_random(call.op) else None
    return Row(tuple(R for _ in call.operands), tuple(R for _ in call.outputs), local=local)


def cut_call(call: Call, row: Row, axis_size: int) -> Call:
    """The call that one rank of the axis runs under `row`."""
    operands = tuple(spec if p is None else spec.cut(p, call.axis_size) for spec, p in zip(call.operands, row.ins, strict=True))
    outputs = tuple(spec.cut(p, call.axis_size) for spec, p in zip(call.outputs, row.outs, strict=True))
    return Call(call.op, call.args, call.kwargs, operands, outputs, axis_size, call.uncut)


def _is_possible(call: Call, row: Row) -> bool:
    """Whether every shard divides and only floats are partial sums."""
    placed = (*zip(call.operands, row.ins, strict=True), *zip(call.outputs, row.outs, strict=True))
    for spec, placement in placed:
        if isinstance(placement, Shard):
            if (
                placement.dim >= spec.ndim
                or spec.shape[placement.dim] % (placement.groups * call.axis_size)
                or not spec.shape[placement.dim]
            ):
                return False
        elif isinstance(placement, Partial) and not spec.is_float:
            return False
    return True


def on_axis(call: Call, axis_size: int) -> Call:
    """The call as an axis of that size sees it; `replace` would take most of the time that rules take."""
    return Call(call.op, call.args, call.kwargs, call.operands, call.outputs, axis_size, call.uncut)


@dataclass(frozen=True, slots=True)
class _Choice:
    """A row for one axis, and the states that follow from it in each of its forms.

    All-R rows come twice where a gradient flows: with whole and with partial gradients (the backward is linear).
    """

    row: Row
    forms: tuple[AxisStates, ...]


class _Products:
    """The rows for each axis that go together. What earlier axes leave of a call is often the same, and then asked once."""

    def __init__(self, call: Call, sizes: tuple[int, ...]) -> None:
        self._sizes = sizes
        self._operands, self._outputs = call.operands, call.outputs
        self._needs_grad = any(spec.needs_grad for spec in call.outputs)
        self._known: dict[tuple[object, ...], list[tuple[tuple[_Choice, ...], Call]]] = {}

    def of(self, call: Call, axis: int) -> list[tuple[tuple[_Choice, ...], Call]]:
        """A choice for each axis from `axis` on, with the call that is left to one rank."""
        if axis == len(self._sizes):
            return [((), call)]
        key = axis, *(spec.shape for spec in (*call.operands, *call.outputs))
        if key not in self._known:
            here = on_axis(call, self._sizes[axis])
            choices = [(self._choice(row, axis), cut_call(here, row, 1)) for row in rows_of(here)]
            self._known[key] = [((choice, *rest), part) for choice, left in choices for rest, part in self.of(left, axis + 1)]
        return self._known[key]

    def _choice(self, row: Row, axis: int) -> _Choice:
        flags = (False, True) if self._needs_grad and self._sizes[axis] > 1 and row.is_replicated else (False,)
        return _Choice(row, tuple(axis_states(row, flag, self._operands, self._outputs) for flag in flags))
