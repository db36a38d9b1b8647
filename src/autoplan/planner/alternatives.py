"""What else one decision of a plan could be, and what the best plan that has it would cost: each solved with the decision pinned."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from time import perf_counter

from autoplan.assignment import Assignment
from autoplan.errors import NoPlanFits, OutOfTime, PlanError
from autoplan.graph import Graph
from autoplan.load import Built as Model
from autoplan.plan.schema import Plan
from autoplan.planner.build import build_problem
from autoplan.planner.decisions import FIELDS, Decision, Option, Pin, Said, decided, freed, options_of
from autoplan.planner.infeasible import GIB, rounded_up_gib
from autoplan.planner.pins import pinned
from autoplan.planner.pipeline import TIME_LIMIT_S, plan_module
from autoplan.planner.prices import Prices
from autoplan.planner.request import PlanRequest
from autoplan.planner.shares import SharedBound
from autoplan.planner.terms import Terms, terms_of

MARGIN = 0.5  # of what a good plan costs: how much more is told apart where alternatives are ranked before they are solved


@dataclass(frozen=True, slots=True)
class Question:
    """A plan that is asked why it decides something as it does.

    `plan` and `assignment` are its decisions, with predictions of today, and `request` what it was planned for.
    """

    model: Model
    graph: Graph
    plan: Plan
    assignment: Assignment
    request: PlanRequest
    decision: Decision

    @property
    def own(self) -> tuple[Said, ...]:
        """What the plan itself decides; several where copies differ."""
        return decided(self.decision, self.plan, self.assignment)


@dataclass(frozen=True, slots=True)
class Alternative:
    """One choice, and the best plan that has it.

    Without one, `problem` says why, `step_ms` is None, and `peak_gib` the least that a plan with it needs, if only that is
    too much. `gap` is what is not proved, as a part of the cost. `pins` make the planner decide so; they are empty for what pins cannot say.
    """

    said: Said
    pins: tuple[Pin, ...] = ()
    step_ms: float | None = None
    peak_gib: float | None = None
    gap: float | None = None
    problem: str | None = None
    is_own: bool = False

    @property
    def fits(self) -> bool:
        """Whether there is a plan."""
        return self.problem is None


@dataclass(frozen=True, slots=True)
class Explained:
    """The plan's own choice, then alternatives by the time of a step, those without a plan last.

    `left_out` others were not solved, none of which takes less than `at_least_ms` while copies of a block decide alike. `unbound` are
    pins of the plan that are left aside, as they decide what is asked. `interrupted`: by Ctrl-C, so that the others are left out too.
    """

    own: tuple[Alternative, ...]
    others: tuple[Alternative, ...]
    left_out: int
    at_least_ms: float | None
    unbound: tuple[Pin, ...]
    interrupted: bool


def explain(question: Question, most: int, on_each: Callable[[str], None] = lambda text: None) -> Explained:
    """What the best plan with each of at most so many alternatives costs; `on_each` is told before each is solved.

    Each changes one thing and leaves all else free, so that of a parameter every other use comes with the way to store it that goes
    best with it, and the other way round. Raises KeyboardInterrupt only where nothing is known yet.
    """
    decision = question.decision
    unbound = tuple(pin for pin in question.request.pins if decision.is_bound_by(pin))
    request = replace(question.request, pins=freed(question.request.pins, decision, question.graph))
    options = deque(_ranked(question, request))
    own: tuple[Alternative, ...] = ()
    others: list[Alternative] = []
    interrupted = False
    try:
        on_each("the plan's own choice")
        own = tuple(_own(question, request))
        while options and len(others) < most:
            on_each(f"{len(others) + 1} of {min(most, len(others) + len(options))}")
            found = _solved(question, request, {options[0][0].field: options[0][0].value})
            options.popleft()
            if all(other.said != found.said for other in others):  # the best way to store a use may be best used so
                others.append(found)
    except KeyboardInterrupt:
        if not own:
            raise
        interrupted = True
    others.sort(key=lambda other: (not other.fits, other.step_ms or other.peak_gib or 0.0))
    at_least_ms = min((least_ms for _, least_ms in options), default=None)
    return Explained(own, tuple(others), len(options), at_least_ms, unbound, interrupted)


def _own(question: Question, request: PlanRequest) -> Iterator[Alternative]:
    """The best plan with the plan's own choice; the plan itself where no pin says as much, since copies or uses differ."""
    plan = question.plan
    for said in question.own:
        if len(question.own) == 1 and all(not isinstance(value, Mapping) for value in said.values()):
            yield replace(_solved(question, replace(request, base=plan), said), is_own=True)
        else:
            peak_gib = plan.predicted.memory_gib.peak
            problem = "does not fit" if peak_gib * GIB > request.limit_bytes else None
            yield Alternative(said, (), plan.predicted.step_ms, peak_gib, problem=problem, is_own=True)


