"""CUDA graphs: which programs may be replayed."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from runtime_cases import GPT2, TINY, Seeded, graph_of, mesh_of, random_assignment
from test_program import fully_sharded

from autoplan.assignment import Assignment
from autoplan.assignment.gathers import gather_groups
from autoplan.errors import UsageError
from autoplan.models import gpt2
from autoplan.runtime.held import Held
from autoplan.runtime.program.program import build_program
from autoplan.runtime.program.replay import check_replayable

CUDA, CPU = torch.device("cuda"), torch.device("cpu")


def check(build: Seeded, assignment: Assignment, device: torch.device = CUDA, dtype: torch.dtype = torch.float32) -> None:
    program = build_program(assignment, gather_groups(assignment, {"layers"}), "cpu")
    check_replayable(program, Held(build().module.to(dtype)).now(), device)


def test_parameters_that_are_used_as_stored_can_be_replayed() -> None:
    check(TINY, random_assignment(graph_of(TINY), mesh_of(1), 0))


def test_a_cpu_has_no_cuda_graphs() -> None:
    with pytest.raises(UsageError, match="this is cpu"):
        check(TINY, random_assignment(graph_of(TINY), mesh_of(1), 0), CPU)


def test_what_draws_random_numbers_is_named_and_not_replayed() -> None:
    with pytest.raises(UsageError, match=r"aten.dropout.default, aten.scaled_dot_product_attention.default: .* in every step"):
        check(GPT2, random_assignment(graph_of(GPT2), mesh_of(1), 0))
    settings: dict[str, Any] = {**GPT2.settings, "dropout": 0.0}
    undropped = Seeded(gpt2.build, settings)
    check(undropped, random_assignment(graph_of(undropped), mesh_of(1), 0))


def test_gathered_parameters_are_not_replayed() -> None:
    with pytest.raises(UsageError, match=r"embed.weight and \d more: parameters that are gathered or cast"):
        check(TINY, fully_sharded(graph_of(TINY)))


def test_masters_of_another_dtype_are_not_replayed() -> None:
    graph = graph_of(TINY, torch.bfloat16)
    assignment = random_assignment(graph, mesh_of(2), 0)
    check(TINY, random_assignment(graph, mesh_of(1), 0))  # cast inside of what is compiled
    with pytest.raises(UsageError, match="gathered or cast"):
        check(TINY, assignment)
