"""What many rules share: group counts worth trying, broadcast operands, and products of labelled dims."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from autoplan.graph.ir import refs
from autoplan.placement import P, Placement, R, Shard
from autoplan.rules.row import Call, Row, TensorSpec

Labels = Sequence[Hashable]


def groups_of(*places: tuple[TensorSpec, int]) -> tuple[int, ...]:
    """Group counts worth trying where these dims are cut as one: 1, then those that any of them hints at."""
    found = {groups for spec, dim in places for groups in spec.groups(dim)}
    return tuple(sorted(found))


def shards(*places: tuple[TensorSpec, int]) -> Iterator[int]:
    """As `groups_of`, without a dim of size 1, which nothing can cut."""
    if places[0][0].shape[places[0][1]] > 1:
        yield from groups_of(*places)


def aligned(operand: TensorSpec, ndim: int, dim: int, size: int) -> int | None:
    """The operand's own dim that broadcasting puts at `dim` of `ndim`; None where it is missing or stretched to `size`."""
    own = dim - (ndim - operand.ndim)
    return own if own >= 0 and operand.shape[own] == size else None


def shard_or_whole(dim: int | None, groups: int) -> Placement:
    """`S(dim, groups)`, or R where the operand has no such dim."""
    return R if dim is None else Shard(dim, groups)


def normal_dims(dims: Any, ndim: int) -> tuple[int, ...]:
    """`dims` (an int, a list or None for all) counted from the front."""
    if dims is None:
        return tuple(range(ndim))
    return tuple(dim % ndim for dim in ((dims,) if isinstance(dims, int) else dims)) if ndim else ()


def operand_numbers(argument: Any) -> tuple[int, ...]:
    """The operands nested in one argument, in order."""
    return tuple(ref.value for ref in refs(argument))


def index_tensor(indices: Sequence[int], device: torch.device) -> Tensor:
    """The indices that a rank holds as int64[n]."""
    if isinstance(indices, range):
        return torch.arange(indices.start, indices.stop, device=device)
    return torch.tensor(indices, device=device)


def same_dims(call: Call, dims: Iterable[int]) -> Iterator[Row]:
    """Rows that cut the same dim of every operand and every output."""
    for dim in dims:
        specs = (*call.operands, *call.outputs)
        for groups in shards(*((spec, dim) for spec in specs)):
            shard = Shard(dim, groups)
            yield Row(tuple(shard for _ in call.operands), tuple(shard for _ in call.outputs))


def linear_row(call: Call) -> Row:
    """All operands and outputs partial sums: for ops that are linear in all of their operands at once."""
    return Row(tuple(P for _ in call.operands), tuple(P for _ in call.outputs))


def product_rows(
    call: Call, factors: Mapping[int, Labels], output: Labels, addends: Mapping[int, Labels], linear_in: Iterable[int]
) -> Iterator[Row]:
    """Rows of `output = addends + sum over missing labels of the product of factors`, each operand with a label per dim.

    A label of the output is cut wherever it occurs; one that is summed over gives partial sums, to which every addend
    contributes a term of its own. A dim without a label (None) is stretched by broadcasting and stays whole. In each
    factor of `linear_in` the op is linear, so partial sums pass through it.
    """
    labels = dict.fromkeys(label for side in (*factors.values(), output) for label in side if label is not None)
    for label in labels:
        places = [(call.operands[k], side.index(label)) for k, side in {**factors, **addends}.items() if label in side]
        summed = label not in output
        if not summed:
            places.append((call.outputs[0], output.index(label)))
        for groups in shards(*places):
            ins: dict[int, Placement] = {k: _cut_label(side, label, groups) for k, side in factors.items()}
            ins.update({k: P if summed else _cut_label(side, label, groups) for k, side in addends.items()})
            out: Placement = P if summed else _cut_label(output, label, groups)
            yield Row(tuple(ins[k] for k in range(len(call.operands))), (out,))
    for chosen in linear_in:
        yield Row(tuple(P if k == chosen or k in addends else R for k in range(len(call.operands))), (P,))


def _cut_label(side: Labels, label: Hashable, groups: int) -> Placement:
    return Shard(side.index(label), groups) if label in side else R
