"""In-place ops as functional ones: what an op would have returned, and what the tensors it writes through become."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch._ops import OpOverload

from autoplan.errors import TargetError
from autoplan.graph.draft import Draft, Place
from autoplan.graph.ir import Ref
from autoplan.graph.ops import bind, op_name, short_name

aten = torch.ops.aten

# Functional forms that torch names differently; all others lose their underscore and keep their overload.
_RENAMED = {
    "bernoulli_.float": aten.bernoulli.p,
    "normal_.default": aten.normal_functional.default,
}
_CHANGES_METADATA = frozenset(
    {"resize_", "resize_as_", "set_", "as_strided_", "squeeze_", "unsqueeze_", "transpose_", "t_", "swapaxes_", "swapdims_", "rename_"}
)
_RESHAPES = frozenset(
    {
        "view",
        "_unsafe_view",
        "reshape",
        "flatten",
        "unflatten",
        "squeeze",
        "unsqueeze",
        "contiguous",
        "alias",
        "view_as",
        "reshape_as",
        "to",
        "_reshape_alias",
    }
)


def is_in_place(target: OpOverload) -> bool:
    """Whether the op writes to its first argument and returns it: `add_`, `copy_`, `masked_fill_`, ..."""
    return short_name(target).endswith("_") and not short_name(target).endswith("__") and target._schema.is_mutable


def functional_value(draft: Draft, target: OpOverload, args: Sequence[Any], kwargs: dict[str, Any], place: Place, *, grad: bool) -> int:
    """The value that the first argument of an in-place op has after it, as the result of functional ops.

    The result keeps the shape and dtype of that argument, as writing in place does. `copy_` of an equal shape and dtype
    needs no op at all. Raises TargetError for an op without a functional form.
    """
    name, written = short_name(target), args[0].value
    if name == "copy_":
        return _like(draft, args[1].value, written, place, grad)
    if name == "fill_" and isinstance(args[1], Ref):
        return _like(draft, args[1].value, written, place, grad)
    if name == "fill_":
        return draft.emit(aten.full_like.default, args[:2], {}, place, grad=grad)[0]
    if name == "zero_":
        return draft.emit(aten.zeros_like.default, args[:1], {}, place, grad=grad)[0]
    result = draft.emit(_functional(target, place), args, kwargs, place, grad=grad)[0]
    return _like(draft, result, written, place, grad)


def write_back(
    draft: Draft, view: OpOverload, args: Sequence[Any], kwargs: dict[str, Any], changed: int, place: Place, *, grad: bool
) -> int:
    """What `view`'s first argument becomes when its result is overwritten by the value `changed`.

    Raises TargetError for a view that cannot be written through.
    """
    base = args[0]
    bound = bind(view, tuple(args), kwargs)
    name = short_name(view)

    def emit(target: OpOverload, *call: Any) -> int:
        return draft.emit(target, call, {}, place, grad=grad)[0]

    if name == "slice":
        return emit(aten.slice_scatter.default, base, Ref(changed), bound["dim"], bound["start"], bound["end"], bound["step"])
    if name == "select":
        return emit(aten.select_scatter.default, base, Ref(changed), bound["dim"], bound["index"])
    if name == "diagonal":
        return emit(aten.diagonal_scatter.default, base, Ref(changed), bound["offset"], bound["dim1"], bound["dim2"])
    if name == "transpose":
        return emit(aten.transpose.int, Ref(changed), bound["dim0"], bound["dim1"])
    if name == "t":
        return emit(aten.t.default, Ref(changed))
    if name == "permute":
        dims = [dim % len(bound["dims"]) for dim in bound["dims"]]
        return emit(aten.permute.default, Ref(changed), tuple(dims.index(i) for i in range(len(dims))))
    if name in _RESHAPES:
        return emit(aten.reshape.default, Ref(changed), tuple(draft.values[base.value].example.shape))
    raise refusal(f"in-place op on a view that {op_name(view)} makes", place)


def refusal(what: str, place: Place) -> TargetError:
    """An in-place op that has no functional form here, with the remedy."""
    return TargetError(what, where=place.source, next_step="write it without in-place ops, or call .clone() on the tensor first")


def _functional(target: OpOverload, place: Place) -> OpOverload:
    key = f"{short_name(target)}.{target._overloadname}"
    if key in _RENAMED:
        return _RENAMED[key]
    packet = getattr(getattr(torch.ops, target.namespace), short_name(target)[:-1], None)
    if short_name(target) in _CHANGES_METADATA or packet is None or target._overloadname not in packet.overloads():
        raise refusal(f"in-place op {op_name(target)} has no functional form", place)
    return getattr(packet, target._overloadname)


def _like(draft: Draft, value: int, written: int, place: Place, grad: bool) -> int:
    have, want = draft.values[value].example, draft.values[written].example
    if have.dtype != want.dtype:
        value = draft.emit(aten.to.dtype, (Ref(value), want.dtype), {}, place, grad=grad)[0]
    if have.shape != want.shape:
        value = draft.emit(aten.expand.default, (Ref(value), tuple(want.shape)), {}, place, grad=grad)[0]
    return value
