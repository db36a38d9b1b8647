"""The last stage of planning: what the best folded plan may lose by treating all copies of a block alike, and a plan that loses less."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from time import perf_counter

from autoplan.cost.hardware import GIB
from autoplan.graph.blocks import BlockRun
from autoplan.plan.schema import Plan, SolverInfo
from autoplan.planner.build import Built
from autoplan.planner.family import Outcome
from autoplan.planner.polish import MOST_NODES, MOST_STRATEGIES, Choice, Judge, polished, searched
from autoplan.planner.problem import Solution
from autoplan.planner.request import PlanRequest
from autoplan.planner.unfold import Unfolded, unfolded

Emit = Callable[[Outcome, SolverInfo], Plan]


def best_plan(start: Built, found: Outcome, runs: Sequence[BlockRun], request: PlanRequest, deadline: float, emit: Emit) -> Plan:
    """The plan of `found`, the best folded one of the problem `start`, or a better one whose copies differ, and what is known of those.

    By default `status` and `gap` speak of folded plans, and `unfolded_gap` of all. Where every copy is asked to decide for itself,
    the former speak of all plans, and the search goes on until the deadline. What is done by default is limited by sizes alone, never by
    time: the same input gives the same bytes.
    """
    if not runs:  # nothing is folded
        gap = found.solution.gap
        return emit(found, SolverInfo(found.solution.status, gap, folded=not request.unfold, unfolded_gap=None if request.unfold else gap))
    return _Differing(start, found, runs, request, deadline, emit).plan()


class _Differing:
    """The folded plan, the best one met, and what is proved of all."""

    def __init__(self, start: Built, found: Outcome, runs: Sequence[BlockRun], request: PlanRequest, deadline: float, emit: Emit) -> None:
        self.start, self.found, self.runs, self.request, self.deadline, self.emit = start, found, runs, request, deadline, emit
        thorough = request.unfold or sum(map(len, start.candidates.classes.node_members)) <= MOST_NODES
        self.known = unfolded(start, found, runs, request.limit_bytes, thorough=thorough)
        self.plan_now = emit(found, self._info(0))

    def plan(self) -> Plan:
        """The folded plan unless another one is better."""
        if not self._is_worth_it():
            return self.plan_now
        judge = Judge(self.start, self.found, self.request.limit_bytes)
        choice = None if self.known is None else polished(judge, self.known, self.runs)
        if choice is not None:
            self._take(judge, choice)
        left_s = self.deadline - perf_counter()
        if self.request.unfold and self.plan_now.solver.status != "optimal" and left_s > 0:
            choice = searched(judge, choice or judge.folded, left_s)
            if choice is not None:
                self._take(judge, choice)
        return self.plan_now

    def _is_worth_it(self) -> bool:
        """Whether to look for a better plan: never where that is hopeless, and not after a search that was cut."""
        is_cut = self.found.solution.status != "optimal" and perf_counter() > self.deadline
        if is_cut or self.start.problem.strategies > MOST_STRATEGIES:
            return False
        if self.known is None:
            return self.request.unfold
        return self.known.loss >= self.start.problem.tie and (self.request.unfold or self.known.walk is not None)

    def _take(self, judge: Judge, choice: Choice) -> None:
        """Take a choice as the plan if it is predicted to fit and to be faster."""
        gain = judge.gain(choice)
        cost = self.found.solution.cost - gain
        outcome = replace(self.found, built=judge.built, solution=Solution(choice, cost, min(cost, self.found.solution.bound), "feasible"))
        plan = self.emit(outcome, self._info(gain))
        fits = plan.predicted.memory_gib.peak * GIB <= self.request.limit_bytes
        if fits and plan.predicted.step_ms < self.plan_now.predicted.step_ms:
            self.plan_now = plan

    def _info(self, gain: int) -> SolverInfo:
        """How sure the solver is of a plan that costs so much less than the folded one."""
        solution = self.found.solution
        gap = _gap(self.known, solution.cost, gain, self.start.problem.tie)
        if not self.request.unfold:
            return SolverInfo(solution.status, solution.gap, folded=True, unfolded_gap=gap)
        return SolverInfo("optimal" if gap == 0 else "feasible", gap, folded=False)


def _gap(known: Unfolded | None, cost: int, gain: int, tie: int) -> float | None:
    """How much better, relative to its cost, another plan might be than one that costs so much less than the folded plan."""
    if known is None:
        return None
    left = known.loss - gain
    return left / (cost - gain) if left >= tie else 0.0
