"""Which ops are alike to the cost: the same bytes to move and the same tensors to save."""

from __future__ import annotations

from math import prod

from autoplan.graph.ir import ITEM_BYTES
from autoplan.rules.row import Call, TensorSpec


def _aten(names: str) -> frozenset[str]:
    return frozenset(f"aten.{name}" for name in names.split())


VIEWS = _aten(
    "view reshape _unsafe_view view_as flatten unflatten transpose permute t numpy_T mT swapaxes swapdims movedim expand expand_as "
    "broadcast_to unsqueeze squeeze detach alias lift_fresh slice select narrow split split_with_sizes chunk tensor_split unbind diagonal"
)
"""Ops whose outputs share their first operand's memory (reshape where its strides allow)."""

CUTS = _aten("slice select narrow diagonal")
"""Views of a part, whose backward fills a tensor of the whole with zeros."""

PIECES = _aten("split split_with_sizes chunk tensor_split unbind")
"""Views of all parts, whose backward puts them together again."""

EXPANSIONS = _aten("expand expand_as broadcast_to")

CASTS = _aten("to _to_copy type_as float")

RESAMPLING = _aten(
    "upsample_nearest1d upsample_nearest2d upsample_nearest3d upsample_linear1d upsample_bilinear2d upsample_bicubic2d upsample_trilinear3d "
    "pixel_shuffle pixel_unshuffle channel_shuffle im2col col2im roll flip repeat_interleave"
)

LINEAR = RESAMPLING | _aten("add sub rsub neg sum mean cumsum clone contiguous cat stack copy lift_fresh_copy pad constant_pad_nd repeat")
"""Ops whose gradient needs no saved value."""

BATCH_NORMS = _aten("batch_norm native_batch_norm _native_batch_norm_legit _native_batch_norm_legit_functional")

NORMS = BATCH_NORMS | _aten("rms_norm layer_norm group_norm instance_norm native_layer_norm native_group_norm _fused_rms_norm")

OUTPUT_SAVED = _aten("softmax _softmax log_softmax _log_softmax exp tanh sigmoid sqrt rsqrt relu reciprocal")
"""Ops whose gradient is computed from their output."""

SOFTMAXES = _aten("softmax _softmax log_softmax _log_softmax")

LOOKUPS = _aten("index gather index_select take_along_dim")

GROUPED_PRODUCTS = frozenset({"aten._grouped_mm", "autoplan.grouped_mm", "transformers.grouped_mm_fallback"})

DROPOUTS = _aten("dropout native_dropout")

ATTENTION = "aten.scaled_dot_product_attention"


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


def mask_size(call: Call) -> int:
    """How many numbers the mask of a dropout has; 0 for other calls."""
    return prod(call.operands[0].shape) if op_name(call.op) in DROPOUTS and drops(call) else 0


def splits_classes(call: Call) -> bool:
    """Whether a cross-entropy has a part of the classes of its logits."""
    if op_name(call.op) != "aten.cross_entropy_loss":
        return False
    logits = call.operands[0]
    classes = 1 if logits.ndim > 1 else 0
    return logits.shape[classes] < call.uncut_shape(0)[classes]


def needs_backward(call: Call) -> bool:
    """Whether a gradient flows through the call."""
    return any(spec.needs_grad for spec in call.outputs)
