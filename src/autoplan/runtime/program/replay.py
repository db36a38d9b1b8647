"""Which programs may run as CUDA graphs: recorded once, then replayed with the same kernels, addresses and numbers."""

from __future__ import annotations

import torch

from autoplan.errors import UsageError, join_problems
from autoplan.runtime.held import Held
from autoplan.runtime.program.program import Program

_HINT = "leave CUDA graphs out"


def check_replayable(program: Program, held: Held, device: torch.device) -> None:
    """Raise UsageError that says all that stands against replaying `program`.

    A graph has its random numbers and the addresses of its parameters in it: each replay would draw the same, and parameters that
    are gathered or cast in every step would have it recorded again in every step.
    """
    problems = []
    if device.type != "cuda":
        problems.append(UsageError(f"CUDA graphs are of CUDA devices, and this is {device.type}", next_step=_HINT))
    if drawing := sorted({part.op.call.op for function in program.functions for part in function.drawing}):
        remedy = f"plan with dropout 0 (--set), or {_HINT}"
        problems.append(UsageError(f"{', '.join(drawing)}: a CUDA graph draws the same random numbers in every step", next_step=remedy))
    values = program.graph.values
    moved = [
        group.name
        for group in program.groups
        if any(bucket.is_collective for bucket in group.forward)
        or any(held[member.fqn].dtype != getattr(torch, values[member.value].dtype) for member in group.members)
    ]
    if moved:
        others = f" and {len(moved) - 1} more" if len(moved) > 1 else ""
        what = f"{moved[0]}{others}: parameters that are gathered or cast in every step are not where a CUDA graph looks for them"
        problems.append(
            UsageError(what, next_step=f"pin {{params: all, gather: never}} with a precision that computes as it stores, or {_HINT}")
        )
    if problems:
        raise join_problems(UsageError, problems)
