"""The numbers of a profile under which predictions are nearest to timings: a direct search, predictions being any function.

Errors are ratios: log(predicted / measured). They count squared while small and by their size beyond a few percent (Charbonnier's
pseudo-Huber loss), so that a work that was disturbed, or that the formula cannot meet, draws the others little.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from math import exp, log, sqrt

from autoplan.calibrate.numbers import Place, number_at, with_number
from autoplan.calibrate.works import Timing
from autoplan.cost.hardware import Hardware

USUAL_ERROR = 0.05  # of predictions; larger ones count by their size alone
FIRST_STEP = 1.0  # of the logarithm: a factor of e
LAST_STEP = 1e-4  # profiles have three digits
LOWEST = log(1e-18)

Point = tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Parameter:
    """A positive number of a profile, sought from `start` on (what the profile has, unless said) between `least` and `most`.

    Where the search ends at `least`, the number is 0.
    """

    place: Place
    start: float | None = None
    least: float = 0.0
    most: float = 1e15


def fitted(hardware: Hardware, parameters: Sequence[Parameter], timings: Sequence[Timing]) -> Hardware:
    """The profile with those values of the parameters that predict the timings best; as it is where there are no timings."""
    if not timings:
        return hardware
    starts = [number_at(hardware, each.place) if each.start is None else each.start for each in parameters]
    point = tuple(_inside(log(start) if start else LOWEST, each) for start, each in zip(starts, parameters, strict=True))
    found = _least(lambda point: _loss(_with(hardware, parameters, point), timings), point, parameters)
    return _with(hardware, parameters, found)


def error(hardware: Hardware, timing: Timing) -> float:
    """log(predicted / measured): 0.01 is about one percent too long."""
    return log(max(timing.work.seconds(hardware), 1e-12) / timing.seconds)


def _loss(hardware: Hardware, timings: Sequence[Timing]) -> float:
    return sum(sqrt(1 + (error(hardware, timing) / USUAL_ERROR) ** 2) - 1 for timing in timings)


def _with(hardware: Hardware, parameters: Sequence[Parameter], point: Point) -> Hardware:
    for parameter, at in zip(parameters, point, strict=True):
        hardware = with_number(hardware, parameter.place, 0.0 if parameter.least and at <= log(parameter.least) else exp(at))
    return hardware


def _least(loss: Callable[[Point], float], start: Point, parameters: Sequence[Parameter]) -> Point:
    """Hooke and Jeeves (Direct search solution of numerical and statistical problems, 1961), with diagonal moves too.

    Diagonals, because efficiencies and what slows small shapes down make up for each other.
    """
    at, height, step = start, loss(start), FIRST_STEP
    while step > LAST_STEP:
        explored, lower = _explored(loss, at, height, step, parameters)
        if lower >= height:
            step /= 2
            continue
        further = tuple(_inside(2 * new - old, each) for old, new, each in zip(at, explored, parameters, strict=True))
        at, height = explored, lower
        ahead, much_lower = _explored(loss, further, loss(further), step, parameters)
        if much_lower < height:
            at, height = ahead, much_lower
    return at


def _explored(
    loss: Callable[[Point], float], at: Point, height: float, step: float, parameters: Sequence[Parameter]
) -> tuple[Point, float]:
    """Where one move after another leads that lowers the loss."""
    for move in _moves(len(at)):
        there = tuple(_inside(x + step * direction, each) for x, direction, each in zip(at, move, parameters, strict=True))
        lower = loss(there) if there != at else height
        if lower < height:
            at, height = there, lower
    return at, height


def _moves(count: int) -> Iterator[tuple[int, ...]]:
    for index in range(count):
        for sign in (1, -1):
            yield tuple(sign * (k == index) for k in range(count))
    for first, second in combinations(range(count), 2):
        for signs in ((1, 1), (1, -1), (-1, 1), (-1, -1)):
            yield tuple(signs[0] * (k == first) + signs[1] * (k == second) for k in range(count))


def _inside(at: float, parameter: Parameter) -> float:
    return min(max(at, log(parameter.least) if parameter.least else LOWEST), log(parameter.most))