def _solved(question: Question, request: PlanRequest, said: Said) -> Alternative:
    """The best plan that decides so; what it decides beside is in the answer too."""
    model, decision = question.model, question.decision
    pins = decision.pins(said)
    wanted = replace(request, pins=(*request.pins, *pins))
    try:
        planned = plan_module(model.module, model.args, model.kwargs, wanted, graph=question.graph, advise=False, compare=False)
    except NoPlanFits as error:
        smallest_gib = rounded_up_gib(error.smallest_bytes)
        return Alternative(said, pins, peak_gib=smallest_gib, problem="does not fit: needs so much at least")
    except OutOfTime:
        return Alternative(said, pins, problem=f"no plan found in {request.time_limit_s or TIME_LIMIT_S:g} s")
    except PlanError as error:
        return Alternative(said, pins, problem=_reason(error, wanted.pins))
    if planned.interrupted:
        raise KeyboardInterrupt
    if decision.section == "params":
        said = decided(decision, planned.plan)[0]
        pins = () if isinstance(said["use"], Mapping) else decision.pins(said)
    predicted, solver = planned.plan.predicted, planned.plan.solver
    return Alternative(said, pins, predicted.step_ms, predicted.memory_gib.peak, solver.gap)


def _reason(error: PlanError, pins: Iterable[Pin]) -> str:
    """What is wrong with a pin in a few words."""
    text = error.what.partition("\n")[0]
    for pin in pins:
        text = text.removeprefix(f"pin {dict(pin)}: ")
    return text


def _ranked(question: Question, request: PlanRequest) -> list[tuple[Option, float]]:
    """All that could be decided otherwise with the ms a step then takes at least, the most promising first, of each field in turn."""
    candidates, _ = pinned(question.graph, request)
    terms = terms_of(candidates, Prices(question.graph, request.mesh, request.hardware, request.options))
    options = [option for option in options_of(question.decision, terms) if not _is_own(option, question.own)]
    bounded = sorted(zip(options, _at_least_ms(terms, options, request), strict=True), key=lambda pair: pair[1])
    turns = deque(deque(pair for pair in bounded if pair[0].field == field) for field in reversed(FIELDS[question.decision.section]))
    return list(_in_turn(turns))


def _is_own(option: Option, own: Sequence[Said]) -> bool:
    return len(own) == 1 and own[0][option.field] == option.value


def _in_turn(turns: deque[deque[tuple[Option, float]]]) -> Iterator[tuple[Option, float]]:
    while turns:
        first = turns.popleft()
        if first:
            yield first.popleft()
            turns.append(first)


def _at_least_ms(terms: Terms, options: Sequence[Option], request: PlanRequest) -> list[float]:
    """Of each option what a step takes at least: with memory for everything, and all hidden that can be."""
    ahead = terms.ahead({}) if terms.prices.hides else terms
    problem = replace(build_problem(ahead, request.limit_bytes).problem, limits=(), peaks=())
    below = SharedBound(problem, perf_counter() + (request.time_limit_s or TIME_LIMIT_S), margin=MARGIN).below
    slack = terms.rounding
    costs = (max(min(int(below.conditional[node][s]) for s in taken) for node, taken in option.strategies) for option in options)
    return [max(0, cost - slack) * problem.unit_s * 1e3 for cost in costs]
