"""Weights of a parallel module: drawn where they lie, a shard at a time; read from files of whole tensors, and written to one."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, Shard

from autoplan.errors import UsageError
from autoplan.runtime.ranks.agreement import on_rank_0
from autoplan.runtime.storage.boxes import boxes_of
from autoplan.runtime.storage.matching import first_names, matched, whole_tensors
from autoplan.runtime.storage.published import as_published
from autoplan.runtime.storage.tensor_files import SAFETENSORS, TORCH_SUFFIXES, SafetensorsWriter, Spec, Stored, aligned, open_tensors

INIT_STD = 0.02  # as GPT-2 and Llama start


def initialize(module: nn.Module, seed: int) -> None:
    """Normal matrices of std 0.02, vectors one (weights, as norms have) or zero (biases).

    Every parameter's numbers follow from `seed`, its FQN and where the shard lies, so replicas agree and a run repeats.
    """
    for fqn, parameter in module.named_parameters():
        with torch.no_grad():
            local = _local(parameter)
            if parameter.dim() < 2:
                local.fill_(0.0 if fqn.endswith("bias") else 1.0)
            else:
                text = f"{seed} {fqn} {_shard_coordinate(parameter)}"
                number = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1
                local.normal_(0.0, INIT_STD, generator=torch.Generator(local.device).manual_seed(number))


def _shard_coordinate(parameter: nn.Parameter) -> tuple[int, ...]:
    """This rank's index on the axes that cut the parameter, 0 on others."""
    if not isinstance(parameter, DTensor):
        return ()
    coordinate = parameter.device_mesh.get_coordinate() or ()
    return tuple(
        index if isinstance(placement, Shard) or placement.is_shard() else 0
        for index, placement in zip(coordinate, parameter.placements, strict=True)
    )


@torch.no_grad()
def load_weights(
    module: nn.Module, weights: str | os.PathLike[str] | Mapping[str, Tensor], *, rename: Callable[[str], str | None] | None = None
) -> int:
    """Fill a module, parallel or not, from whole tensors; each rank reads its own parts. How many bytes this rank read.

    `weights` is a safetensors file, a folder of them as Hugging Face publishes models, a state dict that `torch.save` wrote, or one in
    memory. Values are cast to the dtype that they have here; what transformers would rename or put together for this class is so here.
    Every parameter and persistent buffer must be there and nothing else: raises PlanError that lists all that differs, before anything
    is changed, TargetError for files that cannot be read. `rename` gives the FQN of a name in `weights`, None for what is not to be read.
    """
    read_bytes = 0
    with _in_memory(weights) if isinstance(weights, Mapping) else open_tensors(weights) as stored:
        if rename is None and (published := as_published(module, stored)):
            stored = published
        name_of_all = "the state dict" if isinstance(weights, Mapping) else str(weights)
        source = matched(module, {name: tensor.shape for name, tensor in stored.items()}, name_of_all, rename)
        for name, tensor in whole_tensors(module).items():
            local = _local(tensor)
            for box in boxes_of(tensor):
                part = stored[source[name]].read(box.whole)
                local[box.local].copy_(part)
                read_bytes += part.nbytes
    return read_bytes


def _in_memory(tensors: Mapping[str, Tensor]) -> contextlib.nullcontext[dict[str, Stored]]:
    return contextlib.nullcontext({name: Stored(tuple(tensor.shape), tensor.__getitem__) for name, tensor in tensors.items()})


@torch.no_grad()
def export_weights(module: nn.Module, path: str | os.PathLike[str], *, dtype: torch.dtype | None = None) -> None:
    """Write a module's parameters and persistent buffers, whole, to one safetensors file or (`.pt`) one state dict of torch.save.

    All ranks call this; one parameter after another is gathered, and rank 0 writes it, aside until all of it is there. Of a `.pt`
    file rank 0 holds all on the CPU first. Tied parameters are there once in safetensors, under each name in `.pt`. `dtype`
    casts those that are floating point. Raises UsageError for a file of another kind, or one that cannot be written.
    """
    place = check_export(path)
    aside = _aside(place)
    tensors = whole_tensors(module)
    specs = aligned([Spec(name, tensor.shape, _exported_dtype(tensor, dtype)) for name, tensor in tensors.items()])
    writer = SafetensorsWriter(aside, specs) if place.suffix == SAFETENSORS else None
    on_rank_0(lambda: check_writable(path))
    whole = ((spec, _whole(tensors[spec.name])) for spec in specs)
    failure: OSError | None = None
    if not dist.is_initialized() or dist.get_rank() == 0:
        found = ((spec.name, tensor.to("cpu", spec.dtype)) for spec, tensor in whole)
        try:
            _write(writer, found) if writer else _save(_under_all_names(module, dict(found)), aside)
            aside.replace(place)
        except OSError as error:
            failure = error
            with contextlib.suppress(OSError):
                aside.unlink()
    deque(whole, maxlen=0)  # rank 0 too gathers what it could not write: the others wait for it
    on_rank_0(lambda: _raise_unwritable(path, failure))


def _raise_unwritable(path: str | os.PathLike[str], error: OSError | None) -> None:
    if error is not None:
        raise UsageError(f"{path} cannot be written: {error.strerror or error}") from error


def _write(writer: SafetensorsWriter, whole: Iterable[tuple[str, Tensor]]) -> None:
    with writer:
        for _, tensor in whole:
            writer.write(tensor)
        writer.sync()


def _save(tensors: dict[str, Tensor], file: Path) -> None:
    with open(file, "wb") as stream:
        try:
            torch.save(tensors, stream)
        except RuntimeError as error:  # of torch's writer, on a disk that is full
            raise OSError(str(error).splitlines()[0]) from error
        stream.flush()
        os.fsync(stream.fileno())


def _under_all_names(module: nn.Module, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensors[first] for name, first in first_names(module).items() if first in tensors}


def check_export(path: str | os.PathLike[str]) -> Path:
    """The file to export to; raises UsageError for one of no known kind."""
    place = Path(path)
    if place.suffix not in (SAFETENSORS, *TORCH_SUFFIXES):
        raise UsageError(f"{path} is no kind of file to export to", next_step=f"name it *{SAFETENSORS} or *.pt")
    return place


def check_writable(path: str | os.PathLike[str]) -> None:
    """Make the folder of a file to export to; raises UsageError where the file cannot be written."""
    place = Path(path)
    try:
        if place.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        place.parent.mkdir(parents=True, exist_ok=True)
        _aside(place).touch()
        _aside(place).unlink()
    except OSError as error:
        _raise_unwritable(path, error)


def _aside(place: Path) -> Path:
    return place.with_name(f".writing-{place.name}")


def _exported_dtype(tensor: Tensor, wanted: torch.dtype | None) -> torch.dtype:
    return wanted if wanted is not None and tensor.is_floating_point() else tensor.dtype


def _whole(tensor: Tensor) -> Tensor:
    return (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).detach()


def _local(tensor: Tensor) -> Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor
