"""One run of a local program: what its parts are handed beside tensors."""

from __future__ import annotations

from dataclasses import dataclass, field

from autoplan.collectives import Collectives
from autoplan.runtime.program.regather import Regathering
from autoplan.runtime.program.rounds import Rounds, Tensors

_SEED_STRIDE = 1_000_003  # nodes of one step and the same node of other steps draw different numbers


@dataclass
class Local:
    """What the ops of one piece of the program are handed: the group that carries collectives, and seeds.

    `seeded` tells that the default generator has been seeded for the whole piece.
    """

    group: Collectives
    seed: int
    seeded: bool = False

    def node_seed(self, node: int) -> int:
        """The seed of one random op in this step; nodes count from the first of the piece."""
        return self.seed + node


class Reductions:
    """Gradients that are reduced while backward goes on: at most one group is under way, so that one buffer more is held."""

    def __init__(self) -> None:
        self._flying: Rounds | None = None
        self._by_name: dict[str, Rounds] = {}

    def add(self, name: str, reduction: Rounds) -> None:
        """One more under way; the one before is waited for."""
        if self._flying is not None:
            self._flying.finish()
        self._flying = self._by_name[name] = reduction

    def take(self, name: str) -> Tensors:
        """The reduced gradients of a group's members; nothing of them stays here."""
        reduction = self._by_name.pop(name)
        if self._flying is reduction:
            self._flying = None
        return reduction.finish()


@dataclass
class Run:
    """The group that carries collectives, the seed of the step (equal on all ranks), and what is under way.

    `regathering` is what backward gathers again, `ahead` the gathers that were issued before their readers, by group.
    """

    group: Collectives
    seed: int = 0
    regathering: Regathering | None = None
    ahead: dict[str, Rounds] = field(default_factory=dict)
    reductions: Reductions = field(default_factory=Reductions)

    def local(self, first: int) -> Local:
        """What the piece that begins with the node `first` is handed."""
        return Local(self.group, (self.seed * _SEED_STRIDE + first) % (1 << 62))
