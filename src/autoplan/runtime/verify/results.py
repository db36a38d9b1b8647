"""What one device and each rank of a plan gave, and how far they are apart."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import isfinite
from typing import Any

from torch import Tensor

from autoplan.assignment.redistributions import Counts

LOSS_TOLERANCE = 1e-5
GRADIENT_TOLERANCE = 1e-4


@dataclass(frozen=True)
class Reference:
    """One device: the outputs (in training the loss alone), the gradient of every parameter, the flops of the step, and what it
    leaves in the buffers that it overwrites."""

    outputs: tuple[Tensor, ...]
    gradients: Mapping[str, Tensor | None]
    flops: int
    buffers: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class RankResult:
    """One rank: whole outputs, the local part of every gradient and overwritten buffer, what it counted, and where it sits."""

    outputs: tuple[Tensor, ...]
    gradients: Mapping[str, Tensor | None]
    flops: int
    collectives: Counts
    coordinate: tuple[int, ...]
    buffers: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Verification:
    """How far parallel runs are from one device; `to_json` is what `autoplan verify --json` prints."""

    loss_rel_err: float
    grad_rel_err: float
    worst_param: str | None
    split_flops_fraction: float
    planned: Mapping[str, int]
    observed: Mapping[str, int]
    problems: tuple[str, ...] = ()
    random_run: int = 0
    random_ok: int = 0
    buffer_rel_err: float = 0.0
    dtype: str = "float32"

    @property
    def may_be_rounding(self) -> bool:
        """Whether the runs differ, but do the same collectives and give numbers: in a higher precision they may agree.

        Batch norm over few samples, layer after layer, multiplies rounding: of a MobileNet at batch 4 the gradients of ONE
        device in fp32 are 2.5 % off those in fp64 (measured 2026-11-22). And a bias whose channels are then normalised has a
        gradient of 0, so that all there is of it is rounding.
        """
        errors = (self.loss_rel_err, self.grad_rel_err, self.buffer_rel_err)
        return not self.ok and dict(self.planned) == dict(self.observed) and all(map(isfinite, errors))

    @property
    def ok(self) -> bool:
        """Whether everything agrees within the tolerances."""
        close = self.loss_rel_err <= LOSS_TOLERANCE and self.grad_rel_err <= GRADIENT_TOLERANCE
        return close and not self.problems and dict(self.planned) == dict(self.observed) and self.random_run == self.random_ok

    def to_json(self) -> dict[str, Any]:
        """The object of DESIGN 9."""
        return {
            "ok": self.ok,
            "dtype": {"float32": "fp32", "float64": "fp64"}.get(self.dtype, self.dtype),
            "loss_rel_err": self.loss_rel_err,
            "grad_rel_err": self.grad_rel_err,
            "worst_param": self.worst_param,
            "buffer_rel_err": self.buffer_rel_err,
            "split_flops_fraction": self.split_flops_fraction,
            "collectives": {"planned": dict(self.planned), "observed": dict(self.observed)},
            "random_plans": {"run": self.random_run, "ok": self.random_ok},
            "problems": list(self.problems),
        }
