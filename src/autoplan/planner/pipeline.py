"""The planner from end to end: a module in, a plan out, one line a stage."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from time import perf_counter
from typing import Any, Protocol

from torch import nn

from autoplan.assignment import Assignment, decode
from autoplan.assignment.recompute import recomputed_segments
from autoplan.cost.hardware import Hardware
from autoplan.errors import FallbackError, join_problems
from autoplan.graph import COMPUTE_DTYPE, Graph, capture, cast_module, find_blocks, foldable_prefixes
from autoplan.graph.segments import block_segments
from autoplan.plan.patterns import collapse
from autoplan.plan.schema import Options, Plan, SolverInfo
from autoplan.planner.build import Built, build_problem
from autoplan.planner.by_hand import by_hand
from autoplan.planner.differ import best_plan
from autoplan.planner.emit import ModelFacts, emit
from autoplan.planner.family import Outcome
from autoplan.planner.infeasible import nothing_fits
from autoplan.planner.overlap import cheapest_overlapped
from autoplan.planner.pins import pinned
from autoplan.planner.prices import Prices
from autoplan.planner.remedies import remedies
from autoplan.planner.request import PlanRequest
from autoplan.planner.terms import terms_of
from autoplan.rules.registry import rule_of

TIME_LIMIT_S = 60.0  # of the solver, where the request has none: a plan that is not proved by then says so


class Progress(Protocol):
    """Who wants to know how far planning is."""

    def stage(self, name: str) -> None:
        """A stage begins."""
        ...

    def incumbent(self, cost_ms: float, bound_ms: float) -> None:
        """The solver has found a better plan."""
        ...


@dataclass(frozen=True, slots=True)
class Planned:
    """A plan, and what making it took: seconds by stage, size of the problem; whether the user cut it short."""

    plan: Plan
    seconds: Mapping[str, float]
    nodes: int
    variables: int
    interrupted: bool = False


def plan_module(
    module: nn.Module,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    request: PlanRequest,
    progress: Progress | None = None,
    *,
    graph: Graph | None = None,
    advise: bool = True,
    compare: bool = True,
) -> Planned:
    """The cheapest plan for `module` that fits; raises NoPlanFits, OutOfTime, TargetError, FallbackError.

    `graph` is what `capture_for` made of the module, where it has been captured already. Where nothing fits, the error says what would help
    if `advise`: each such change is solved for the memory it needs. To `compare` is to predict the layouts that one writes by hand too.
    """
    clock = _Clock(progress)
    if graph is None:
        with clock.stage("capture"):
            graph = capture_for(module, args, kwargs, request.options)
    with clock.stage("rules"):
        if request.strict:
            refuse_fallbacks(graph)
        candidates, runs = pinned(graph, request)
    with clock.stage("problem"):
        terms = terms_of(candidates, Prices(graph, request.mesh, request.hardware, request.options))
        built = build_problem(terms, request.limit_bytes)
    with clock.stage("solve"):
        deadline = perf_counter() + (request.time_limit_s or TIME_LIMIT_S)
        found = _solve(built, request, progress)
        if found is None:
            options = remedies(graph, request, lambda changed: capture_for(module, args, kwargs, changed)) if advise else ()
            raise nothing_fits(built, request.limit_bytes, options)
    with clock.stage("unfold"):
        facts = ModelFacts.of(module, request.target, request.settings, request.rules)

        def emitted(outcome: Outcome, solver: SolverInfo) -> Plan:
            assignment = outcome.built.assignment(outcome.solution.choice)
            return emit(assignment, facts, request, solver, outcome.built.recomputed, outcome.built.terms.prefetch)

        plan = best_plan(built, found, runs, request, deadline, emitted)
    if compare and not found.solution.interrupted:
        with clock.stage("compare"), suppress(KeyboardInterrupt):  # the plan is there: who does not want to wait has it without these
            free = pinned(graph, replace(request, pins=()))[0] if request.pins else candidates
            plan = replace(plan, by_hand=by_hand(free, request))
    return Planned(plan, clock.seconds, len(built.problem.nodes), built.problem.strategies, found.solution.interrupted)


def capture_for(module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], options: Options) -> Graph:
    """The graph of `module` in the precision in which it will compute."""
    twin, args, cast_kwargs = cast_module(module, args, kwargs, COMPUTE_DTYPE[options.precision])
    return capture(twin, args, cast_kwargs, mode=options.mode, keep_outputs=options.keep_outputs)  # type: ignore[arg-type]  # Options checks the mode


def refuse_fallbacks(graph: Graph) -> None:
    """Raise FallbackError that lists every op without a rule, with its line; ops of repeated blocks as one."""
    lines = {node.address: (node.op, node.source) for node in graph.nodes if rule_of(node.op) is None}
    if lines:
        prefixes = foldable_prefixes(find_blocks(graph))
        folds = collapse(lines, prefixes, existing=[node.address for node in graph.nodes], execution_order=True)
        problems = []
        for pattern, fold in folds.items():
            op, source = fold.content
            times = f", x{fold.count}" if fold.count > 1 else ""
            problems.append(FallbackError(f"{pattern}: {op} has no rule{times}", where=source))
        raise join_problems(
            FallbackError,
            problems,
            next_step="register a rule (--rules, autoplan.rules.rule), or plan without --strict: they run replicated",
        )


def _solve(built: Built, request: PlanRequest, progress: Progress | None) -> Outcome | None:
    unit_ms = built.problem.unit_s * 1e3
    report = (lambda cost, bound: progress.incumbent(cost * unit_ms, bound * unit_ms)) if progress else None
    hint = base_choice(built, request.base) if request.base is not None else None
    return cheapest_overlapped(built, request.limit_bytes, request.time_limit_s or TIME_LIMIT_S, hint=hint, on_progress=report)


def base_choice(built: Built, base: Plan) -> tuple[int, ...] | None:
    """The decisions of an older plan as a hint to the solver; None where they no longer resolve."""
    from autoplan.errors import PlanError

    try:
        return built.choice(decode(base, built.candidates.graph))
    except (PlanError, ValueError):
        return None


def recost(plan: Plan, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], hardware: Hardware) -> Plan:
    """The same decisions with new predictions; raises PlanError where a decision does not resolve."""
    graph = capture_for(module, args, kwargs, plan.options)
    return plan_of_assignment(
        decode(plan, graph), plan, hardware, ModelFacts.of(module, plan.model.target, plan.model.set, plan.model.rules)
    )


def plan_of_assignment(assignment: Assignment, like: Plan, hardware: Hardware, facts: ModelFacts) -> Plan:
    """A plan that decides `assignment`, for the same mesh and options as `like`, recomputing the same blocks."""
    request = PlanRequest(like.mesh, hardware, like.options, facts.target, facts.settings, pins=like.pins)
    prefetch = max((line.prefetch for line in like.gather.values()), default=0)
    return emit(assignment, facts, request, like.solver, recomputed_segments(like, block_segments(assignment.graph)), prefetch)


class _Clock:
    """Seconds by stage; tells the user's progress when each begins."""

    def __init__(self, progress: Progress | None) -> None:
        self.seconds: dict[str, float] = {}
        self._progress = progress

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        if self._progress is not None:
            self._progress.stage(name)
        start = perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = perf_counter() - start
