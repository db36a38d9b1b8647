"""The parameters and buffers that a module holds, without a walk through it in every step."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn

from autoplan.errors import UsageError


class Held:
    """Parameters and buffers by FQN, as they are when they are asked for.

    `named_parameters()` and `named_buffers()` walk through all modules, which takes 0.25 ms of the host's time for twelve small layers
    (2026-12-01, one core). Here the walk is made again only where a module has been put in another's place; a parameter or a buffer
    may be replaced at any time.
    """

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self._children: list[tuple[dict[str, Any], str, nn.Module | None]] = []  # where each module hangs, and which it was
        self._places: dict[str, tuple[dict[str, Any], str]] = {}

    def now(self) -> Held:
        """Itself, knowing of modules that have been replaced."""
        if not self._places or any(modules.get(name) is not child for modules, name, child in self._children):
            self._children = [(owner._modules, name, child) for owner in self.module.modules() for name, child in owner._modules.items()]
            self._places = dict(self._walk())
        return self

    def __getitem__(self, fqn: str) -> Tensor:
        try:
            tensors, name = self._places[fqn]
            return tensors[name]
        except KeyError:
            raise UsageError(f"{fqn} is no longer in the module", next_step="change a model before it is planned, not after") from None

    def _walk(self) -> Iterator[tuple[str, tuple[dict[str, Any], str]]]:
        for path, owner in self.module.named_modules(remove_duplicate=False):
            for tensors in (owner._parameters, owner._buffers):
                for name in tensors:
                    yield f"{path}.{name}" if path else name, (tensors, name)
