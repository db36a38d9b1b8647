"""CP-SAT on a `Problem`, whole or pruned: the only file that knows ortools."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from ortools.sat.python import cp_model

from autoplan.errors import OutOfTime
from autoplan.planner.problem import FORBIDDEN, Group, Problem, ProblemValue, Solution

SEED = 0
WORKERS = 8  # interleaved, so that the search is the same on any number of cores


@dataclass(slots=True)
class _Model:
    """The CP-SAT model under construction, and the literals by which its parts find each other."""

    problem: Problem
    cp: cp_model.CpModel = field(default_factory=cp_model.CpModel)
    chosen: list[list[cp_model.IntVar]] = field(default_factory=list)
    costs: list[tuple[cp_model.IntVar, int]] = field(default_factory=list)
    rows: list[list[tuple[cp_model.IntVar, int]]] = field(default_factory=list)
    kept: list[list[tuple[int, cp_model.IntVar, int]]] = field(default_factory=list)  # by value: (class, literal, +1 or -1)


def solve_cpsat(
    problem: Problem,
    time_limit_s: float | None = None,
    *,
    on_progress: Callable[[int, int], None] | None = None,
) -> Solution | None:
    """The cheapest choice within the limits, or the best found in time with its bound; None where nothing fits.

    Raises OutOfTime when the time limit passes before any choice is found.
    """
    model = _build(problem)
    for row, limit in enumerate(problem.limits):
        model.cp.add(_row_sum(model, row) <= limit)
    model.cp.minimize(_sum(model.costs))
    return _run(model, time_limit_s, on_progress, gap=problem.tie - 1)


def solve_memory_cpsat(problem: Problem, time_limit_s: float | None = None) -> Solution | None:
    """The choice that needs the least memory in its greatest row; its `cost` and `bound` are in memory units."""
    model = _build(problem)
    peak = model.cp.new_int_var(0, 1 << 50, "peak")
    for row in range(len(problem.limits)):
        model.cp.add(_row_sum(model, row) <= peak)
    model.cp.minimize(peak)
    return _run(model, time_limit_s, None, gap=0)


def _build(problem: Problem) -> _Model:
    model = _Model(problem, rows=[[] for _ in problem.limits])
    for node in problem.nodes:
        literals = [model.cp.new_bool_var(f"{node.name}:{s}") for s in range(len(node.costs))]
        model.cp.add_exactly_one(literals)
        model.chosen.append(literals)
        model.costs += zip(literals, node.costs, strict=True)
        for row, memory in zip(model.rows, node.memory, strict=True):
            row += zip(literals, memory, strict=True)
    for value in problem.values:
        _add_value(model, value)
    return model


def _add_value(model: _Model, value: ProblemValue) -> None:
    """Literals for the states a value is made and needed in, and for the transitions between them."""
    made = _by_state(model, model.chosen[value.producer], value.made, f"{value.name} made")
    needs = [_by_state(model, model.chosen[reader.node], reader.needs, f"{value.name} read") for reader in value.readers]
    always = all(None not in reader.needs for reader in value.readers)
    if len(needs) == 1:
        needed = needs[0]
    else:
        needed = {}
        for q in sorted({q for literals in needs for q in literals}):
            needed[q] = model.cp.new_bool_var(f"{value.name} in {q}")
            for literals in needs:
                if q in literals:
                    model.cp.add_implication(literals[q], needed[q])
    model.kept.append(_kept_copies(model, value, made, needs))
    for row, amounts in zip(model.rows, value.kept, strict=True):
        row += ((literal, sign * amounts[f]) for f, literal, sign in model.kept[-1])
    exact = len(needs) == 1 and always
    _add_transitions(model, made, needed, value.backward, exact)
    by_class: dict[int, list[cp_model.IntVar]] = {}
    for q, literal in needed.items():
        by_class.setdefault(value.forward_class[q], []).append(literal)
    classes = {f: literals[0] if len(literals) == 1 else _any(model, literals) for f, literals in by_class.items()}
    _add_transitions(model, made, classes, value.forward, exact)


def _kept_copies(
    model: _Model, value: ProblemValue, made: dict[int, cp_model.IntVar], needs: list[dict[int, cp_model.IntVar]]
) -> list[tuple[int, cp_model.IntVar, int]]:
    """Literals whose signed sum per forward class says whether a copy is kept: one that a keeper needs, less the free one."""
    by_class: dict[int, list[cp_model.IntVar]] = {}
    for keeper in value.keepers:
        for q, literal in needs[keeper].items():
            by_class.setdefault(value.forward_class[q], []).append(literal)
    copies = []
    for f, literals in sorted(by_class.items()):
        kept = literals[0] if len(literals) == 1 else _any(model, literals)
        copies.append((f, kept, 1))
        homes = [literal for p, literal in made.items() if value.free[p] == f]
        if homes:
            free = model.cp.new_bool_var("")
            model.cp.add_implication(free, kept)
            model.cp.add_bool_or(~free, *homes)
            copies.append((f, free, -1))
    return copies


def _add_transitions(
    model: _Model, made: dict[int, cp_model.IntVar], needed: dict[int, cp_model.IntVar], cost: Sequence[Sequence[int]], exact: bool
) -> None:
    """z[p, q] for "made in p and needed in q", by marginal equalities: sum over p of z[p, q] is need q, z[p, q] <= made p.

    With one reader also the sum over q of z[p, q] is made p. Weaker links (z >= made + needed - 1) leave the bound blind.
    """
    if all(cost[p][q] == 0 for p in made for q in needed):
        return
    pairs: dict[tuple[int, int], cp_model.IntVar] = {}
    for p in made:
        for q in needed:
            if cost[p][q] == FORBIDDEN:
                model.cp.add_bool_or(~made[p], ~needed[q])
            else:
                pairs[p, q] = model.cp.new_bool_var("")
                model.costs.append((pairs[p, q], cost[p][q]))
    for q, literal in needed.items():
        model.cp.add(sum(pairs[p, q] for p in made if (p, q) in pairs) == literal)
    for p, literal in made.items():
        reached = [pairs[p, q] for q in needed if (p, q) in pairs]
        if exact:
            model.cp.add(sum(reached) == literal)
        else:
            for pair in reached:
                model.cp.add_implication(pair, literal)


def _by_state(model: _Model, literals: Sequence[cp_model.IntVar], states: Sequence[int | None], name: str) -> dict[int, cp_model.IntVar]:
    """For each state one literal that is true when a strategy of that state is chosen."""
    groups: dict[int, list[cp_model.IntVar]] = {}
    for literal, state in zip(literals, states, strict=True):
        if state is not None:
            groups.setdefault(state, []).append(literal)
    return {state: group[0] if len(group) == 1 else _one_of(model, group, f"{name} {state}") for state, group in sorted(groups.items())}


def _one_of(model: _Model, group: Sequence[cp_model.IntVar], name: str) -> cp_model.IntVar:
    literal = model.cp.new_bool_var(name)
    model.cp.add(sum(group) == literal)
    return literal


def _any(model: _Model, group: Sequence[cp_model.IntVar]) -> cp_model.IntVar:
    literal = model.cp.new_bool_var("")
    for member in group:
        model.cp.add_implication(member, literal)
    return literal


def _row_sum(model: _Model, row: int) -> cp_model.LinearExpr:
    """Memory of a row: what adds up, plus for each peak a variable that no group of it exceeds."""
    total = _sum(model.rows[row])
    for number, peak in enumerate(model.problem.peaks[row]):
        terms = [_group_terms(model, group) for group in peak]
        largest = max((sum(max(0, weight) for _, weight in group) for group in terms), default=0)
        height = model.cp.new_int_var(0, largest, f"peak {row}.{number}")
        for group in terms:
            if any(weight for _, weight in group):
                model.cp.add(_sum(group) <= height)
        total += height
    return total


def _group_terms(model: _Model, group: Group) -> list[tuple[cp_model.IntVar, int]]:
    terms = [term for node, amounts in group.nodes for term in zip(model.chosen[node], amounts, strict=True)]
    for value, amounts in group.values:
        terms += [(literal, sign * amounts[f]) for f, literal, sign in model.kept[value]]
    return terms


def _sum(terms: Sequence[tuple[cp_model.IntVar, int]]) -> cp_model.LinearExpr:
    kept = [(literal, weight) for literal, weight in terms if weight]
    return cp_model.LinearExpr.weighted_sum([literal for literal, _ in kept], [weight for _, weight in kept])


class _Progress(cp_model.CpSolverSolutionCallback):
    def __init__(self, report: Callable[[int, int], None]) -> None:
        super().__init__()
        self._report = report

    def on_solution_callback(self) -> None:
        self._report(int(self.objective_value), int(self.best_objective_bound))


def _run(
    model: _Model,
    time_limit_s: float | None,
    on_progress: Callable[[int, int], None] | None,
    *,
    gap: int,
) -> Solution | None:
    solver = cp_model.CpSolver()
    solver.parameters.random_seed = SEED
    solver.parameters.num_workers = WORKERS
    solver.parameters.interleave_search = True  # no hints with it: where nothing fits, ortools 9.15 then aborts the process
    solver.parameters.linearization_level = 2
    solver.parameters.absolute_gap_limit = gap
    if time_limit_s is not None:
        solver.parameters.max_time_in_seconds = time_limit_s
    status = _solve_interruptibly(solver, model.cp, _Progress(on_progress) if on_progress else None)
    if status == cp_model.INFEASIBLE:
        return None
    if status not in (cp_model.OPTIMAL, cp_model.FEASIBLE):
        raise OutOfTime(
            f"no plan found in {time_limit_s:g} s" if time_limit_s else f"the solver stopped: {solver.status_name(status)}",
            next_step="raise --time-limit",
        )
    choice = tuple(next(s for s, literal in enumerate(literals) if solver.boolean_value(literal)) for literals in model.chosen)
    cost, bound = round(solver.objective_value), round(solver.best_objective_bound)
    return Solution(choice, cost, bound, "optimal" if status == cp_model.OPTIMAL else "feasible")


def _solve_interruptibly(solver: cp_model.CpSolver, model: cp_model.CpModel, callback: _Progress | None) -> int:
    """The solver's status. CP-SAT takes Ctrl-C for the end of its time, so it runs beside and Python hears it."""
    solver.parameters.catch_sigint_signal = False
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(solver.solve, model, callback)
        try:
            return running.result()
        except KeyboardInterrupt:
            solver.stop_search()
            raise
