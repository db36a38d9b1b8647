"""Grouped shards in checkpoints: DTensor knows them as one chunk that they are not, so they are written box by box."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, MetadataIndex, TensorProperties
from torch.distributed.checkpoint.planner import TensorWriteData, WriteItem, WriteItemType
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.placement_types import _StridedShard

from autoplan.runtime.storage.boxes import boxes_of


def in_chunks(tensor: Tensor) -> Tensor:
    """The tensor as torch.distributed.checkpoint can write it and read it in place, without collectives."""
    if isinstance(tensor, DTensor) and any(isinstance(placement, _StridedShard) for placement in tensor.placements):
        return _InBoxes(tensor)
    return tensor


class _InBoxes(Tensor):
    """Stands for a DTensor in a state dict: its size, and for each box a chunk that is a view of its local part.

    The three methods are torch's protocol for tensors that know their chunks (torch.distributed._checkpointable).
    """

    _source: DTensor

    @staticmethod
    def __new__(cls, source: DTensor) -> _InBoxes:
        made = Tensor._make_wrapper_subclass(cls, source.shape, dtype=source.dtype, device=source.device)  # type: ignore[attr-defined]
        made._source = source
        return made

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]
        raise NotImplementedError(f"{func}: it stands for a tensor and computes nothing")

    def __create_write_items__(self, name: str, _: object) -> list[WriteItem]:
        properties = TensorProperties.create_from_tensor(self._source.to_local())
        return [
            WriteItem(
                index=MetadataIndex(name, chunk.offsets),
                type=WriteItemType.SHARD,
                tensor_data=TensorWriteData(chunk=chunk, properties=properties, size=self._source.shape),
            )
            for chunk in self.__create_chunk_list__()
        ]

    def __create_chunk_list__(self) -> list[ChunkStorageMetadata]:
        return [ChunkStorageMetadata(torch.Size(box.start), torch.Size(box.size)) for box in boxes_of(self._source)]

    def __get_tensor_shard__(self, index: MetadataIndex) -> Tensor:
        box = next(box for box in boxes_of(self._source) if torch.Size(box.start) == index.offset)
        return self._source.to_local()[box.local]
