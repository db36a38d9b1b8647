"""autoplan: how a PyTorch model is split over a mesh of GPUs, as a reviewable plan, and a runtime that does what it says."""

from __future__ import annotations

from importlib import import_module
from typing import Any

_EXPORTS = {
    "join_mesh": "autoplan.runtime.ranks.launch:join_mesh",
    "make_plan": "autoplan.api:make_plan",
    "parallelize": "autoplan.runtime.parallelize:parallelize",
    "shard_inputs": "autoplan.runtime.inputs:shard_inputs",
    "load_weights": "autoplan.runtime.storage.weights:load_weights",
    "export_weights": "autoplan.runtime.storage.weights:export_weights",
    "save_checkpoint": "autoplan.runtime.storage.checkpoint:save",
    "load_checkpoint": "autoplan.runtime.storage.checkpoint:resume",
}


def __getattr__(name: str) -> Any:
    """The public functions, imported when first asked for: reading a plan must not load torch."""
    if name in _EXPORTS:
        module, _, function = _EXPORTS[name].partition(":")
        return getattr(import_module(module), function)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_EXPORTS])
