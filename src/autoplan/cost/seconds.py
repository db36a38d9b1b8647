"""What a call costs: seconds and flops, forward and backward."""

from __future__ import annotations

from dataclasses import astuple, dataclass, replace


@dataclass(frozen=True, slots=True)
class ComputeCost:
    """Seconds and flops of one call on one device; `inside_s` are the collectives inside its local implementation.

    Of these a forward takes `inside_forward_s`.
    """

    forward_s: float = 0.0
    backward_s: float = 0.0
    forward_flops: float = 0.0
    backward_flops: float = 0.0
    inside_s: float = 0.0
    inside_forward_s: float = 0.0

    @property
    def seconds(self) -> float:
        """Everything together."""
        return self.forward_s + self.backward_s + self.inside_s

    def plus(self, other: ComputeCost) -> ComputeCost:
        """Both, one after the other."""
        return ComputeCost(*(mine + theirs for mine, theirs in zip(astuple(self), astuple(other), strict=True)))

    def times(self, factor: float) -> ComputeCost:
        """As long as `factor` of them, with the same flops and collectives."""
        return replace(self, forward_s=self.forward_s * factor, backward_s=self.backward_s * factor)
