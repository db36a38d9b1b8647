"""Who pays for the start of a collective that parameters of a block are in together.

A start costs once, whoever is in it: no sum over parameters. Each pays for a part of it, whether others are in it or not, and the parts
of all add up to no more than the whole: then what the problem minimises is never more than a choice truly costs. Fitted to a choice,
those that are in a collective by it pay for all, and it costs what it truly does. Other choices may still get a start for less; such a
collective is decided beforehand, either way: *open*, it is paid for and free to everyone, or *closed*, and nobody is in it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from autoplan.cost.buckets import start_seconds
from autoplan.planner.prices import paid_part
from autoplan.planner.problem import FORBIDDEN
from autoplan.planner.terms import Collective, Terms, ValueTerms
from autoplan.planner.travel import Paid, Travel

Together = tuple[str, str]
"""Block and dtype of parameters that may be in the same collectives."""


def fitted(terms: Terms, choice: Sequence[int]) -> Terms:
    """The same where the starts of collectives are paid for by those that are in them by a choice, which then costs what it truly does."""
    assert not terms.prefetch and not terms.host and not terms.opened
    parts = {number: dict(value.travel.parts) for number, value in enumerate(terms.values) if value.travel is not None}
    for collective, numbers in _users(terms, choice).items():
        users = [_bytes(terms, number) for number in numbers]
        for number in _together(terms)[collective.block, collective.dtype]:
            parts[number][collective.paid] = paid_part(_bytes(terms, number), users) if number in numbers else 0.0
        way, start = collective.paid
        if way == "forward" and not any(_travel(terms, number).prices.gathers_again for number in numbers):
            for number in numbers:
                parts[number]["recomputed", start] = 1 / len(numbers)
    return _charged(terms, parts)


def undercharged(terms: Terms, choice: Sequence[int]) -> Collective | None:
    """The collective of whose start a choice pays least, None where it pays for all."""
    missing_s = {
        collective: (1 - sum(_travel(terms, number).part(collective.paid) for number in numbers)) * _start_s(terms, collective)
        for collective, numbers in _users(terms, choice).items()
        if collective not in terms.opened
    }
    most = max(missing_s, key=lambda collective: missing_s[collective], default=None)
    return most if most is not None and missing_s[most] > terms.unit_s else None


def _start_s(terms: Terms, collective: Collective) -> float:
    """Seconds of the device and of the host, in all copies of the block."""
    prices, (_, start) = terms.prices, collective.paid
    device_s = start_seconds(start.kind, start.axes, prices.mesh, prices.hardware)
    return collective.copies * (device_s + prices.hardware.host.redistribution_s)


def opened(terms: Terms, collective: Collective) -> Terms:
    """The same where its start is paid for, whoever is in it."""
    numbers = _together(terms)[collective.block, collective.dtype]
    free = {number: {**_travel(terms, number).parts, collective.paid: 0.0} for number in numbers}
    return replace(_charged(terms, free), opened=(*terms.opened, collective))


def closed(terms: Terms, collective: Collective) -> Terms:
    """The same where nobody is in it."""
    values = list(terms.values)
    for number in _together(terms)[collective.block, collective.dtype]:
        values[number] = _without(values[number], collective.paid)
    return replace(terms, values=tuple(values))


def _without(value: ValueTerms, paid: Paid) -> ValueTerms:
    assert value.travel is not None
    forward, backward = value.travel.uses(paid)
    return replace(
        value,
        forward=value.forward if forward is None else np.where(forward, FORBIDDEN, value.forward),
        backward=value.backward if backward is None else np.where(backward, FORBIDDEN, value.backward),
    )


def _users(terms: Terms, choice: Sequence[int]) -> dict[Collective, list[int]]:
    """By collective, the numbers of the values that are in it by a choice."""
    found: dict[Collective, list[int]] = {}
    for (block, dtype), numbers in _together(terms).items():
        for number in numbers:
            value = terms.values[number]
            for paid in value.starts(choice):
                found.setdefault(Collective(block, dtype, paid, len(value.members)), []).append(number)
    return found


def _together(terms: Terms) -> dict[Together, list[int]]:
    found: dict[Together, list[int]] = {}
    for number, value in enumerate(terms.values):
        if value.travel is not None:
            assert value.block is not None
            found.setdefault((value.block, value.travel.prices.value.dtype), []).append(number)
    return found


def _travel(terms: Terms, number: int) -> Travel:
    travel = terms.values[number].travel
    assert travel is not None
    return travel


def _bytes(terms: Terms, number: int) -> int:
    return _travel(terms, number).prices.value.bytes


def _charged(terms: Terms, parts: Mapping[int, Mapping[Paid, float]]) -> Terms:
    values = list(terms.values)
    for number, own in parts.items():
        values[number] = values[number].charged(own, terms.unit_s)
    return replace(terms, values=tuple(values))
