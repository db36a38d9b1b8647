"""Tiny models, random decisions about them, and the plans that say so."""

from __future__ import annotations

from functools import cache
from random import Random
from types import ModuleType

from torch import nn

from autoplan.assignment import Assignment
from autoplan.cost.hardware import load_hardware
from autoplan.graph import Graph, capture, classes
from autoplan.models import gpt2, llama
from autoplan.placement import parse_mesh
from autoplan.plan import dump_plan, parse_plan
from autoplan.plan.schema import Options, Plan, SolverInfo
from autoplan.planner.candidates import Candidates, enumerate_candidates
from autoplan.planner.emit import ModelFacts, emit
from autoplan.planner.pipeline import PlanRequest
from autoplan.planner.random_plans import fold, random_assignment

Settings = tuple[tuple[str, int], ...]
LLAMA = (("dim", 24), ("n_layers", 2), ("n_heads", 6), ("n_kv_heads", 3), ("ffn_dim", 48), ("vocab_size", 48), ("batch", 12), ("seq", 12))
GPT2 = (("dim", 24), ("n_layers", 2), ("n_heads", 6), ("vocab_size", 48), ("batch", 12), ("seq", 12))
MODELS: dict[str, tuple[ModuleType, Settings]] = {"llama": (llama, LLAMA), "gpt2": (gpt2, GPT2)}


@cache
def model_of(name: str, changes: Settings = ()) -> tuple[nn.Module, Graph]:
    factory, settings = MODELS[name]
    module, args, kwargs = factory.build(**(dict(settings) | dict(changes)))
    return module, capture(module, args, kwargs, mode="train")


@cache
def candidates_of(name: str, mesh: str, changes: Settings = ()) -> Candidates:
    _, graph = model_of(name, changes)
    return enumerate_candidates(graph, parse_mesh(mesh), fold(graph))


def random_of(name: str, mesh: str, seed: int, changes: Settings = ()) -> Assignment:
    """Random decisions, the same for all copies of a block."""
    _, graph = model_of(name, changes)
    return random_assignment(graph, parse_mesh(mesh), seed, candidates=candidates_of(name, mesh, changes))


def unfolded_of(name: str, mesh: str, seed: int) -> Assignment:
    """Random decisions, others for each copy of a block."""
    _, graph = model_of(name)
    folded, every = candidates_of(name, mesh), classes(graph, ())
    random = Random(seed)
    node_class, value_class = folded.classes.node_class, folded.classes.value_class
    assert len(every.node_representatives) == len(graph.nodes)
    strategies = tuple(random.choice(folded.strategies[node_class[node.id]]) for node in graph.nodes)
    sources = {value.id: random.choice(folded.sources[value_class[value.id]]) for value in graph.values if value.kind != "op"}
    return Assignment(graph, folded.mesh, strategies, sources, tuple(random.choice(states) for states in folded.outputs))


def plan_of(name: str, assignment: Assignment, changes: Settings = ()) -> Plan:
    module, _ = model_of(name, changes)
    request = PlanRequest(assignment.mesh, load_hardware("test-free-links"), Options(precision="fp32"))
    return emit(assignment, ModelFacts.of(module, f"autoplan.models.{name}:build", {}), request, SolverInfo("random"))


def written(plan: Plan) -> Plan:
    """The plan as a file says it."""
    return parse_plan(dump_plan(plan))
