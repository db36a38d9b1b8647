"""What the choices of one planning run cost: the cost model's primitives, asked for one hardware, mesh and set of options."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, cached_property

from autoplan.cost.hardware import Hardware
from autoplan.graph.ir import Graph, Node, Value
from autoplan.placement import Mesh, Placements
from autoplan.planner.candidates import Candidates
from autoplan.rules.row import Call, Strategy

FORWARD_END, OPTIMIZER_STEP = 0, 1  # the moments at which memory can peak
ROWS = 2
