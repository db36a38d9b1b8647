"""Local tensors that change placement: the collectives, over processes or simulated, and their gradients."""

from autoplan.collectives.base import Collectives, UnderWay, index_in_group
from autoplan.collectives.redistribute import redistribute, redistribute_gradient, run_steps
from autoplan.collectives.simulated import SimulatedCollectives, run_simulated

__all__ = [
    "Collectives",
    "SimulatedCollectives",
    "UnderWay",
    "index_in_group",
    "redistribute",
    "redistribute_gradient",
    "run_simulated",
    "run_steps",
]
