"""The numbers of a profile under which predictions are nearest to timings: least squares, predictions being any function.

Errors are ratios: log(predicted / measured). They count squared while small and by their size beyond a few percent (pseudo-Huber
loss), so that a work that was disturbed, or that the formula cannot meet, draws the others little.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import exp, log, sqrt

from autoplan.calibrate.numbers import Place, number_at, with_number
from autoplan.calibrate.works import Timing
from autoplan.cost.hardware import Hardware

USUAL_ERROR = 0.05  # of predictions; larger ones count by their size alone
NEGLIGIBLE = 1e-8  # gain of the loss: a timing that is 0.01 % off costs 2e-6
DERIVED_OVER = 1e-4  # of a logarithm
FARTHEST = 3.0  # that one step goes, of a logarithm
MOST_STEPS = 100
ABOUT = 1.25
LOWEST = log(1e-18)

Point = tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Parameter:
    """A positive number of a profile, sought from `start` on (what the profile has, unless said) between `least` and `most`.

    Where the search ends about at `least`, which must be too little to have an effect, the number is 0.
    """

    place: Place
    start: float | None = None
    least: float = 0.0
    most: float = 1e15


def fitted(hardware: Hardware, parameters: Sequence[Parameter], timings: Sequence[Timing]) -> Hardware:
    """The profile with those values of the parameters that predict the timings best; as it is where there are no timings.

    A parameter without effect at its start stays there: where predictions are the larger of two times, start where its own is.
    """
    if not timings:
        return hardware
    starts = [number_at(hardware, each.place) if each.start is None else each.start for each in parameters]
    point = tuple(_inside(log(start) if start else LOWEST, each) for start, each in zip(starts, parameters, strict=True))

    def errors(at: Point) -> list[float]:
        there = _with(hardware, parameters, at)
        return [error(there, timing) for timing in timings]

    return _with(hardware, parameters, _least(errors, point, parameters))


def error(hardware: Hardware, timing: Timing) -> float:
    """log(predicted / measured): 0.01 is about one percent too long."""
    return log(max(timing.work.seconds(hardware), 1e-12) / timing.seconds)


def _with(hardware: Hardware, parameters: Sequence[Parameter], point: Point) -> Hardware:
    for parameter, at in zip(parameters, point, strict=True):
        hardware = with_number(hardware, parameter.place, 0.0 if parameter.least and at < log(ABOUT * parameter.least) else exp(at))
    return hardware


def _least(errors: Callable[[Point], list[float]], start: Point, parameters: Sequence[Parameter]) -> Point:
    """Levenberg and Marquardt (An algorithm for least-squares estimation of nonlinear parameters, 1963), in logarithms of the parameters.

    Each error weighs what the pseudo-Huber loss makes of its square. A step is shortened until it lowers the loss.
    """
    at, now, damping = start, errors(start), 1e-3
    for _ in range(MOST_STEPS):
        slopes = [_slope(errors, at, now, k) for k in range(len(at))]
        weights = [1 / sqrt(1 + (each / USUAL_ERROR) ** 2) for each in now]
        normal = [[_dot(weights, one, other) for other in slopes] for one in slopes]
        towards = [-_dot(weights, one, now) for one in slopes]
        while True:
            step = solved(
                [[each + (i == k) * (damping * each + 1e-12) for k, each in enumerate(row)] for i, row in enumerate(normal)], towards
            )
            there = tuple(_inside(x + max(-FARTHEST, min(FARTHEST, dx)), each) for x, dx, each in zip(at, step, parameters, strict=True))
            then = errors(there)
            if _loss(then) < _loss(now) - NEGLIGIBLE:
                break
            damping *= 4
            if damping > 1e8:
                return at
        at, now, damping = there, then, damping / 10
    return at


def _slope(errors: Callable[[Point], list[float]], at: Point, now: Sequence[float], k: int) -> list[float]:
    """How each error changes with parameter `k`."""
    beside = tuple(x + DERIVED_OVER * (index == k) for index, x in enumerate(at))
    return [(then - before) / DERIVED_OVER for then, before in zip(errors(beside), now, strict=True)]


def _loss(errors: Sequence[float]) -> float:
    return sum(sqrt(1 + (each / USUAL_ERROR) ** 2) - 1 for each in errors)


def _dot(weights: Sequence[float], one: Sequence[float], other: Sequence[float]) -> float:
    return sum(w * x * y for w, x, y in zip(weights, one, other, strict=True))


def solved(matrix: Sequence[Sequence[float]], right: Sequence[float]) -> list[float]:
    """x of matrix x = right, for a symmetric positive matrix: Gauss's elimination, without pivots since it needs none."""
    rows = [[*row, value] for row, value in zip(matrix, right, strict=True)]
    for k, pivot in enumerate(rows):
        for row in rows[k + 1 :]:
            factor = row[k] / pivot[k]
            row[:] = [x - factor * y for x, y in zip(row, pivot, strict=True)]
    found = [0.0] * len(rows)
    for k in reversed(range(len(rows))):
        found[k] = (rows[k][-1] - sum(rows[k][j] * found[j] for j in range(k + 1, len(rows)))) / rows[k][k]
    return found


def _inside(at: float, parameter: Parameter) -> float:
    return min(max(at, log(parameter.least) if parameter.least else LOWEST), log(parameter.most))
