"""What a call costs: seconds and flops, forward and backward."""

from __future__ import annotations

from dataclasses import astuple, dataclass


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

    def plus(self, other: ComputeCost) -> ComputeCost:
        """Both, one after the other."""
        return ComputeCost(*(mine + theirs for mine, theirs in zip(astuple(self), astuple(other), strict=True)))

    def times(self, factor: float) -> ComputeCost:
        """As long as `factor` of them, with the same flops and collectives."""
        return ComputeCost(self.forward_s * factor, self.backward_s * factor, self.forward_flops, self.backward_flops, self.inside_s)
