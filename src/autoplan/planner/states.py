"""The states of values by number: strategies have some hundred of them, each many times over, and numbers compare at once."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass

from autoplan.cost.transitions import TransitionTable
from autoplan.placement import Placements, forward_of, gradient_of
from autoplan.planner.problem import Vector

UNREAD = -1
"""Stands for the state of an operand whose values are not read."""


class StateNumbers:
    """The numbers of states, and of each state its placements and those of its gradient as a table of redistributions numbers them."""

    def __init__(self, table: TransitionTable) -> None:
        self.placements: list[int] = []
        self.gradients: list[int] = []
        self._table = table
        self._numbers: dict[Placements, int] = {}
        self._lists: dict[Hashable, list[int]] = {}

    def of(self, key: Hashable, states: Iterable[Placements | None]) -> list[int]:
        """The numbers of `states`, which are the same whenever `key` is."""
        if key not in self._lists:
            self._lists[key] = [UNREAD if state is None else self._number(state) for state in states]
        return self._lists[key]

    def _number(self, state: Placements) -> int:
        number = self._numbers.setdefault(state, len(self._numbers))
        if number == len(self.placements):
            self.placements.append(self._table.number(forward_of(state)))
            self.gradients.append(self._table.number(gradient_of(state)))
        return number


@dataclass(frozen=True, slots=True)
class States:
    """The states of a value: those that strategies make, those that readers need, and the placements of both, by number."""

    produced: Vector
    needed: Vector
    homes: Vector  # the placements of the produced states
    placements: Vector  # of the needed states, each once
    gradients: tuple[Vector, Vector]  # the placements of gradients: of the needed states, and of the produced ones
    made: Vector  # by the producer's strategy, which of the produced states
    needs: tuple[tuple[int | None, ...], ...]  # by reader and its strategy, which of the needed states
    forward_class: Vector  # by needed state, which of the placements

    @classmethod
    def of(cls, numbers: StateNumbers, made: Sequence[int], needs: Sequence[Sequence[int]]) -> States:
        """What the strategies of the producer make and those of each reader need."""
        produced = {state: p for p, state in enumerate(dict.fromkeys(made))}
        needed = {state: q for q, state in enumerate(dict.fromkeys(state for states in needs for state in states if state != UNREAD))}
        placed = [numbers.placements[state] for state in needed]
        classes = {placements: f for f, placements in enumerate(dict.fromkeys(placed))}
        return cls(
            tuple(produced),
            tuple(needed),
            tuple([numbers.placements[state] for state in produced]),
            tuple(classes),
            (tuple([numbers.gradients[state] for state in needed]), tuple([numbers.gradients[state] for state in produced])),
            tuple([produced[state] for state in made]),
            tuple(tuple(map(needed.get, states)) for states in needs),
            tuple([classes[placements] for placements in placed]),
        )
