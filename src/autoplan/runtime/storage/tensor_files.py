"""Files of whole tensors by name: safetensors, one or many with an index, and what `torch.save` wrote. Read slice by slice.

Only reading safetensors needs the package of that name, which `autoplan[hf]` brings. They are written here, tensor after tensor, because
the package wants all of them in memory at once. Format: https://github.com/huggingface/safetensors
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from autoplan.errors import TargetError, UsageError

Index = tuple[slice, ...]
TORCH_SUFFIXES = (".pt", ".pth", ".bin")
SAFETENSORS = ".safetensors"
FORMS = f"weights are a {SAFETENSORS} file, a folder of them with its index, or a file that torch.save wrote ({', '.join(TORCH_SUFFIXES)})"
_DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


@dataclass(frozen=True, slots=True)
class Stored:
    """A tensor in a file: its shape, and a function that reads a part of it and nothing else."""

    shape: tuple[int, ...]
    read: Callable[[Index], Tensor]


@contextlib.contextmanager
def open_tensors(path: str | os.PathLike[str]) -> Iterator[dict[str, Stored]]:
    """The tensors at `path` by name, to be read within the context; raises TargetError for what cannot be read."""
    with ExitStack() as stack:
        found: dict[str, Stored] = {}
        for file in tensor_files(Path(path)):
            try:
                found |= _open_torch(file) if file.suffix in TORCH_SUFFIXES else _open_safetensors(file, stack)
            except (TargetError, MemoryError):
                raise
            except Exception as error:  # the readers have errors of many kinds for a file that is damaged or something else
                raise TargetError(f"the weights cannot be read: {error}", where=str(file), next_step=FORMS) from error
        yield found


def tensor_files(path: Path) -> list[Path]:
    """The files that `path` stands for: a file itself, those an index lists, or those of a folder. Raises TargetError."""
    if path.is_dir():
        return _of_folder(path)
    if path.name.endswith(f"{SAFETENSORS}.index.json"):
        return _of_index(path)
    if path.suffix not in (SAFETENSORS, *TORCH_SUFFIXES):
        raise TargetError(f"{path} is no file of weights", next_step=FORMS)
    if not path.is_file():
        raise TargetError(f"no such file: {path}", next_step=FORMS)
    return [path]


def _of_folder(folder: Path) -> list[Path]:
    """Of several forms of one model that a folder may hold, the one that transformers takes."""
    indexes, files = sorted(folder.glob(f"*{SAFETENSORS}.index.json")), sorted(folder.glob(f"*{SAFETENSORS}"))
    for wanted, ways in ((f"model{SAFETENSORS}", files), (f"model{SAFETENSORS}.index.json", indexes)):
        if folder / wanted in ways:
            return tensor_files(folder / wanted)
    if len(indexes) == 1:
        return _of_index(indexes[0])
    if len(files) != 1:
        there = f"it has {', '.join(path.name for path in indexes or files)}" if files else "it has none"
        raise TargetError(f"{folder} is not one model in {SAFETENSORS} files", where=there, next_step="name the file or the index")
    return files


def _of_index(index: Path) -> list[Path]:
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        files = [index.parent / name for name in names]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise TargetError(f"the index cannot be read: {type(error).__name__}: {error}", where=str(index)) from error
    if lost := [path.name for path in files if not path.is_file()]:
        raise TargetError(f"files of the index are not there: {', '.join(lost)}", where=str(index))
    return files


def _open_safetensors(file: Path, stack: ExitStack) -> dict[str, Stored]:
    try:
        from safetensors import safe_open
    except ImportError as error:
        raise TargetError(f"{file.name} needs safetensors, which is not installed", next_step="pip install 'autoplan[hf]'") from error
    opened = stack.enter_context(safe_open(file, framework="pt"))
    return {name: _of_safetensors(opened, name) for name in opened.keys()}  # noqa: SIM118


def _of_safetensors(opened: Any, name: str) -> Stored:
    stored = opened.get_slice(name)
    shape = tuple(stored.get_shape())
    return Stored(shape, lambda index: stored[index] if shape else opened.get_tensor(name))


def _open_torch(file: Path) -> dict[str, Stored]:
    """Mapped into memory: the parts that nobody reads stay in the file."""
    content = torch.load(file, map_location="cpu", mmap=True, weights_only=True)
    if not isinstance(content, Mapping) or not all(isinstance(value, Tensor) for value in content.values()):
        raise TargetError(f"{file} is no state dict: a mapping of names to tensors", next_step="save module.state_dict() alone")
    return {name: Stored(tuple(value.shape), value.__getitem__) for name, value in content.items()}


@dataclass(frozen=True, slots=True)
class Spec:
    """What is said of a tensor before it is there."""

    name: str
    shape: Sequence[int]
    dtype: torch.dtype

    @property
    def size_bytes(self) -> int:
        """Of the tensor without gaps."""
        return prod(self.shape) * self.dtype.itemsize


class SafetensorsWriter:
    """Writes tensors one after another to a file; a context manager. They must come in the order of `specs`."""

    def __init__(self, file: Path, specs: Sequence[Spec]) -> None:
        if unknown := [f"{spec.name} ({spec.dtype})" for spec in specs if spec.dtype not in _DTYPES]:
            raise UsageError(f"safetensors have no dtype for {', '.join(unknown)}", next_step="export to a .pt file")
        self._file = file
        self._header = _header(specs)

    def __enter__(self) -> SafetensorsWriter:
        self._stream = open(self._file, "wb")
        self._stream.write(len(self._header).to_bytes(8, "little") + self._header)
        return self

    def __exit__(self, *_: object) -> None:
        self._stream.close()

    def write(self, tensor: Tensor) -> None:
        """The next tensor, on the CPU."""
        tensor = tensor.contiguous()
        if tensor.numel():
            self._stream.write((ctypes.c_char * tensor.nbytes).from_address(tensor.data_ptr()))

    def sync(self) -> None:
        """Wait until all of it is on the disk."""
        self._stream.flush()
        os.fsync(self._stream.fileno())


def aligned(specs: Sequence[Spec]) -> list[Spec]:
    """In the order in which safetensors hold them: large elements first, so that each tensor begins at a multiple of its own."""
    return sorted(specs, key=lambda spec: -spec.dtype.itemsize)


def _header(specs: Sequence[Spec]) -> bytes:
    """JSON, padded so that the data begins at a multiple of 8 bytes."""
    assert list(specs) == aligned(specs)
    entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}  # as transformers writes it, and versions of it demand
    begin = 0
    for spec in specs:
        entries[spec.name] = {"dtype": _DTYPES[spec.dtype], "shape": list(spec.shape), "data_offsets": [begin, begin + spec.size_bytes]}
        begin += spec.size_bytes
    text = json.dumps(entries, separators=(",", ":")).encode()
    return text + b" " * (-len(text) % 8)
