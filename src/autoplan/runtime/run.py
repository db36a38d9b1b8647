"""One run of a local program: what its parts are handed beside tensors."""

from __future__ import annotations

from dataclasses import dataclass, field

from autoplan.collectives import Collectives
from autoplan.runtime.regather import Regathering

_SEED_STRIDE = 1_000_003  # nodes of one step and the same node of other steps draw different numbers


@dataclass
class Local:
    """What the ops of one piece of the program are handed: the group that carries collectives, and seeds."""

    group: Collectives
    seed: int

    def node_seed(self, node: int) -> int:
        """The seed of one random op in this step; nodes count from the first of the piece."""
        return self.seed + node


@dataclass
class Run:
    """The group that carries collectives, the seed of the step (equal on all ranks), and what backward gathers again."""

    group: Collectives
    seed: int = 0
    regathering: Regathering | None = field(default=None)

    def local(self, first: int) -> Local:
        """What the piece that begins with the node `first` is handed."""
        return Local(self.group, (self.seed * _SEED_STRIDE + first) % (1 << 62))
