"""The local program against one device: every rank simulated, decisions random and by hand."""

from __future__ import annotations

import pytest
import torch
from runtime_cases import GPT2, TIED, TINY, Seeded, assign, graph_of, mesh_of, odds, random_assignment, two_uses

from autoplan.assignment import Assignment
from autoplan.assignment.gathers import GatherGroup, gather_groups, step_collectives
from autoplan.assignment.redistributions import redistributions
from autoplan.collectives import SimulatedCollectives, run_simulated
from autoplan.graph import Graph, input_leaves, tensors_of
from autoplan.placement import R_PARTIAL, Placements, R, Shard, forward_of
from autoplan.rules import call_of, strategies_of
from autoplan.runtime.program.program import Program, build_program
from autoplan.runtime.program.run import Run
from autoplan.runtime.shards import local_part
from autoplan.runtime.verify.results import RankResult, Verification
from autoplan.runtime.verify.runs import simulated_run
from autoplan.runtime.verify.undropped import undropped
from autoplan.runtime.verify.verify import verify_assignment

MESHES = ((4,), (2, 2), (1, 4), (2, 3), (2, 2, 2))
WIDER = {"batch": 12, "dim": 48, "ffn_dim": 96, "n_heads": 6, "n_kv_heads": 3, "seq": 12, "vocab_size": 48}
WIDE = Seeded(TINY.factory, {**TINY.settings, **WIDER})  # sizes that 2 and 3 divide


def checked(build: Seeded, assignment: Assignment) -> Verification:
    found = verify_assignment(build, assignment, gather_groups(assignment, {"layers"}))
    assert found.ok, found.to_json() | {"problems": found.problems}
    return found


@pytest.fixture(scope="module")
def llama() -> Graph:
    return graph_of(WIDE)


@pytest.fixture(scope="module")
def gpt2() -> Graph:
    return undropped(graph_of(GPT2))


@pytest.mark.parametrize("shape", MESHES, ids=str)
@pytest.mark.parametrize("seed", range(2))
def test_random_decisions_on_a_llama_give_what_one_device_gives(llama: Graph, shape: tuple[int, ...], seed: int) -> None:
    found = checked(WIDE, random_assignment(llama, mesh_of(*shape), seed))
    assert sum(found.observed.values()) > 50


@pytest.mark.parametrize("shape", MESHES[:3], ids=str)
def test_random_decisions_on_a_gpt2_give_what_one_device_gives(gpt2: Graph, shape: tuple[int, ...]) -> None:
    checked(GPT2, random_assignment(gpt2, mesh_of(*shape), 0))


def test_tied_weights_that_are_used_in_two_ways_get_one_gradient() -> None:
    graph = graph_of(TIED)
    for seed in range(3):
        checked(TIED, random_assignment(graph, mesh_of(2, 2), seed))


def test_gathering_again_in_backward_changes_no_bit_of_a_gradient(llama: Graph) -> None:
    assignment = random_assignment(llama, mesh_of(2, 2), 5)
    runs = []
    for regather in (True, False):
        groups = gather_groups(assignment, {"layers"}, (lambda name: True) if regather else (lambda name: False))
        runs.append((groups, results_of(WIDE, assignment, groups)))
    (again, first), (kept, second) = runs
    assert all(torch.equal(a.gradients[fqn], b.gradients[fqn]) for a, b in zip(first, second, strict=True) for fqn in a.gradients)  # type: ignore[arg-type]
    assert any(group.again for group in again) and not any(group.again for group in kept)
    assert sum(first[0].collectives.values()) > sum(second[0].collectives.values())


def results_of(build: Seeded, assignment: Assignment, groups: tuple[GatherGroup, ...]) -> list[RankResult]:
    return simulated_run(build(), build_program(assignment, groups, "cpu"))


def test_the_parameters_of_a_block_travel_in_one_all_gather_and_their_gradients_in_one_reduce_scatter() -> None:
    build = Seeded(TINY.factory, {**TINY.settings, "batch": 12, "seq": 12, "n_layers": 3})
    graph = graph_of(build)
    assignment = fully_sharded(graph)
    groups = gather_groups(assignment, {"layers"})
    blocks = [group for group in groups if group.kind == "block"]
    assert [group.name for group in blocks] == ["layers.0", "layers.1", "layers.2"]
    for group in blocks:
        assert len(group.members) == 9
        assert [(bucket.kind, bucket.axes) for bucket in group.forward + group.again + group.backward] == [
            ("all-gather", (0,)),
            ("all-gather", (0,)),
            ("reduce-scatter", (0,)),
        ]
    found = checked(build, assignment)
    # embedding, head and norm on their own; blocks gathered twice; the loss summed
    assert found.observed == {"all-gather x": 3 + 3 * 2, "all-reduce x": found.planned["all-reduce x"], "reduce-scatter x": 3 + 3}
    assert found.split_flops_fraction == pytest.approx(1.0)


