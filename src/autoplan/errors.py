"""Errors a user can cause: one message each that says what, where and what next.

Every child carries its numbers as fields, so that callers need not parse the message, and names the exit code of the
command line (0 done, 1 input, 2 usage, 3 nothing fits, 4 differs, 5 verify differs, 6 out of time, 7 a rank is lost, 70 our own bug).
"""

from __future__ import annotations

from collections.abc import Iterable

BUG = 70  # the exit code of an error that is not the user's: EX_SOFTWARE of sysexits.h


class AutoplanError(Exception):
    """A mistake of the user's input; `str(error)` is the whole message to print."""

    exit_code = 1

    def __init__(self, what: str, *, where: str | None = None, next_step: str | None = None) -> None:
        self.what = what
        self.where = where
        self.next_step = next_step
        super().__init__(what)

    def __str__(self) -> str:
        details = "; ".join(part for part in (self.where, self.next_step) if part)
        return f"{self.what}\n  {details}" if details else self.what


class UsageError(AutoplanError):
    """The command line itself is wrong: a malformed mesh, an unknown profile name."""

    exit_code = 2


class TargetError(AutoplanError):
    """The model cannot be loaded, built or captured."""


class PlanError(AutoplanError):
    """A plan file is malformed, or does not belong to this model or mesh."""


class PlacementError(AutoplanError):
    """A placement that cannot be: a dim the tensor lacks, or a size that does not divide."""


class HardwareError(AutoplanError):
    """A hardware profile that is missing or malformed."""


class FallbackError(AutoplanError):
    """`--strict`: ops without a rule, all of them."""


class NoPlanFits(AutoplanError):
    """No choice of placements fits the memory limit."""

    exit_code = 3

    def __init__(self, what: str, *, limit_bytes: int, smallest_bytes: int, **details: str | None) -> None:
        super().__init__(what, **details)
        self.limit_bytes = limit_bytes
        self.smallest_bytes = smallest_bytes


class VerificationError(AutoplanError):
    """A parallel run that differs from one device."""

    exit_code = 5


class OutOfTime(AutoplanError):
    """The time limit passed before any plan was found."""

    exit_code = 6


class LostRank(AutoplanError):
    """A process of the run is gone: killed, or its host is down."""

    exit_code = 7


class DeviceMemoryError(AutoplanError):
    """A device has less memory than a step takes, or than the plan predicts."""


class NonFiniteLoss(AutoplanError):
    """The loss of a training step is NaN or infinite."""

    def __init__(self, what: str, *, step: int, loss: float, **details: str | None) -> None:
        super().__init__(what, **details)
        self.step = step
        self.loss = loss


def join_problems(kind: type[AutoplanError], problems: Iterable[AutoplanError | str], **details: str | None) -> AutoplanError:
    """All problems of a kind as one error, one after another, so that a user mends them in one go."""
    return kind("\n".join(str(problem) for problem in problems), **details)
