"""Several tensors as one flat buffer: what goes into a collective, and how the tensors come out of its result."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

Finish = Callable[[list[Tensor]], list[Tensor]]
"""Takes the one result, gives that of every tensor."""


def joined_for_all_gather(tensors: Sequence[Tensor], n: int) -> tuple[Tensor, Finish]:
    """[m, ...] each -> one flat; every rank's row of the result has a column range for each: [n * m, ...]."""
    sizes, shapes = [tensor.numel() for tensor in tensors], [tensor.shape for tensor in tensors]

    def finish(results: list[Tensor]) -> list[Tensor]:
        columns = results[0].view(n, -1).split(sizes, 1)
        return [
            column.clone(memory_format=torch.contiguous_format).view(n * shape[0], *shape[1:])
            for column, shape in zip(columns, shapes, strict=True)
        ]

    return torch.cat([tensor.reshape(-1) for tensor in tensors]), finish


def joined_for_reduce_scatter(tensors: Sequence[Tensor], n: int) -> tuple[Tensor, Finish]:
    """[n * m, ...] each -> a row for every rank with a column range for each; the result has a range for each: [m, ...]."""
    shapes = [(tensor.shape[0] // n, *tensor.shape[1:]) for tensor in tensors]
    sizes = [tensor.numel() // n for tensor in tensors]

    def finish(results: list[Tensor]) -> list[Tensor]:
        return [part.view(shape) for part, shape in zip(results[0].split(sizes), shapes, strict=True)]

    return torch.cat([tensor.reshape(n, -1) for tensor in tensors], 1).view(-1), finish


def joined_for_all_reduce(tensors: Sequence[Tensor]) -> tuple[Tensor, Finish]:
    """A copy of all, which may be overwritten by their sums."""
    sizes, shapes = [tensor.numel() for tensor in tensors], [tensor.shape for tensor in tensors]

    def finish(results: list[Tensor]) -> list[Tensor]:
        return [part.view(shape) for part, shape in zip(results[0].split(sizes), shapes, strict=True)]

    return torch.cat([tensor.reshape(-1) for tensor in tensors]), finish


JOINED = {"all-gather": joined_for_all_gather, "reduce-scatter": joined_for_reduce_scatter}
