"""Which rows a rule lacks: every combination of placements on one axis of two ranks, tried on real tensors.

A combination is valid if the plain op on the local tensors gives the local tensors of the global result, and its gradient
too. What a local implementation alone could do cannot be found this way.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import product
from typing import Any

import torch
from example_calls import Example
from torch import Tensor

from autoplan.placement import Mesh, P, Partial, Placement, R, Replicate, Shard
from autoplan.rules import Call, Row, rows_of, rule_of
from autoplan.rules.execute import localize
from autoplan.rules.prove import cut_global, example_call, join_local, prove
from autoplan.rules.row import TensorSpec, make_strategy

RANKS = Mesh(("x",), (2,))
UNCHECKED = re.compile(
    r"aten\.(lstm|gru|rnn_tanh|rnn_relu|_?native_batch_norm.*)\..*"  # torch ends the process where their sizes do not go together
    r"|aten\._grouped_mm\..*"  # has no fp64; autoplan.grouped_mm, which has, is under the same rule
)
DRAWS = 8  # a combination that holds for other numbers too is no coincidence
NOBODY: Any = None  # plain ops have nothing to say to other ranks
_CLOSE = 1e-9  # as the prover has it
Parts = Sequence[Tensor]


def missing_rows(example: Callable[[int], Example]) -> list[Row]:
    """The valid rows of a call that its rule does not list; `example(seed)` is the call with other numbers each time.

    Of calls with one operand or none, group counts are tried as well: all that divide.
    """
    first = example(0)
    if UNCHECKED.fullmatch(first.op):
        return []
    call, operands = _call_of(first)
    if len(call.operands) < 2:
        call = _with_every_group(call)
    here = replace(call, axis_size=2)
    listed = rows_of(here)
    found: list[Row] = []
    if listed[0].local:
        return found  # a random op: no rank can do without its local implementation
    for row in _passing_forward(here, operands):
        if not any(_covers(other, row) for other in (*listed, *found)) and _holds(row, example):
            found.append(row)
    return found


def _call_of(example: Example) -> tuple[Call, list[Tensor]]:
    call, operands = example_call(example.op, *example.args, frozen=example.frozen, **example.kwargs)
    return call, operands


def _with_every_group(call: Call) -> Call:
    def hinted(spec: TensorSpec) -> TensorSpec:
        return replace(spec, hints=tuple(frozenset(_group_counts(size)) for size in spec.shape))

    return replace(call, operands=tuple(map(hinted, call.operands)), outputs=tuple(map(hinted, call.outputs)))


def _group_counts(size: int) -> list[int]:
    return [groups for groups in range(1, size // 2 + 1) if size % (2 * groups) == 0]


def _placements(spec: TensorSpec, grouped: bool) -> list[Placement]:
    shards: list[Placement] = [
        Shard(dim, groups)
        for dim, size in enumerate(spec.shape)
        for groups in (_group_counts(size) if grouped else [1])
        if size and size % 2 == 0
    ]
    return [R, *shards, *([P] if spec.is_float else [])]


def _passing_forward(call: Call, operands: Sequence[Tensor]) -> Iterator[Row]:
    """Rows whose forward is right on these operands, those first that do not read an operand (None)."""
    grouped = len(call.operands) < 2
    choices = [_placements(spec, grouped) for spec in call.operands]
    targets = [_placements(spec, grouped) for spec in call.outputs]
    alone = make_strategy((_replicated(call),), (False,), call.operands, call.outputs)
    wanted = _outputs(localize(call, alone, RANKS).run(operands, NOBODY))
    parts = [
        {placement: list(cut_global(x, (placement,), RANKS).values()) for placement in choice} | {None: [x.new_zeros((1,) * x.ndim)] * 2}
        for x, choice in zip(operands, choices, strict=True)
    ]
    rule = rule_of(call.op)
    sized = rule is not None and rule.localize is not None
    for ins in product(*([None, *choice] for choice in choices)):
        local = [part[placement] for part, placement in zip(parts, ins, strict=True)]
        for outs in product(*targets) if sized else [tuple(R for _ in targets)]:
            made = _run(call, Row(ins, outs), local)
            if made is None or any(len(rank) != len(targets) for rank in made):
                continue
            matching = [
                [placement for placement in ([out] if sized else target) if _joins([rank[j] for rank in made], placement, wanted[j])]
                for j, (out, target) in enumerate(zip(outs, targets, strict=True))
            ]
            yield from (Row(ins, found) for found in product(*matching) if not Row(ins, found).is_replicated)


def _replicated(call: Call) -> Row:
    return Row(tuple(R for _ in call.operands), tuple(R for _ in call.outputs))


def _run(call: Call, row: Row, local: Sequence[Parts]) -> list[list[Tensor]] | None:
    """What each rank makes, None where the op refuses."""
    try:
        op = localize(call, make_strategy((row,), (False,), call.operands, call.outputs), RANKS)
        return [_outputs(op.run([parts[rank] for parts in local], NOBODY)) for rank in range(2)]
    except Exception:  # whatever torch raises for shapes that do not go together
        return None


def _outputs(result: Any) -> list[Tensor]:
    return [result] if isinstance(result, Tensor) else [item for item in result if isinstance(item, Tensor)]


def _joins(parts: Parts, placement: Placement, wanted: Tensor) -> bool:
    """Whether the parts are `wanted` under `placement`."""
    if isinstance(placement, Shard):
        size = wanted.shape[placement.dim]
        if parts[0].ndim != wanted.ndim or parts[0].shape[placement.dim] * 2 != size or size % (2 * placement.groups):
            return False
    elif parts[0].shape != wanted.shape or (isinstance(placement, Partial) and not parts[0].is_floating_point()):
        return False
    if isinstance(placement, Replicate):
        return all(_equal(part, wanted) for part in parts)
    whole = join_local({(rank,): part for rank, part in enumerate(parts)}, (placement,), RANKS)
    return _equal(whole, wanted)


def _equal(found: Tensor, wanted: Tensor) -> bool:
    if found.shape != wanted.shape or found.dtype != wanted.dtype:
        return False
    return torch.equal(found, wanted) or (wanted.is_floating_point() and torch.allclose(found, wanted, _CLOSE, _CLOSE, equal_nan=True))


def _covers(listed: Row, row: Row) -> bool:
    """Whether a row says all of another: where it does not read an operand, that may lie anywhere."""
    return listed.outs == row.outs and all(own is None or own == other for own, other in zip(listed.ins, row.ins, strict=True))


def _holds(row: Row, example: Callable[[int], Example]) -> bool:
    """Whether forward and gradient of a row are right for several draws of numbers."""
    for seed in range(DRAWS):
        call, operands = _call_of(example(seed))
        strategy = make_strategy((row,), (False,), call.operands, call.outputs)
        try:
            prove(call, strategy, RANKS, lambda k, operands=operands: operands[k])  # type: ignore[misc]
        except AssertionError:
            return False
    return True
