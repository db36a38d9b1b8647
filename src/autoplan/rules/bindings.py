"""Ops by their bindings in Python: the same call for a third to a half less of the host.

`torch.ops.aten.mul.Tensor(x, y)` brings every argument into the form of the op's schema, in 2.8 us on a CPU where `torch.mul(x, y)`
takes 1.9 (view 3.3 and 2.1, linear 7.2 and 5.3, layer_norm 6.0 and 3.5; torch 2.13, 2026-12-01): an eager step of a small model is some
hundreds of such calls. Where a binding takes the arguments of the schema, in their order and with the same defaults, it is named here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch._C import _nn

_OF = {
    torch: (
        "add.Tensor sub.Tensor mul.Tensor div.Tensor neg.default rsqrt.default exp.default tanh.default sigmoid.default relu.default "
        "cos.default pow.Tensor_Scalar mean.dim sum.dim_IntList softmax.int "
        "mm.default bmm.default matmul.default addmm.default baddbmm.default embedding.default layer_norm.default rms_norm.default "
        "cat.default stack.default split_with_sizes.default split.Tensor chunk.default "
        "reshape.default transpose.int permute.default unsqueeze.default squeeze.dim select.int flatten.using_ints"
    ),
    _nn: "linear.default silu.default gelu.default scaled_dot_product_attention.default",
    Tensor: "view.default expand.default",
}
"""Ops of ATen by where their bindings are, which have the op's name."""


def _bindings() -> Iterator[tuple[str, Callable[..., Any]]]:
    for place, names in _OF.items():
        for name in names.split():
            yield f"aten.{name}", getattr(place, name.partition(".")[0])


BINDINGS = dict(_bindings())
"""By op, what stands for it in Python."""