def fully_sharded(graph: Graph, ranks: int = 4) -> Assignment:
    """Batch and parameters split over all ranks: every node by the strategy that keeps the batch split."""
    mesh = mesh_of(ranks)
    sources = {value.id: (Shard(0),) if value.kind in ("parameter", "input") else (R,) for value in graph.values if value.kind != "op"}
    made: dict[int, Placements] = {}
    made.update({value: (R,) if graph.values[value].kind == "parameter" else state for value, state in sources.items()})
    strategies = []
    for node in graph.nodes:
        wanted = [made[value] for value in node.inputs]
        fitting = [
            strategy
            for strategy in strategies_of(call_of(graph, node), mesh)
            if all(need is None or forward_of(need) == want for need, want in zip(strategy.needs, wanted, strict=True))
            and not any(strategy.partial)
        ]
        assert fitting, node.address
        strategies.append(fitting[0])
        made.update({value: forward_of(state) for value, state in zip(node.outputs, fitting[0].makes, strict=True)})
    return Assignment(graph, mesh, tuple(strategies), sources, ((R,),))


def test_a_value_in_two_states_with_the_same_placements_is_gathered_once(llama: Graph) -> None:
    for seed in range(40):
        assignment = random_assignment(llama, mesh_of(4), seed)
        shared = [r for r in redistributions(assignment) if r.shares is not None]
        if any(r.state == (R_PARTIAL,) or r.state == (R,) for r in shared):
            assert all(not r.forward for r in shared)
            checked(WIDE, assignment)
            return
    raise AssertionError("no such value in forty random assignments")


def test_two_uses_of_a_parameter_travel_on_their_own_and_meet_in_its_gradient() -> None:
    build = Seeded(two_uses)
    graph = graph_of(build)
    for seed in range(6):
        assignment = random_assignment(graph, mesh_of(2, 2), seed)
        checked(build, assignment)


def test_frozen_and_unused_parameters_cost_nothing_backward() -> None:
    build = Seeded(odds, {"p": 0.0})
    graph = undropped(graph_of(build))
    for seed in range(4):
        assignment = random_assignment(graph, mesh_of(2, 2), seed)
        for group in gather_groups(assignment, ()):
            assert not (group.name.startswith("frozen") and group.backward)
            assert group.name != "unused"
        checked(build, assignment)


def test_replicas_drop_the_same_elements_and_steps_different_ones() -> None:
    build = Seeded(odds)
    graph = graph_of(build)
    assignment = assign(graph, mesh_of(2), {}, {})
    program = build_program(assignment, (), "cpu")
    losses = {seed: list(losses_of(build, program, seed)) for seed in (1, 2)}
    assert losses[1][0] == losses[1][1] and losses[2][0] == losses[2][1]
    assert losses[1][0] != losses[2][0]
    assert losses[1] == losses_of(build, program, 1)


def losses_of(build: Seeded, program: Program, seed: int) -> list[float]:
    model = build()
    graph, mesh = program.graph, program.assignment.mesh
    whole = tensors_of(graph, model.module, input_leaves(model.module.forward, model.args, model.kwargs))

    def rank_main(group: SimulatedCollectives) -> float:
        local = {v: local_part(t.detach(), program.assignment.produced[v], mesh, group.coordinate).clone() for v, t in whole.items()}
        return program(Run(group, seed), local)[0].item()

    return run_simulated(mesh, rank_main)


def test_a_program_names_what_it_runs(llama: Graph) -> None:
    assignment = random_assignment(llama, mesh_of(2, 2), 0)
    groups = gather_groups(assignment, {"layers"})
    module = build_program(assignment, groups, "cpu").module
    assert "self.gather_layers_0(run, " in module.code
    order = [module.code.index(f"{name} = self.{name}(run") for name in ("until_layers_0", "layers_0", "layers_1", "rest")]
    assert order == sorted(order)
    assert module.code.index("gather_layers_0 =") < order[1] < module.code.index("gather_layers_1 =")
    layer = module.layers_0.function.forward.code
    assert "attn_wq_linear = torch._C._nn.linear(" in layer


def test_planned_collectives_are_known_without_running(llama: Graph) -> None:
    assignment = random_assignment(llama, mesh_of(2, 3), 1)
    groups = gather_groups(assignment, {"layers"})
    planned = step_collectives(assignment, groups)
    assert all(result.collectives == planned for result in results_of(WIDE, assignment, groups))


def test_copies_of_a_layer_that_are_split_alike_share_one_function() -> None:
    build = Seeded(TINY.factory, {**TINY.settings, "batch": 12, "seq": 12, "n_layers": 4})
    assignment = fully_sharded(graph_of(build))
    program = build_program(assignment, gather_groups(assignment, {"layers"}), "cpu")
    pieces = [program.module.get_submodule(f"layers_{index}") for index in range(4)]
    assert len({id(piece.function) for piece in pieces}) == 1 and len(program.functions) == 3
    assert len({piece.first for piece in pieces}) == 4
