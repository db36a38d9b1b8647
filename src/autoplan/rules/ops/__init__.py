"""The rules, one file per family of ops; importing this registers them all."""

from autoplan.rules.ops import (
    attention,
    convolution,
    factories,
    images,
    indexing,
    linear,
    losses,
    norm,
    permute,
    pieces,
    pointwise,
    randomness,
    recurrent,
    reductions,
    reshape,
    scatter,
)

__all__ = [
    "attention",
    "convolution",
    "factories",
    "images",
    "indexing",
    "linear",
    "losses",
    "norm",
    "permute",
    "pieces",
    "pointwise",
    "randomness",
    "recurrent",
    "reductions",
    "reshape",
    "scatter",
]
