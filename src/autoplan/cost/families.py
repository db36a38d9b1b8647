"""Which ops are alike to the cost: the same bytes to move and the same tensors to save."""

from __future__ import annotations

from math import prod

from autoplan.graph.ir import ITEM_BYTES
from autoplan.rules.row import Call, TensorSpec

VIEWS = frozenset(
    "aten." + name
    for name in (
        "view reshape _unsafe_view view_as flatten unflatten transpose permute t numpy_T mT swapaxes swapdims movedim expand expand_as "
        "broadcast_to unsqueeze squeeze detach alias lift_fresh slice select narrow split split_with_sizes chunk tensor_split unbind diagonal"
    ).split()
)
"""Ops whose outputs share their first operand's memory (reshape where its strides allow)."""

CUTS = frozenset("aten." + name for name in "slice select narrow diagonal".split())
"""Views of a part, whose backward fills a tensor of the whole with zeros."""

PIECES = frozenset("aten." + name for name in "split split_with_sizes chunk tensor_split unbind".split())
"""Views of all parts, whose backward puts them together again."""

EXPANSIONS = frozenset("aten." + name for name in "expand expand_as broadcast_to".split())

CASTS = frozenset("aten." + name for name in "to _to_copy type_as float".split())

LINEAR = frozenset(
    "aten." + name
    for name in "add sub rsub neg sum mean cumsum clone contiguous cat stack copy lift_fresh_copy pad constant_pad_nd repeat".split()
)
"""Ops whose gradient needs no saved value (with a scalar, mul and div as well: they have no second operand)."""

NORMS = frozenset(
    "aten." + name
    for name in "rms_norm layer_norm group_norm batch_norm native_layer_norm native_group_norm _native_batch_norm_legit instance_norm _fused_rms_norm".split()
)

OUTPUT_SAVED = frozenset(
    "aten." + name for name in "softmax _softmax log_softmax _log_softmax exp tanh sigmoid sqrt rsqrt relu reciprocal".split()
)
"""Ops whose gradient is computed from their output."""

SOFTMAXES = frozenset("aten." + name for name in "softmax _softmax log_softmax _log_softmax".split())

ATTENTION = "aten.scaled_dot_product_attention"

LOOKUPS = frozenset("aten." + name for name in "index gather index_select take_along_dim".split())

DROPOUTS = frozenset(("aten.dropout", "aten.native_dropout"))


def op_name(op: str) -> str:
    """`aten.linear` of `aten.linear.default`."""
    return op.rsplit(".", 1)[0] if op.count(".") > 1 else op


def spec_bytes(spec: TensorSpec) -> int:
    """Bytes of a tensor of that shape and dtype."""
    return prod(spec.shape) * ITEM_BYTES[spec.dtype]


def is_view(call: Call) -> bool:
    """Whether the outputs share the memory of the first operand: views, casts to the same dtype, dropout that drops nothing."""
    name = op_name(call.op)
    if name in VIEWS:
        return bool(call.operands)
    if not call.operands or not call.outputs:
        return False
    if name in CASTS:
        return (
            call.outputs[0].dtype == call.operands[0].dtype
            and call.outputs[0].shape == call.operands[0].shape
            and not call.kwargs.get("copy")
        )
    return name in DROPOUTS and not drops(call)


def drops(call: Call) -> bool:
    """Whether a dropout is in training and has a positive probability."""
    return float(call.arg(1, "p", 0.5)) > 0.0 and call.arg(2, "train", True) is not False


def needs_backward(call: Call) -> bool:
    """Whether a gradient flows through the call."""
    return any(spec.needs_grad for spec in call.outputs)
