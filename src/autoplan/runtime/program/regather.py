"""Gathered parameters that forward drops and backward gathers again.

Autograd keeps the weights that backward needs. While a forward runs under `Regathering.hooks`, a kept tensor whose
storage is a gathered parameter's is replaced by a handle; when backward asks for it, its group is gathered once more,
for all its members together, and dropped with the last of them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

from autoplan.runtime.program.rounds import Rounds


@dataclass
class GatheredAgain:
    """One gathering of a group in one forward: how to run it again, and its members' full tensors while backward needs them.

    It is issued when one of the `prefetch` groups that forward gathered after it is first asked for.
    """

    again: Callable[[], Rounds]
    prefetch: int = 0
    before: GatheredAgain | None = None  # the one that forward gathered before it
    handles: int = 0
    flying: Rounds | None = None
    full: dict[int, Tensor] = field(default_factory=dict)
    asked: int = 0

    def start(self) -> None:
        """Issue its collectives, if it is not on its way or there already."""
        if self.flying is None and not self.full:
            with torch.no_grad():
                self.flying = self.again()

    def member(self, index: int) -> Tensor:
        """The gathered tensor of a member, asked for by one of its handles."""
        if not self.full:
            self._gather()
        tensor = self.full[index]
        self.asked += 1
        if self.asked == self.handles:
            self.drop()
        return tensor

    def _gather(self) -> None:
        self.start()
        assert self.flying is not None
        earlier, distance = self.before, 1
        while earlier is not None:
            if distance <= earlier.prefetch and earlier.handles:
                earlier.start()
            earlier, distance = earlier.before, distance + 1
        with torch.no_grad():
            self.full, self.flying = self.flying.finish(), None

    def drop(self) -> None:
        """Free what was gathered; a further request (a second backward) gathers again."""
        self.full, self.asked = {}, 0


@dataclass(frozen=True, slots=True)
class _Handle:
    """A kept tensor as a view of a member that is to be gathered again."""

    gathered: GatheredAgain
    member: int
    size: torch.Size
    stride: tuple[int, ...]
    offset: int  # from the member's own

    def tensor(self) -> Tensor:
        full = self.gathered.member(self.member)
        return full.as_strided(self.size, self.stride, full.storage_offset() + self.offset)


class Regathering:
    """The gathered tensors of one forward, by storage. A weak reference pins a storage's identity, not its memory."""

    def __init__(self) -> None:
        self._tracked: dict[int, tuple[StorageWeakRef, GatheredAgain, int, int]] = {}
        self._last: GatheredAgain | None = None

    def track(self, tensor: Tensor, gathered: GatheredAgain, member: int) -> None:
        """From now on, keep a handle in place of `tensor` or a view of it."""
        if gathered is not self._last:
            gathered.before, self._last = self._last, gathered
        reference = StorageWeakRef(tensor.untyped_storage())
        self._tracked[reference.cdata] = (reference, gathered, member, int(tensor.storage_offset()))

    def hooks(self) -> torch.autograd.graph.saved_tensors_hooks:
        """The context under which forward runs."""
        return torch.autograd.graph.saved_tensors_hooks(self._pack, _unpack)

    def _pack(self, tensor: Tensor) -> Any:
        if tensor.layout is not torch.strided:
            return tensor
        found = self._tracked.get(tensor.untyped_storage()._cdata)
        if found is None:
            return tensor
        _, gathered, member, offset = found
        gathered.handles += 1
        return _Handle(gathered, member, tensor.size(), tensor.stride(), int(tensor.storage_offset()) - offset)


def _unpack(kept: Any) -> Tensor:
    return kept.tensor() if isinstance(kept, _Handle) else kept
