"""Plans whose copies differ: what is proved of them is true, a better one is taken, and what is no better stays folded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from random import Random
from typing import Any

import pytest
import torch
from planner_cases import GPT2, LLAMA, MLP, Module, built, overlapping, planned, request
from torch import Tensor, nn

from autoplan.assignment import decode
from autoplan.cost.hardware import GIB
from autoplan.graph import classes, find_blocks
from autoplan.graph.blocks import BlockRun
from autoplan.models import gpt2, llama, mlp
from autoplan.placement import R, Shard
from autoplan.plan import dump_plan, parse_plan
from autoplan.plan.schema import Plan, SolverInfo
from autoplan.planner.build import Built, build_problem
from autoplan.planner.candidates import enumerate_candidates
from autoplan.planner.chain import chain_of, nodes_of, parted
from autoplan.planner.emit import ModelFacts, emit
from autoplan.planner.family import Outcome
from autoplan.planner.overlap import cheapest_overlapped
from autoplan.planner.pipeline import capture_for
from autoplan.planner.polish import Judge
from autoplan.planner.problem import Problem, evaluate
from autoplan.planner.remedies import problem_of
from autoplan.planner.request import PlanRequest
from autoplan.planner.solve import solve
from autoplan.planner.split import FINER, folded_nodes, split_terms
from autoplan.planner.terms import TIES, terms_of
from autoplan.planner.unfold import unfolded

BLOCKS = 4


class Wide(nn.Module):
    """A layer of many more weights than it has inputs: cut by columns and the next one by rows, they need one collective between them."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.linear = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.linear(x))


class Stack(nn.Module):
    """Equal layers, each a block of its own, and a loss."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Wide(dim) for _ in range(BLOCKS + 1))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return x.square().mean()


def stack() -> Module:
    """Of one row only, which no axis cuts."""
    return Stack(1024), (torch.randn(1, 1024),), {}


class Reader(nn.Module):
    """A layer that reads what another stack has made, beside what the one before it has."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.of_stack = nn.Linear(dim, dim)

    def forward(self, x: Tensor, made: Tensor, table: Tensor) -> Tensor:
        return x + torch.relu(self.of_stack(made) * table)


