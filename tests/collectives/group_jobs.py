"""What worker processes run in the tests of `ProcessGroupCollectives`: each function is one rank's part."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

from autoplan.collectives.process_group import ProcessGroupCollectives
from autoplan.placement import Mesh


def together(kind: str, shapes: list[tuple[int, ...]], mesh: Mesh, axes: tuple[int, ...]) -> tuple[list[Tensor], list[Tensor]]:
    """What one collective of tensors of `shapes` gives, and what one collective for each of them does.

    The tensors differ between ranks and hold whole numbers: sums are exact in any order.
    """
    group = ProcessGroupCollectives(mesh, [axes])
    seeds = (torch.Generator().manual_seed(17 * dist.get_rank() + k) for k in range(len(shapes)))
    tensors = [torch.randint(100, shape, generator=seed).float() for shape, seed in zip(shapes, seeds, strict=True)]
    before = [tensor.clone() for tensor in tensors]
    results = group.wait(group.start(kind, tensors, axes))
    assert all(map(torch.equal, tensors, before)), "an operand was overwritten"
    alone = {"all-gather": group.all_gather, "reduce-scatter": group.reduce_scatter, "all-reduce": group.all_reduce}[kind]
    if kind == "all-gather":
        assert len({result.untyped_storage().data_ptr() for result in results}) == len(results), "gathered tensors share a storage"
    return results, [alone(tensor, axes) for tensor in tensors]
