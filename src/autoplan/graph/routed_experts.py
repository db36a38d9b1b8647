"""`autoplan::routed_experts`: a mixture of experts as one op, from tokens with their experts' ids to what the experts made of them.

Between the sort by expert and its undoing, a routed model holds tensors whose order depends on the data: they can neither
be split nor put together by position. As one op all of that is private to whoever runs it, and what is left is a function
of each row for itself: a row of the result depends on the same row of the operands, on its expert's id and on that
expert's weights. What the experts do is the op's `body`, a short program in text.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from autoplan.graph.ir import Ref, map_refs
from autoplan.graph.ops import resolve

ROUTED_EXPERTS = "autoplan.routed_experts"


@dataclass(frozen=True, slots=True)
class Step:
    """One op of a body; a `Ref` in its arguments counts the rows, the weights, the sorted ids, the offsets, then what steps made."""

    op: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    outputs: int


@dataclass(frozen=True, slots=True)
class Body:
    """What is done to rows that are sorted by expert: the last step's first output is the result.

    Its values are numbered: `rows` tensors [N, ..], `weights` tensors, the sorted ids [N], the offsets [experts] at which
    each expert's rows end, then the outputs of the steps.
    """

    rows: int
    weights: int
    steps: tuple[Step, ...]

    @property
    def ids(self) -> int:
        """The number of the sorted ids."""
        return self.rows + self.weights

    @property
    def offsets(self) -> int:
        """The number of the offsets."""
        return self.ids + 1

    def run(self, values: Sequence[Tensor], execute: Callable[[Step, tuple[Any, ...], dict[str, Any]], Sequence[Tensor]]) -> list[Tensor]:
        """All values, given those before the first step; `execute` runs a step on its arguments."""
        found = list(values)
        for step in self.steps:
            args, kwargs = map_refs((step.args, step.kwargs), lambda ref: found[ref.value])
            found.extend(execute(step, args, kwargs))
        return found

    def text(self) -> str:
        """As the op carries it."""
        steps = [[step.op, _plain(step.args), _plain(step.kwargs), step.outputs] for step in self.steps]
        return json.dumps([self.rows, self.weights, steps], separators=(",", ":"), sort_keys=True)


@lru_cache(maxsize=256)
def body_of(text: str) -> Body:
    """The body that an op carries."""
    rows, weights, steps = json.loads(text)
    return Body(rows, weights, tuple(Step(op, _revived(args), _revived(kwargs), outputs) for op, args, kwargs, outputs in steps))


def routed_experts(
    rows: Sequence[Tensor], ids: Tensor, weights: Sequence[Tensor], repeats: Sequence[int], experts: int, body: str
) -> Tensor:
    """Sort by expert, run the body, undo the sort. ids[N] in 0..experts-1; rows[i][N / repeats[i], ..]; the result is [N, ..].

    Row j of `rows[i]` is read by `repeats[i]` neighbouring ids. Weights whose first dim counts experts are read by id.
    """
    order = torch.argsort(ids, stable=True)
    sorted_ids = ids[order]
    program = body_of(body)
    values = [x[order // repeat] if repeat > 1 else x[order] for x, repeat in zip(rows, repeats, strict=True)]
    made = program.run([*values, *weights, sorted_ids, ends(sorted_ids, experts)], call_step)
    return made[-program.steps[-1].outputs][inverse(order)]


def ends(sorted_ids: Tensor, experts: int) -> Tensor:
    """Where each expert's rows end: int32[experts]."""
    return torch.searchsorted(sorted_ids, torch.arange(experts, device=sorted_ids.device, dtype=sorted_ids.dtype), right=True).to(
        torch.int32
    )


def inverse(order: Tensor) -> Tensor:
    """The permutation that undoes `order`."""
    return torch.zeros_like(order).scatter(0, order, torch.arange(order.shape[0], device=order.device))


def call_step(step: Step, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Sequence[Tensor]:
    """The outputs of one step."""
    result = resolve(step.op)(*args, **kwargs)
    return (result,) if isinstance(result, Tensor) else tuple(result)


def _plain(structure: Any) -> Any:
    """Arguments as JSON has them: what JSON lacks is a dict of one key."""
    if isinstance(structure, Ref):
        return {"ref": structure.value}
    if isinstance(structure, torch.dtype):
        return {"dtype": str(structure).removeprefix("torch.")}
    if isinstance(structure, tuple | list):
        return [_plain(item) for item in structure]
    if isinstance(structure, dict):
        return {"dict": {key: _plain(item) for key, item in structure.items()}}
    if structure is None or isinstance(structure, bool | int | float | str):
        return structure
    raise TypeError(f"an argument that a body cannot carry: {structure!r}")


def _revived(structure: Any) -> Any:
    if isinstance(structure, list):
        return tuple(map(_revived, structure))
    if not isinstance(structure, dict):
        return structure
    ((kind, value),) = structure.items()
    if kind == "ref":
        return Ref(value)
    return getattr(torch, value) if kind == "dtype" else {key: _revived(item) for key, item in value.items()}


_LIBRARY = torch.library.Library("autoplan", "DEF")
_LIBRARY.define("routed_experts(Tensor[] rows, Tensor ids, Tensor[] weights, int[] repeats, int experts, str body) -> Tensor")
_LIBRARY.impl("routed_experts", routed_experts, "CompositeImplicitAutograd")