class TwoStacks(nn.Module):
    """The second stack reads the last layer of the first in every layer, and a table that only it needs."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.first = nn.ModuleList(Wide(dim) for _ in range(3))
        self.table = nn.Parameter(torch.ones(dim))
        self.second = nn.ModuleList(Reader(dim) for _ in range(BLOCKS))

    def forward(self, x: Tensor) -> Tensor:
        made = x
        for layer in self.first:
            made = layer(made)
        table = torch.exp(self.table)
        for reader in self.second:
            x = reader(x, made, table)
        return x.square().mean()


MODELS = {
    "stack": stack,
    "two stacks": lambda: (TwoStacks(64), (torch.randn(8, 64),), {}),
    "mlp": lambda: mlp.build(**MLP | {"n_layers": BLOCKS + 1}),  # whose activations between the layers are no chain of copies
    "llama": lambda: llama.build(**LLAMA | {"n_layers": BLOCKS}),
    "gpt2": lambda: gpt2.build(**GPT2 | {"n_layers": BLOCKS}),
}
REQUESTS: Mapping[str, PlanRequest] = {  # links so fast that no layer of these waits for more than it computes, where a gap may stay
    "4": request("4"),
    "2x2": request("2x2"),
    "overlapping": overlapping("4", link=2.0),
}


@cache
def module(name: str) -> Module:
    return MODELS[name]()


@cache
def folded(name: str, wanted: str) -> tuple[Built, Outcome]:
    """The folded problem and its best plan."""
    start = built(module(name), REQUESTS[wanted])
    found = cheapest_overlapped(start, REQUESTS[wanted].limit_bytes, 60.0)
    assert found is not None and found.solution.status == "optimal"
    return start, found


def without_memory(problem: Problem, tie: int) -> Problem:
    """The problem where everything fits."""
    nodes = tuple(replace(node, memory=()) for node in problem.nodes)
    values = tuple(replace(value, keepers=(), kept=()) for value in problem.values)
    return replace(problem, nodes=nodes, values=values, limits=(), peaks=(), tie=tie)


@pytest.mark.parametrize("wanted", REQUESTS)
@pytest.mark.parametrize("name", ["stack", "mlp", "llama"])
def test_what_copies_that_differ_may_gain_is_never_said_to_be_less_than_they_do(
    name: str, wanted: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    start, found = folded(name, wanted)
    judge = Judge(start, found, REQUESTS[wanted].limit_bytes)
    exact = solve(without_memory(judge.built.problem, judge.tie), 60.0, hint=judge.folded)
    assert exact is not None and exact.status == "optimal"
    gain = judge.gain(exact.choice)
    assert (gain > start.problem.tie) == (name == "stack")
    by_messages = found.solution.cost // 100  # on a llama over 2x2 they end 0.4 % below; on all others they are exact
    for most_by_tables, loose in ((1_000_000, start.problem.tie), (0, by_messages)):
        monkeypatch.setattr("autoplan.planner.unfold.MOST_BY_TABLES", most_by_tables)
        known = unfolded(start, found, find_blocks(start.candidates.graph), REQUESTS[wanted].limit_bytes)
        assert known is not None
        assert known.loss + start.problem.tie >= gain
        assert known.loss <= gain + loose, "nor much more, where memory is ample"


@pytest.mark.parametrize("name", ["two stacks", "llama", "gpt2"])
def test_the_pieces_of_a_chain_never_cost_more_than_the_whole_whatever_each_copy_does(name: str) -> None:
    """Choices drawn around the best folded one, some nodes of each copy at random."""
    start, found = folded(name, "2x2")
    runs, limit_bytes, random = find_blocks(start.candidates.graph), REQUESTS["2x2"].limit_bytes, Random(0)
    whole = build_problem(split_terms(start.terms, ()), limit_bytes)
    parts = build_problem(split_terms(start.terms, parted(runs)), limit_bytes)
    chain = chain_of(parts, runs)
    assert len(chain.copies) == len(runs) == (2 if name == "two stacks" else 1)
    alone = {part: node for node, part in enumerate(folded_nodes(parts.terms, whole.terms))}

    def in_place_of(run: BlockRun, *copies: tuple[int, int]) -> dict[int, int]:
        """By node of the parts the node of the whole that it stands for, where copy `part` stands for copy `k`."""
        return {p: w for part, k in copies for p, w in zip(nodes_of(parts, run, part), nodes_of(whole, run, k), strict=True)}

    ends = [in_place_of(run, (0, 0), (run.count - 1, run.count - 1)) for run in runs]
    pieces = [(chain.rest, alone | {p: w for end in ends for p, w in end.items()})]
    for run, copy in zip(runs, chain.copies, strict=True):
        pieces += [(copy, alone | in_place_of(run, (0, k - 1), (1, k))) for k in range(1, run.count)]
    best = [found.solution.choice[node] for node in folded_nodes(start.terms, whole.terms)]
    possible = 0
    for changed in range(40):
        choice = list(best)
        for node in random.sample(range(len(choice)), changed // 4):
            choice[node] = random.randrange(len(whole.problem.nodes[node].costs))
        cost = evaluate(whole.problem, choice).cost
        if cost is None:
            continue
        possible += changed >= 4
        known = [evaluate(piece.problem, [choice[of[node]] for node in piece.nodes]).cost for piece, of in pieces]
        assert None not in known
        costs = [cost for cost in known if cost is not None]
        # each term is rounded, by half a unit at most, and may have a preference of less than that
        rounding = TIES * (len(whole.problem.nodes) + len(whole.problem.values))
        assert sum(costs) <= cost + rounding
        assert changed >= 4 or sum(costs) >= cost - rounding, "nothing is lost of plans whose copies are alike"
    assert possible > 10


@pytest.mark.parametrize("name", ["mlp", "llama", "gpt2"])
def test_a_folded_choice_costs_and_takes_the_same_where_every_copy_decides_for_itself(name: str) -> None:
    start, found = folded(name, "2x2")
    assignment = start.assignment(found.solution.choice)
    priced_anew = terms_of(
        enumerate_candidates(start.candidates.graph, start.candidates.mesh, classes(start.candidates.graph, ())), start.terms.prices
    )
    results = [evaluate(b.problem, b.choice(assignment)) for b in (
        build_problem(terms, REQUESTS["2x2"].limit_bytes) for terms in (split_terms(start.terms, ()), priced_anew)
    )]  # fmt: skip
    split, anew = results
    assert split.cost is not None and anew.cost is not None
    assert split.cost / FINER == pytest.approx(anew.cost, rel=1e-4)  # rounded in units of 1e-7 of the step, some hundred terms
    assert split.memory == anew.memory


def test_layers_alternate_where_that_is_best_and_nothing_is_left_to_gain() -> None:
    plan = planned(module("stack"), REQUESTS["4"])
    cuts = [line.use for pattern, line in plan.params.items() if pattern.endswith("weight")]
    assert {(Shard(0),), (Shard(1),)} <= set(cuts)
    start, found = folded("stack", "4")
    alike = planned_as(start, found)
    assert plan.predicted.step_ms < alike.predicted.step_ms
    assert plan.solver == SolverInfo("optimal", 0.0, folded=True, unfolded_gap=0.0)
    each = planned(module("stack"), replace(REQUESTS["4"], unfold=True))
    assert each.solver == SolverInfo("optimal", 0.0, folded=False)
    assert replace(each, solver=plan.solver) == plan


def planned_as(start: Built, found: Outcome) -> Plan:
    """The plan of a folded choice."""
    facts = ModelFacts("module")
    return emit(start.assignment(found.solution.choice), facts, REQUESTS["4"], SolverInfo("optimal"), found.built.recomputed)


def limited(name: str, part: float, **wanted: Any) -> PlanRequest:
    """A request for so much of the memory that the best plan takes, with nothing recomputed: that makes folded plans quick to find."""
    limit_gib = part * planned(module(name), request("2")).predicted.memory_gib.peak
    return request("2", memory_gib=limit_gib, pins=({"recompute": "layers.*", "blocks": 0},), **wanted)


def test_a_better_plan_whose_copies_differ_is_taken_where_memory_allows_it_for_some_only() -> None:
    """All layers replicated take too much, and folding knows only all or none of them."""
    wanted = limited("mlp", 0.9)
    graph = capture_for(*module("mlp"), wanted.options)
    start = problem_of(graph, wanted)
    found = cheapest_overlapped(start, wanted.limit_bytes, 60.0)
    assert found is not None and found.solution.status == "optimal"
    plan = planned(module("mlp"), wanted)
    judge = Judge(start, found, wanted.limit_bytes)
    said = judge.built.choice(decode(plan, graph))
    assert judge.gain(said) > start.problem.tie
    assert plan.predicted.memory_gib.peak * GIB <= wanted.limit_bytes
    assert any("{" in pattern for pattern in plan.params), "layers that agree are named as a range"
    assert dump_plan(parse_plan(dump_plan(plan))) == dump_plan(plan)
    assert plan.solver.folded and plan.solver.gap == 0
    assert plan.solver.unfolded_gap is not None and 0 < plan.solver.unfolded_gap < 1


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_what_is_no_better_stays_as_it_was_folded(name: str) -> None:
    start, found = folded(name, "2x2")
    plan = planned(module(name), REQUESTS["2x2"])
    assert plan.solver == SolverInfo("optimal", 0.0, folded=True, unfolded_gap=0.0)
    assert decode(plan, start.candidates.graph) == start.assignment(found.solution.choice)
    assert not any("{" in pattern for pattern in (*plan.params, *plan.ops, *plan.reshard))


@pytest.mark.parametrize(("name", "part"), [("llama", 1.1), ("mlp", 0.9)])
def test_deciding_for_every_copy_is_never_worse_than_for_all_alike(name: str, part: float) -> None:
    wanted = limited(name, part)
    alike, each = (planned(module(name), replace(wanted, unfold=unfold, time_limit_s=20.0)) for unfold in (False, True))
    assert not each.solver.folded and each.solver.unfolded_gap is None
    assert each.predicted.step_ms <= alike.predicted.step_ms and each.predicted.memory_gib.peak * GIB <= wanted.limit_bytes
    assert (each.solver.status == "optimal") == (each.solver.gap == 0.0)


def test_a_pin_of_one_copy_binds_no_other_where_every_copy_decides_for_itself() -> None:
    pinned = {"params": "layers.2.linear.weight", "store": ["S(0)"], "use": ["R"]}
    plan = planned(module("stack"), replace(REQUESTS["4"], unfold=True, pins=(pinned,)))
    stored = {pattern: (line.store, line.use) for pattern, line in plan.params.items() if pattern.endswith("weight")}
    assert stored["layers.2.linear.weight"] == ((Shard(0),), (R,))
    assert len(set(stored.values())) > 1 and not plan.solver.folded
