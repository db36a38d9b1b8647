"""Files of a model as it was published, seen as transformers makes them into tensors of the class that it has now. Read slice by slice."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import accumulate

import torch
from torch import Tensor, nn

from autoplan.hf import Made, published_form
from autoplan.runtime.storage.tensor_files import Index, Stored


def as_published(module: nn.Module, stored: Mapping[str, Stored]) -> dict[str, Stored]:
    """The tensors of a file under the names and in the shapes of `module`, if transformers would make them so of others; else none."""
    made = published_form(module, stored)
    if all(name == how for name, how in made.items()):
        return {}
    return {name: _tensor(how, stored) for name, how in made.items()}


def _tensor(how: str | Made, stored: Mapping[str, Stored]) -> Stored:
    if isinstance(how, str):
        return stored[how]
    parts = [_tensor(part, stored) for part in how.parts]
    return stacked(parts, how.dim) if how.stacks else joined(parts, how.dim)


def stacked(parts: Sequence[Stored], dim: int) -> Stored:
    """Tensors of one shape as one with a further dim, of which only those parts are read that are asked for."""
    shape = parts[0].shape

    def read(index: Index) -> Tensor:
        others = (*index[:dim], *index[dim + 1 :])
        chosen = parts[index[dim]]
        return (
            torch.stack([part.read(others) for part in chosen], dim) if chosen else parts[0].read(others).unsqueeze(dim).narrow(dim, 0, 0)
        )

    return Stored((*shape[:dim], len(parts), *shape[dim:]), read)


def joined(parts: Sequence[Stored], dim: int) -> Stored:
    """Tensors one after the other along `dim`."""
    sizes = [part.shape[dim] for part in parts]
    starts = list(accumulate(sizes, initial=0))

    def read(index: Index) -> Tensor:
        begin, end, _ = index[dim].indices(starts[-1])
        own = [slice(max(0, begin - start), min(size, end - start)) for start, size in zip(starts, sizes, strict=False)]
        some = [(part, rows) for part, rows in zip(parts, own, strict=True) if rows.start < rows.stop] or [(parts[0], slice(0, 0))]
        pieces = [part.read((*index[:dim], rows, *index[dim + 1 :])) for part, rows in some]
        return torch.cat(pieces, dim)

    shape = parts[0].shape
    return Stored((*shape[:dim], starts[-1], *shape[dim + 1 :]), read)
