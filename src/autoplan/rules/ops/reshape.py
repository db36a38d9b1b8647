"""Views that keep the order of the elements: view, reshape, flatten, unflatten, squeeze, unsqueeze."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from typing import Any

from autoplan.placement import P, Shard
from autoplan.rules.registry import Shapes, rule
from autoplan.rules.row import Call, Row, TensorSpec

Side = tuple[tuple[int, int, int], ...]  # the dims of one side of a factor: (dim, size, product of the sizes before it)


def _as_reshape(call: Call, shapes: Shapes) -> tuple[tuple[Any, ...], dict[str, Any]]:
    return (call.args[0], shapes[0]), {}


@rule(
    "aten.view", "aten.reshape", "aten._unsafe_view", "aten.flatten", "aten.unflatten", "aten.squeeze", "aten.unsqueeze", "aten._reshape_alias",
    "aten.view_as", "aten.reshape_as", "aten.ravel", "aten.atleast_1d", "aten.atleast_2d",
    localize=_as_reshape,
    runs_as="aten.reshape.default",
)  # fmt: skip
def reshape(call: Call) -> Iterator[Row]:
    """x -> y of another shape, elements in the same order

    x          y
    S(d,g)  -> S(e,h)    where both are the same cut of the elements: of the factor of the shape that d and e belong to,
                         the product of sizes before d times g equals that before e times h
    P       -> P

    [B, T, D] -> [B*T, D] has S(1) -> S(0,B), [B, T, H*E] -> [B, T, H, E] has S(2) -> S(2), both ways. One of g, h is 1,
    or the dim is untouched: a regrouped group is of no use to anyone. The view runs as `reshape` to the local shape: a
    local tensor may be laid out in another way than the global one, so that a plain view of it need not exist.
    """
    x, y = call.operands[0], call.outputs[0]
    lenders = (None,) * (len(call.operands) - 1)
    for left, right in _factors(x.shape, y.shape):
        for before in sorted(_cuts(left, x) | _cuts(right, y)):
            for source in _at(left, before):
                for target in _at(right, before):
                    if 1 in (source.groups, target.groups) or len(left) == len(right) == 1:
                        yield Row((source, *lenders), (target,))
    yield Row((P, *lenders), (P,))


def _cuts(side: Side, spec: TensorSpec) -> set[int]:
    """How many pieces precede each other before the cut dim is reached, for every cut worth trying."""
    return {before * groups for dim, _, before in side for groups in spec.groups(dim)}


def _at(side: Side, pieces: int) -> Iterator[Shard]:
    """The shards (at most one that divides) which cut each of `pieces` equal pieces of the factor."""
    for dim, size, before in side:
        if pieces % before == 0 and size % (pieces // before) == 0 and size > pieces // before:
            yield Shard(dim, pieces // before)


@lru_cache(maxsize=4096)
def _factors(left: tuple[int, ...], right: tuple[int, ...]) -> tuple[tuple[Side, Side], ...]:
    """The finest split of both shapes into consecutive dims with equal products; dims of size 1 belong to none."""
    factors = []
    i = j = 0
    if 0 in left:
        return ()
    while i < len(left) or j < len(right):
        a: list[tuple[int, int, int]] = []
        b: list[tuple[int, int, int]] = []
        m = n = 1
        while not a and not b or m != n:
            if (m <= n and i < len(left)) or j == len(right):
                if left[i] > 1:
                    a.append((i, left[i], m))
                m *= left[i]
                i += 1
            else:
                if right[j] > 1:
                    b.append((j, right[j], n))
                n *= right[j]
                j += 1
            if i == len(left) and j == len(right):
                break
        if a and b:
            factors.append((tuple(a), tuple(b)))
    return tuple(factors)


@rule("aten.view.dtype")
def reinterpret(call: Call) -> Iterator[Row]:
    """The same bytes as another dtype

    x          y
    S(d,g)  -> S(d,g)    any dim but the last
    """
    for dim in range(call.operands[0].ndim - 1):
        for groups in call.operands[0].groups(dim):
            yield Row((Shard(dim, groups),), (Shard(dim, groups),))
