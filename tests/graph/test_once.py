"""What is found once about a value is kept with it, and with nothing else."""

from __future__ import annotations

import pickle
from dataclasses import dataclass, replace

from autoplan.graph.once import Remembering, once


@dataclass(frozen=True)
class Numbers(Remembering):
    numbers: tuple[int, ...]


ASKED: list[Numbers] = []


@once
def total(value: Numbers) -> int:
    ASKED.append(value)
    return sum(value.numbers)


@once
def largest(value: Numbers) -> int:
    return max(value.numbers)


def test_each_value_is_asked_once_and_by_each_function() -> None:
    ASKED.clear()
    some = Numbers((1, 2, 3))
    assert (total(some), total(some), largest(some)) == (6, 6, 3)
    assert total(Numbers((4,))) == total(replace(some, numbers=(4,))) == 4
    assert [value.numbers for value in ASKED] == [(1, 2, 3), (4,), (4,)]


def test_answers_stay_here_and_do_not_count() -> None:
    some, other = Numbers((1, 2, 3)), Numbers((1, 2, 3))
    assert len(pickle.dumps(some)) == len(pickle.dumps(other))
    total(some)
    assert some == other
    sent = pickle.loads(pickle.dumps(some))
    assert sent == some
    assert not sent.found
