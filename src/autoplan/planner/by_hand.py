"""What the layouts that one writes by hand would cost, predicted as the plan is: for the same model, mesh, hardware, options and limit of memory.

What a layout leaves open is decided as is fastest, whatever memory that takes: few choices are left, so that is soon solved. Where it
does not fit, the fewest first copies of blocks recompute with which it does. Pins are left aside: plans that respect them are compared with these.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import replace
from functools import cache

from autoplan.assignment.gathers import gather_groups
from autoplan.cost.hardware import GIB
from autoplan.cost.predict import Prediction, prediction
from autoplan.errors import OutOfTime
from autoplan.plan.schema import ByHandLine
from autoplan.planner.build import Built, build_problem
from autoplan.planner.candidates import Candidates
from autoplan.planner.infeasible import rounded_up_gib
from autoplan.planner.layouts import Data, Layout, data_parallel, layouts_of, misfit, tensor_parallel
from autoplan.planner.overlap import HOST
from autoplan.planner.prices import Prices
from autoplan.planner.problem import evaluate, is_feasible
from autoplan.planner.request import PlanRequest
from autoplan.planner.solve import solve
from autoplan.planner.terms import Terms, terms_of

TIME_LIMIT_S = 60.0  # of one layout, where tenths of a second are enough

Choice = tuple[int, ...]


def by_hand(candidates: Candidates, request: PlanRequest) -> Mapping[str, ByHandLine]:
    """Each layout with its prediction, or why there is none; `candidates` are those without pins. Nothing for inference, or a single device."""
    if request.options.mode != "train":
        return {}
    prices = Prices(candidates.graph, request.mesh, request.hardware, request.options)  # of their own: tables of few placements are fast
    return {layout.name: _line(layout, candidates, prices, request.limit_bytes) for layout in layouts_of(request.mesh)}


def _line(layout: Layout, candidates: Candidates, prices: Prices, limit_bytes: int) -> ByHandLine:
    problem = misfit(layout, candidates.graph, candidates.mesh)
    if problem is not None:
        return ByHandLine(none=problem)
    try:
        if layout.tensor is None:
            left = data_parallel(layout, candidates)
        else:
            left = tensor_parallel(layout, candidates, _data(layout.data, candidates, prices, limit_bytes))
        return _predicted(terms_of(left, prices), limit_bytes)
    except OutOfTime as error:
        return ByHandLine(none=error.what)


def _data(layout: Layout, candidates: Candidates, prices: Prices, limit_bytes: int) -> Data | None:
    """Data parallelism by node class, None where the batch cannot be split so."""
    if misfit(layout, candidates.graph, candidates.mesh) is not None:
        return None
    left = data_parallel(layout, candidates)
    choice = _fastest(terms_of(left, prices), limit_bytes)
    assert choice is not None, "every op can run whole"
    return [strategies[s] for strategies, s in zip(left.strategies, choice, strict=False)]  # what sources do comes behind


def _predicted(terms: Terms, limit_bytes: int) -> ByHandLine:
    """The fastest of what a layout leaves, for the device or, where a step then waits for the host or does not fit, for the host."""
    ahead = terms.ahead({}) if terms.prices.hides else terms
    choice = _fastest(ahead, limit_bytes)
    if choice is None:
        return ByHandLine(none="parameters cannot be used as they are stored")
    found = [_prediction(terms, choice, limit_bytes)]
    if found[0] is None or found[0].host_s:
        other = _fastest(ahead.hosted(HOST), limit_bytes)
        assert other is not None, "what is possible does not depend on what it costs"
        found.append(_prediction(terms, other, limit_bytes))
    fitting = [one for one in found if one is not None]
    if not fitting:
        return ByHandLine(none=_too_large(terms, choice, limit_bytes))
    best = min(fitting, key=lambda one: one.step_s)
    return ByHandLine(1e3 * best.step_s, best.memory.peak / GIB)


def _fastest(terms: Terms, limit_bytes: int) -> Choice | None:
    """What takes least time, were there memory for everything; None where nothing is possible. Raises OutOfTime."""
    found = solve(replace(build_problem(terms, limit_bytes).problem, limits=(), peaks=()), TIME_LIMIT_S)
    return None if found is None else found.choice


def _prediction(terms: Terms, choice: Choice, limit_bytes: int) -> Prediction | None:
    """What a step costs, parameters gathered ahead if anything fits so; None where the choice does not fit."""
    variants = (terms.ahead({}), terms) if terms.prices.hides else (terms,)
    built = next((built for variant in variants if (built := _fitting(variant, choice, limit_bytes)) is not None), None)
    if built is None:
        return None
    prices, assignment, again = terms.prices, built.assignment(choice), built.recomputed
    groups = gather_groups(assignment, prices.prefixes, recomputed=again, prefetch=built.terms.prefetch)
    return prediction(assignment, groups, prices.hardware, prices.options, prices.segments, again)


def _fitting(terms: Terms, choice: Choice, limit_bytes: int) -> Built | None:
    """The problem in which the fewest first copies recompute so that a choice fits."""
    segments = terms.prices.segments

    @cache
    def built(count: int) -> Built:
        return build_problem(terms, limit_bytes, segments[:count])

    def fits(count: int) -> bool:
        return is_feasible(built(count).problem, choice)

    most = len(segments)
    if fits(0):
        return built(0)
    return built(bisect_left(range(most), True, lo=1, key=fits)) if most and fits(most) else None


def _too_large(terms: Terms, choice: Choice, limit_bytes: int) -> str:
    """How much a choice takes at least."""
    segments = terms.prices.segments
    problem = build_problem(terms, limit_bytes, segments).problem
    needed_gib = rounded_up_gib(max(evaluate(problem, choice).memory) * problem.unit_bytes)
    return f"needs {needed_gib:.4g} GiB{' with everything recomputed' if segments else ''}"
