"""The prover as a fixture, and what it proved as a line at the end."""

from __future__ import annotations

import random
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch

from autoplan.placement import Mesh
from autoplan.rules import Call, strategies_of
from autoplan.rules.prove import example_call, prove

PROVED: dict[str, Any] = {"ops": set(), "rows": set(), "cases": 0}
ONE_AXIS = ((2,), (3,))
TWO_AXES = ((2, 2), (2, 3))
Prove = Callable[..., int]


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> Iterator[None]:
    """Tensors here are tiny: several threads would only wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def _seeded() -> Iterator[None]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


@pytest.fixture(scope="session")
def prove_op() -> Prove:
    """`prove_strategies`, as a fixture."""
    return prove_strategies


def prove_strategies(
    op: str,
    *args: Any,
    frozen: Collection[int] = (),
    hints: dict[int, dict[int, int]] | None = None,
    meshes: Sequence[tuple[int, ...]] = ONE_AXIS + TWO_AXES,
    limit: int = 60,
    in_double: bool = True,
    **kwargs: Any,
) -> int:
    """Prove all strategies on each mesh, or `limit` of them drawn at random; how many of them split the work.

    `hints[k][dim]` is a group count worth trying for operand k (outputs count on from the operands).
    """
    call, operands = example_call(op, *args, frozen=frozen, **kwargs)
    call = with_hints(call, hints or {})
    splitting = 0
    for shape in meshes:
        mesh = Mesh(tuple("xyz"[: len(shape)]), shape)
        strategies = strategies_of(call, mesh)
        if len(strategies) > limit:
            strategies = tuple(random.Random(0).sample(strategies, limit))
        for strategy in strategies:
            prove(call, strategy, mesh, lambda k: operands[k], in_double=in_double)
            PROVED["rows"].update((op, str(row)) for row in strategy.rows)
            splitting += not all(row.is_replicated for row in strategy.rows)
        PROVED["cases"] += len(strategies)
    PROVED["ops"].add(op)
    return splitting


def with_hints(call: Call, hints: dict[int, dict[int, int]]) -> Call:
    """The call with group counts worth trying for dims of its operands, counted through to its outputs."""
    specs = [*call.operands, *call.outputs]
    for k, groups in hints.items():
        specs[k] = replace(specs[k], hints=tuple(frozenset({groups.get(dim, 1)}) for dim in range(specs[k].ndim)))
    return replace(call, operands=tuple(specs[: len(call.operands)]), outputs=tuple(specs[len(call.operands) :]))


def pytest_terminal_summary(terminalreporter: Any) -> None:
    if PROVED["cases"]:
        terminalreporter.write_line(f"prover: {len(PROVED['ops'])} ops, {len(PROVED['rows'])} rows, {PROVED['cases']} cases")
