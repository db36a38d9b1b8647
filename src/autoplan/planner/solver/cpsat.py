"""CP-SAT on a small model: rows of memory join only where a choice exceeds them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from time import perf_counter

import numpy as np
from ortools.sat.python import cp_model

from autoplan.planner.solver.model import FORBIDDEN, Array, Edge, Found, Model, Span

SEED = 0
WORKERS = 8  # interleaved, so that the search is the same on any number of cores
JOINING = 8  # rows at a time
HEARING_S = 0.1  # what a search is given to end when it is told to
Terms = list[tuple[cp_model.IntVar, int]]


class Interrupted(KeyboardInterrupt):
    """Ctrl-C, and what was found until then."""

    def __init__(self, found: Found) -> None:
        super().__init__()
        self.found = found


def cheapest(
    model: Model,
    threshold: int,
    rows: Sequence[int],
    deadline: float | None,
    *,
    gap: int = 0,
    on_progress: Callable[[int, int], None] | None = None,
) -> Found:
    """The cheapest choice within the limits that costs at most `threshold`; `rows` are watched from the beginning.

    Ctrl-C raises Interrupted, with the best choice so far if there is one.
    """
    core = _Core(model)
    core.cp.add(_sum(core.costs) <= threshold - model.constant)
    core.cp.minimize(_sum(core.costs))
    watched = set(rows)
    for row in watched:
        core.cp.add(_sum(core.row(row)) <= int(model.limits[row]))
    while True:
        try:
            found = _run(core, deadline, gap, model.constant, on_progress)
        except Interrupted as stop:
            if _exceeded(model, stop.found.choice, watched, 0):
                raise KeyboardInterrupt from None
            raise
        joining = _exceeded(model, found.choice, watched, 0)
        if not joining:
            return found
        if not found.finished:
            return Found(None, found.bound, False)
        watched.update(joining)
        for row in joining:
            core.cp.add(_sum(core.row(row)) <= int(model.limits[row]))


def least_excess(model: Model, rows: Sequence[int], deadline: float | None) -> Found:
    """The choice whose greatest use above its limit (less than nought: below) is least; `bound` is on that."""
    core = _Core(model)
    most = int(max((np.abs(model.limits)).max(initial=0), 1))
    excess = core.cp.new_int_var(-most, 0, "excess")
    core.cp.minimize(excess)
    watched = set(rows)
    for row in watched:
        core.cp.add(_sum(core.row(row)) <= int(model.limits[row]) + excess)
    while True:
        found = _run(core, deadline, 0, 0, None)
        joining = _exceeded(model, found.choice, watched, found.bound or 0)
        if not joining:
            return found
        if not found.finished:
            return Found(found.choice if model.fits(found.choice or ()) else None, found.bound, False)
        watched.update(joining)
        for row in joining:
            core.cp.add(_sum(core.row(row)) <= int(model.limits[row]) + excess)


def _exceeded(model: Model, choice: Sequence[int] | None, watched: set[int], allowed: int) -> list[int]:
    """The rows, not yet watched, that a choice exceeds most."""
    if choice is None:
        return []
    excess = model.used_by(choice) - model.limits - allowed
    excess[list(watched)] = 0
    order = np.argsort(-excess, kind="stable")[:JOINING]
    return [int(row) for row in order if excess[row] > 0]


class _Core:
    """The model in CP-SAT: a literal per strategy, and per pair of strategies that costs or uses something together."""

    def __init__(self, model: Model) -> None:
        self.model = model
        self.cp = cp_model.CpModel()
        self.chosen: list[list[cp_model.IntVar]] = []
        self.costs: Terms = []
        self.usage: list[tuple[Span, Terms]] = []
        for costs, usage in zip(model.costs, model.usage, strict=True):
            literals = [self.cp.new_bool_var("") for _ in costs]
            self.cp.add_exactly_one(literals)
            self.chosen.append(literals)
            self.costs += _terms(literals, costs)
            self.usage += [(span, _terms(literals, amounts)) for span, amounts in usage.items()]
        for (u, w), edge in model.edges.items():
            self._add_edge(self.chosen[u], self.chosen[w], edge)

    def row(self, row: int) -> Terms:
        """What adds up in a row."""
        return [term for span, terms in self.usage if row in range(*span) for term in terms]

    def _add_edge(self, first: list[cp_model.IntVar], second: list[cp_model.IntVar], edge: Edge) -> None:
        possible = edge.cost < FORBIDDEN
        if not edge.usage and not edge.cost[possible].any():
            self._allow(first, second, possible)
            self._allow(second, first, possible.T)
            return
        pairs = np.full(possible.shape, None, dtype=object)
        for s, t in zip(*np.nonzero(possible), strict=True):
            pairs[s, t] = self.cp.new_bool_var("")
        for literals, lines, allowed in ((first, pairs, possible), (second, pairs.T, possible.T)):
            for literal, line, mask in zip(literals, lines, allowed, strict=True):
                self.cp.add(sum(line[mask]) == literal)
        listed = list(pairs[possible])
        self.costs += _terms(listed, edge.cost[possible])
        self.usage += [(span, _terms(listed, amounts[possible])) for span, amounts in edge.usage.items()]

    def _allow(self, first: list[cp_model.IntVar], second: list[cp_model.IntVar], possible: Array) -> None:
        for literal, mask in zip(first, possible, strict=True):
            if not mask.all():
                self.cp.add_bool_or(~literal, *(second[t] for t in np.flatnonzero(mask)))


def _terms(literals: Sequence[cp_model.IntVar], weights: Array) -> Terms:
    return [(literal, int(weight)) for literal, weight in zip(literals, weights, strict=True) if weight]


def _sum(terms: Terms) -> cp_model.LinearExpr:
    return cp_model.LinearExpr.weighted_sum([literal for literal, _ in terms], [weight for _, weight in terms])


class _Progress(cp_model.CpSolverSolutionCallback):
    def __init__(self, report: Callable[[int, int], None], constant: int) -> None:
        super().__init__()
        self._report, self._constant = report, constant

    def on_solution_callback(self) -> None:
        self._report(int(self.objective_value) + self._constant, int(self.best_objective_bound) + self._constant)


def _run(core: _Core, deadline: float | None, gap: int, constant: int, on_progress: Callable[[int, int], None] | None) -> Found:
    solver = cp_model.CpSolver()
    solver.parameters.random_seed = SEED
    solver.parameters.num_workers = WORKERS
    solver.parameters.interleave_search = True  # no hints with it: where nothing fits, ortools 9.15 then aborts the process
    solver.parameters.linearization_level = 2
    solver.parameters.absolute_gap_limit = gap
    if deadline is not None:
        solver.parameters.max_time_in_seconds = max(0.05, deadline - perf_counter())
    status, is_interrupted = _solve_interruptibly(solver, core.cp, _Progress(on_progress, constant) if on_progress else None)
    if status == cp_model.INFEASIBLE:
        return Found(None, None, True)
    assert status in (cp_model.OPTIMAL, cp_model.FEASIBLE, cp_model.UNKNOWN), solver.status_name(status)
    bound = int(np.floor(solver.best_objective_bound)) + constant
    if status == cp_model.UNKNOWN:
        return Found(None, bound, False)
    choice = tuple(next(s for s, literal in enumerate(literals) if solver.boolean_value(literal)) for literals in core.chosen)
    found = Found(choice, bound, status == cp_model.OPTIMAL)
    if is_interrupted:
        raise Interrupted(found)
    return found


def _solve_interruptibly(solver: cp_model.CpSolver, model: cp_model.CpModel, callback: _Progress | None) -> tuple[int, bool]:
    """The solver's status, and whether Ctrl-C has ended it after it had found a choice. CP-SAT runs beside, so that Python hears it."""
    solver.parameters.catch_sigint_signal = False
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(solver.solve, model, callback)
        try:
            return running.result(), False
        except KeyboardInterrupt:
            while not running.done():  # until it is heard: a search that is only about to begin forgets it
                solver.stop_search()
                wait([running], HEARING_S)
            if running.result() not in (cp_model.OPTIMAL, cp_model.FEASIBLE):
                raise
            return running.result(), True
