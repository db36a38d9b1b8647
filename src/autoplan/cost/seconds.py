"""What a call costs: seconds and flops, forward and backward."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ComputeCost:
    """Seconds and flops of one call on one device; `inside_s` are the collectives inside its local implementation."""

    forward_s: float = 0.0
    backward_s: float = 0.0
    forward_flops: float = 0.0
    backward_flops: float = 0.0
    inside_s: float = 0.0

    @property
    def seconds(self) -> float:
        """Everything together."""
        return self.forward_s + self.backward_s + self.inside_s
