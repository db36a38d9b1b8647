"""Parts of a piece of the local program that are more than a plain op: each takes the piece's `Local`, then tensors.

`key` says what a part does without saying where: parts with equal keys may stand for each other.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from autoplan.collectives import Collectives
from autoplan.collectives.redistribute import redistribute_by
from autoplan.graph.ops import resolve
from autoplan.placement import Mesh, Placements, Shard
from autoplan.redistribution import transition
from autoplan.rules import LocalOp
from autoplan.rules.seeds import shard_number
from autoplan.runtime.program.run import Local, Run


class Redistribute(nn.Module):
    """A value in another state; `shared` is the result of another state with the same placements, if there is one."""

    def __init__(self, produced: Placements, needed: Placements, mesh: Mesh) -> None:
        super().__init__()
        self.states = f"{states(produced)} -> {states(needed)}"
        self.steps = transition(produced, needed, mesh, needs_grad=True)

    @property
    def key(self) -> str:
        return f"redistribute {self.steps}"

    def forward(self, local: Local | Run, tensor: Tensor, shared: Tensor | None = None) -> Tensor:
        return redistribute_by(tensor, *self.steps, local.group, shared)

    def extra_repr(self) -> str:
        return self.states


class LocalImplementation(nn.Module):
    """An op whose local form talks to other ranks, or draws random numbers that all ranks must know of.

    `node` counts from the first node of the piece.
    """

    def __init__(self, op: LocalOp, node: int) -> None:
        super().__init__()
        self.op = op
        self.node = node

    @property
    def draws(self) -> bool:
        """Whether it draws random numbers."""
        return torch.Tag.nondeterministic_seeded in resolve(self.op.call.op).tags

    @property
    def shards(self) -> tuple[bool, ...]:
        """Which axes cut its first output."""
        return tuple(isinstance(placement, Shard) for placement in self.op.strategy.makes[0])

    def shard(self, group: Collectives) -> int:
        """Which shard of that this rank makes."""
        return shard_number(self.op.strategy.makes[0], self.op.mesh, group.coordinate)

    @property
    def key(self) -> str:
        return f"{self.op.strategy.local} {self.node} {self.op.call} {self.op.strategy} {self.op.args} {self.op.kwargs}"

    def forward(self, local: Local, *operands: Tensor) -> Any:
        return self.op.run(operands, local.group, lambda: local.node_seed(self.node), seeded=local.seeded)


class Written(nn.Module):
    """A plain op that writes to arguments: they are copied, and the copies are its further outputs."""

    def __init__(self, op: LocalOp) -> None:
        super().__init__()
        self.op = op

    @property
    def key(self) -> str:
        return f"written {self.op.written} {self.op.call.op} {self.op.args} {self.op.kwargs}"

    def forward(self, local: Local, *operands: Tensor) -> Any:
        return self.op.run(operands, local.group)


def states(placements: Placements) -> str:
    """Placements as a part of a name: `S0_R`."""
    return "_".join(str(p).replace("(", "").replace(")", "").replace(",", "g") for p in placements)
