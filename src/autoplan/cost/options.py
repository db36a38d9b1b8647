"""What of a request changes the cost."""

from __future__ import annotations

from dataclasses import dataclass

PRECISIONS = ("fp32", "bf16", "bf16-master")
OPTIMIZERS = ("adamw", "sgd", "none")


@dataclass(frozen=True, slots=True)
class CostOptions:
    """Training or inference, the optimizer's states, and the dtypes of parameters, gradients and states."""

    mode: str = "train"
    optimizer: str = "adamw"
    precision: str = "bf16"

    def __post_init__(self) -> None:
        assert self.mode in ("train", "infer"), self.mode
        assert self.optimizer in OPTIMIZERS, self.optimizer
        assert self.precision in PRECISIONS, self.precision

    @property
    def trains(self) -> bool:
        """Whether there is a backward pass."""
        return self.mode == "train"
