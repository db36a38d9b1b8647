"""Whether submodules are copies of one another: a value that is equal for modules whose forwards cannot differ."""

from __future__ import annotations

import functools
import types
from collections.abc import Hashable, Iterable, Mapping
from enum import Enum
from typing import Any

import torch
from torch import Tensor, nn

_PLAIN = (bool, int, float, complex, str, bytes, torch.dtype, torch.device, torch.Size, torch.layout, torch.memory_format, type(None))
_HEAP_TYPE = 1 << 9  # Py_TPFLAGS_HEAPTYPE: a class that Python code defines


class NotComparable(Exception):
    """A module holds what could make its forward another one, and what cannot be looked into."""


def signature(module: nn.Module, but: frozenset[str] = frozenset()) -> Hashable:
    """All that `module`'s forward can depend on beside its arguments, but for the attributes at the paths `but`.

    Equal for two modules if class, submodules, attributes, and the shapes of parameters and buffers are, at any depth.
    Raises NotComparable where there is a hook, a tensor in a plain attribute, or an object that is not made of plain values.
    """
    return _Signature(but).of_module(module, "")


def counting_attributes(children: Mapping[int, nn.Module]) -> frozenset[str]:
    """Paths of the integer attributes that number the `children`, as `self_attn.layer_idx` does in many models."""
    found: dict[str, dict[int, int]] = {}
    for index, child in children.items():
        for path, value in _integers(child):
            found.setdefault(path, {})[index] = value
    return frozenset(path for path, values in found.items() if len(values) > 1 and len({value - i for i, value in values.items()}) == 1)


def _integers(module: nn.Module) -> Iterable[tuple[str, int]]:
    for prefix, inner in module.named_modules():
        for name, value in vars(inner).items():
            if type(value) is int:
                yield f"{prefix}.{name}".lstrip("."), value


def plain(value: Any) -> Hashable:
    """A plain value with its type, since 1 == True; raises NotComparable for any other."""
    if type(value) in _PLAIN:
        return type(value), value
    raise NotComparable(type(value).__name__)


class _Signature:
    def __init__(self, but: frozenset[str]) -> None:
        self._but = but
        self._seen: dict[int, int] = {}

    def of_module(self, module: nn.Module, path: str) -> Hashable:
        if id(module) in self._seen:
            return "again", self._seen[id(module)]
        self._seen[id(module)] = len(self._seen)
        return type(module), tuple((name, self._attribute(name, value, path)) for name, value in vars(module).items())

    def _attribute(self, name: str, value: Any, path: str) -> Hashable:
        if name in ("_parameters", "_buffers"):
            return tuple((key, None if tensor is None else _of_tensor(tensor)) for key, tensor in value.items())
        if name == "_modules":
            return tuple((key, None if child is None else self.of_module(child, f"{path}{key}.")) for key, child in value.items())
        if name.endswith(("_hooks", "_hooks_with_kwargs", "_hooks_always_called")):
            if value and "state_dict" not in name:
                raise NotComparable(name)
            return None
        return None if path + name in self._but else self._of_value(value)

    def _of_value(self, value: Any) -> Hashable:
        if type(value) in _PLAIN:
            return plain(value)
        if isinstance(value, type | types.BuiltinFunctionType | Enum):
            return value
        if isinstance(value, Tensor | nn.Module | types.MethodType | types.ModuleType):
            raise NotComparable(type(value).__name__)
        if id(value) in self._seen:
            return "again", self._seen[id(value)]
        self._seen[id(value)] = len(self._seen)
        if isinstance(value, types.FunctionType):
            return value, tuple(self._of_value(cell.cell_contents) for cell in value.__closure__ or ())
        if isinstance(value, functools.partial):
            return type(value), self._of_value(value.func), self._of_value(value.args), self._of_value(value.keywords)
        return type(value), self._items(value), self._fields(value)

    def _items(self, value: Any) -> Hashable:
        """What a container holds; sets of plain values only, which have an order of their own."""
        if isinstance(value, dict):
            return tuple((self._of_value(key), self._of_value(item)) for key, item in value.items())
        if isinstance(value, tuple | list):
            return tuple(map(self._of_value, value))
        if isinstance(value, set | frozenset):
            if not all(type(item) in _PLAIN for item in value):
                raise NotComparable("set")
            return frozenset((type(item), item) for item in value)
        if not all(base is object or base.__flags__ & _HEAP_TYPE for base in type(value).__mro__):
            raise NotComparable(type(value).__name__)
        return None

    def _fields(self, value: Any) -> Hashable:
        slots = [name for base in type(value).__mro__ for name in _slots(base) if hasattr(value, name)]
        fields = {**{name: getattr(value, name) for name in slots}, **getattr(value, "__dict__", {})}
        return tuple((name, self._of_value(item)) for name, item in fields.items())


def _slots(base: type) -> tuple[str, ...]:
    slots = vars(base).get("__slots__", ())
    return tuple(name for name in ((slots,) if isinstance(slots, str) else slots) if name not in ("__dict__", "__weakref__"))


def _of_tensor(tensor: Tensor) -> Hashable:
    return type(tensor), tensor.shape, tensor.stride(), tensor.dtype, tensor.device, tensor.requires_grad
