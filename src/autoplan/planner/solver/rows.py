"""Rows of memory that another row makes superfluous: a choice that keeps the other's limit keeps theirs.

From one row to the next few spans begin or end. If what they change can never be more than the difference of the limits, the
row is kept whenever its neighbour is; the neighbours of those that are left are compared again, while many go.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from autoplan.planner.solver.model import Array, Model, Span, Usage

WORTHWHILE = 0.1  # of the rows: if fewer go, the rest is not compared again


def without_superfluous_rows(model: Model, *, limited: bool) -> tuple[Model, Array]:
    """The model with only the rows that count, and for each former row its number now: its own, a neighbour's that implies it, or -1.

    If not `limited`, rows that nothing can exceed count too.
    """
    owners = [*model.usage, *(edge.usage for edge in model.edges.values())]
    active = model.most_used() > model.limits if limited else np.ones(len(model.limits), dtype=bool)
    if not limited and not any(owners) or any(span.step > 1 for usage in owners for span in usage):
        return model, np.arange(len(model.limits))
    kept, stands_for = np.flatnonzero(active), np.full(len(model.limits), -1)
    if len(kept):
        stands_for[kept] = _Events(owners).representatives(kept, model.limits)
        kept = np.unique(stands_for[kept])
        stands_for[active] = np.searchsorted(kept, stands_for[active])
    bounds = np.searchsorted(kept, np.arange(len(model.limits) + 1))
    renamed = {span: Span(int(bounds[span.start]), int(bounds[span.stop])) for usage in owners for span in usage}
    edges = {pair: replace(edge, usage=_rename(edge.usage, renamed)) if edge.usage else edge for pair, edge in model.edges.items()}
    usage = [_rename(usage, renamed) for usage in model.usage]
    return replace(model, usage=usage, edges=edges, limits=model.limits[kept]), stands_for


def _rename(usage: Usage, names: dict[Span, Span]) -> dict[Span, Array]:
    renamed: dict[Span, Array] = {}
    for span, amounts in usage.items():
        name = names[span]
        if name.start < name.stop:
            renamed[name] = renamed[name] + amounts if name in renamed else amounts
    return renamed


class _Events:
    """Where what a strategy (or a pair) uses changes: at `row` that of `entry` by `amount`; `owner[entry]` is its node or edge."""

    def __init__(self, owners: Sequence[Usage]) -> None:
        rows, entries, amounts = [], [], []
        sizes: list[int] = []
        for usage in filter(None, owners):
            first = sizes[-1] if sizes else 0
            size = next(iter(usage.values())).size
            for span, used in usage.items():
                rows += [np.full(size, span.start), np.full(size, span.stop)]
                entries += [np.arange(first, first + size)] * 2
                amounts += [used.ravel(), -used.ravel()]
            sizes.append(first + size)
        self.row, self.entry, self.amount = map(np.concatenate, (rows, entries, amounts))
        self.owner = np.repeat(np.arange(len(sizes)), np.diff([0, *sizes]))

    def representatives(self, rows: Array, limits: Array) -> Array:
        """For each of `rows` one of them that implies it: itself where none does."""
        stands_for = kept = rows
        while len(kept) > 1:
            nearest = self._implied(kept, limits[kept])
            stands_for = kept[nearest][np.searchsorted(kept, stands_for)]
            before, kept = len(kept), np.unique(stands_for)
            if before - len(kept) <= WORTHWHILE * before:
                break
        return stands_for

    def _implied(self, kept: Array, limits: Array) -> Array:
        """Of the rows `kept`, by position: for each the position of one that implies it."""
        up, down = self._changes(kept)
        more = np.diff(limits, prepend=limits[0])
        by_previous, by_next = up <= more, down <= -more
        by_previous[0], by_next[0] = False, False
        equal = by_previous & by_next
        first = np.flatnonzero(~equal)  # of each run of rows that imply each other
        left, right = by_previous[first], np.append(by_next[first][1:], False)
        runs = np.arange(len(first))
        to = np.where(left, runs - 1, np.where(right, runs + 1, runs))
        while (to[to] != to).any():
            to = to[to]
        return np.asarray(first[to][np.cumsum(~equal) - 1])

    def _changes(self, kept: Array) -> tuple[Array, Array]:
        """The most by which what a choice uses can rise, and fall, from each row to the next."""
        position = np.searchsorted(kept, self.row)
        inner = (position > 0) & (position < len(kept))
        entries = len(self.owner)
        keys, inverse = np.unique(position[inner] * entries + self.entry[inner], return_inverse=True)
        net = np.zeros(len(keys), dtype=np.int64)
        np.add.at(net, inverse, self.amount[inner])
        at, entry = np.divmod(keys, entries)
        up, down = np.zeros(len(kept), dtype=np.int64), np.zeros(len(kept), dtype=np.int64)
        if len(keys):
            owner = self.owner[entry]
            starts = np.flatnonzero(np.append(True, (at[1:] != at[:-1]) | (owner[1:] != owner[:-1])))
            np.add.at(up, at[starts], np.maximum.reduceat(net, starts))
            np.add.at(down, at[starts], -np.minimum.reduceat(net, starts))
        return up, down
