"""One run of a local program: what its ops are handed beside tensors."""

from __future__ import annotations

from dataclasses import dataclass, field

from autoplan.collectives import Collectives
from autoplan.runtime.regather import Regathering

_SEED_STRIDE = 1_000_003  # nodes of one step and the same node of other steps draw different numbers


@dataclass
class Run:
    """The group that carries collectives, the seed of the step (equal on all ranks), and what backward gathers again."""

    group: Collectives
    seed: int = 0
    regathering: Regathering | None = field(default=None)

    def node_seed(self, node: int) -> int:
        """The seed of one random op in this step."""
        return (self.seed * _SEED_STRIDE + node) % (1 << 62)
