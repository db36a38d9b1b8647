"""What AOTAutograd's partitioner keeps of a function between forward and backward, and runs again, when torch compiles it on a CPU."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx
from torch._dynamo.backends.common import aot_autograd
from torch._functorch.aot_autograd import make_boxed_func
from torch._functorch.partitioners import min_cut_rematerialization_partition
from torch._inductor.decomposition import select_decomp_table
from torch.utils.checkpoint import checkpoint

_PRODUCTS = frozenset({torch.ops.aten.mm.default, torch.ops.aten.addmm.default, torch.ops.aten.bmm.default})


def kept_by_torch(function: Callable[..., Tensor], inputs: Sequence[Tensor]) -> int:
    """Bytes that the forward of `function(*inputs)` hands to its backward: each storage once, without parameters and integers.

    `inputs` that need a gradient count if they are kept, as what one piece hands to the next.
    """
    shapes = {tuple(tensor.shape) for tensor in inputs if tensor.requires_grad}
    forward, _, outputs = _partitioned(function, inputs)
    returned = next(node for node in forward.graph.nodes if node.op == "output").args[0]
    storages: dict[int, int] = {}
    for node in returned[outputs:]:
        value = node.meta.get("val")
        if isinstance(value, Tensor) and value.is_floating_point() and (node.op != "placeholder" or tuple(value.shape) in shapes):
            storages[value.untyped_storage()._cdata] = value.untyped_storage().nbytes()
    return sum(storages.values())


def repeated_by_torch(function: Callable[..., Tensor], inputs: Sequence[Tensor]) -> int:
    """How many products of `function(*inputs)` run once more in its backward, if it is a checkpoint and compiled."""

    def checkpointed(*given: Tensor) -> Tensor:
        return checkpoint(function, *given, use_reentrant=False)

    backwards = [_partitioned(each, inputs)[1] for each in (checkpointed, function)]
    again, once = (sum(node.target in _PRODUCTS for node in backward.graph.nodes) for backward in backwards)
    return again - once


def _partitioned(function: Callable[..., Tensor], inputs: Sequence[Tensor]) -> tuple[fx.GraphModule, fx.GraphModule, int]:
    """Forward and backward of a compiled function, and how many outputs are its own."""
    found: list[tuple[fx.GraphModule, fx.GraphModule, int]] = []

    def partition(joint: fx.GraphModule, *args: Any, **kwargs: Any) -> Any:
        forward, backward = min_cut_rematerialization_partition(joint, *args, **kwargs)
        found.append((forward, backward, kwargs["num_fwd_outputs"]))
        return forward, backward

    def as_it_is(graph: fx.GraphModule, _: Any) -> Any:
        return make_boxed_func(graph.forward)

    backend = aot_autograd(fw_compiler=as_it_is, bw_compiler=as_it_is, partition_fn=partition, decompositions=select_decomp_table())
    torch._dynamo.reset()
    torch.compile(function, backend=backend, dynamic=False)(*inputs)
    assert len(found) == 1
    return found[0]
