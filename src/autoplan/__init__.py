"""autoplan: how a PyTorch model is split over a mesh of GPUs, as a reviewable plan, and a runtime that does what it says."""

from __future__ import annotations

from importlib import import_module
from typing import Any

_EXPORTS = {
    "join_mesh": "autoplan.runtime.launch",
    "make_plan": "autoplan.api",
    "parallelize": "autoplan.runtime.parallelize",
    "shard_inputs": "autoplan.runtime.inputs",
}


def __getattr__(name: str) -> Any:
    """The public functions, imported when first asked for: reading a plan must not load torch."""
    if name in _EXPORTS:
        return getattr(import_module(_EXPORTS[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_EXPORTS])
