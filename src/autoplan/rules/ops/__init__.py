"""The rules, one file per family of ops; importing this registers them all."""

from autoplan.rules.ops import (
    attention,
    convolution,
    experts,
    factories,
    indexing,
    linear,
    losses,
    norm,
    permute,
    pieces,
    pointwise,
    randomness,
    reductions,
    reshape,
)

__all__ = [
    "attention",
    "convolution",
    "experts",
    "factories",
    "indexing",
    "linear",
    "losses",
    "norm",
    "permute",
    "pieces",
    "pointwise",
    "randomness",
    "reductions",
    "reshape",
]
