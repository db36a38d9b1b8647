"""A request: what to plan and for which machine, as a YAML file in configs/. No torch.

    target: autoplan.models.llama:build     # or a file, relative to this one
    rules: my_rules.py                      # registers rules of one's own ops; or a module
    set: {n_layers: 16}
    mesh: 2x4
    hardware: h200-sxm                      # or a profile's file, relative to this one
    precision: bf16
    compile: true                           # steps run through torch.compile

Every key but `target` may be left out; flags of the command line override the file.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from autoplan.errors import PlanError, TargetError, UsageError
from autoplan.plan.document import Node, Report, read_document
from autoplan.settings import names_file, split_target

MODES = ("train", "infer")
OPTIMIZERS = ("adamw", "sgd", "none")
PRECISIONS = ("fp32", "bf16", "bf16-master")
_MAX_BYTES = 1 << 20  # a request is some ten lines


@dataclass(frozen=True, slots=True)
class Request:
    """One run of the planner. None: not said, the command line's default holds."""

    target: str
    settings: Mapping[str, Any] = field(default_factory=dict)  # `set` in the file
    mesh: str | None = None  # as `--mesh` takes it
    hardware: str | None = None  # a profile's name or file
    mode: str = "train"
    precision: str = "fp32"
    optimizer: str = "adamw"
    memory_gib: float | None = None  # None: what the hardware has
    batch: int | None = None
    seq: int | None = None
    pins: str | tuple[Any, ...] = ()  # a pins file, or its entries
    seed: int = 0
    rules: str | None = None  # a file or module that registers rules
    compile: bool = False  # steps run through torch.compile

    def __post_init__(self) -> None:
        for name, allowed in (("mode", MODES), ("precision", PRECISIONS), ("optimizer", OPTIMIZERS)):
            value = getattr(self, name)
            if value not in allowed:
                raise UsageError(f"{name} {value!r} is unknown", next_step=f"one of {', '.join(allowed)}")

    def override(self, *, settings: Mapping[str, Any] | None = None, **flags: Any) -> Request:
        """The request with the flags that were given (None: not given); `settings` add to the file's, key by key."""
        given = {name: value for name, value in flags.items() if value is not None}
        return replace(self, **given, settings={**self.settings, **(settings or {})})


def is_request(text: str) -> bool:
    """Whether a TARGET of the command line names a request file."""
    return text.endswith((".yaml", ".yml"))


def load_request(path: str | os.PathLike[str]) -> Request:
    """The request in the file at `path`; its relative files are found beside it. Raises TargetError with every problem."""
    path = Path(path)
    report = Report(str(path))
    try:
        root = read_document(_read(path), report)
        given = _check(root, report)
        report.raise_any()
        return _to_request(given, path.parent)
    except PlanError as error:  # the reader's own kind: it reads plans too
        raise TargetError(str(error)) from error
    except UsageError as error:  # on the command line it is usage, in a file it is input
        raise TargetError(error.what, where=str(path), next_step=error.next_step) from error


_KINDS: Mapping[str, tuple[type, ...]] = {
    "target": (str,),
    "set": (dict,),
    "mesh": (str, int, dict),
    "hardware": (str,),
    "mode": (str,),
    "precision": (str,),
    "optimizer": (str,),
    "memory_gib": (int, float),
    "batch": (int,),
    "seq": (int,),
    "pins": (str, list),
    "seed": (int,),
    "rules": (str,),
    "compile": (bool,),
}
_NAMES = {str: "a text", int: "a whole number", float: "a number", dict: "a mapping", list: "a list", bool: "true or false"}
assert {"settings" if key == "set" else key for key in _KINDS} == {f.name for f in fields(Request)}


def _to_request(given: dict[str, Any], folder: Path) -> Request:
    given["settings"] = given.pop("set", {})
    if names_file(split_target(given["target"])[0]):
        given["target"] = _beside(folder, given["target"])
    if given.get("hardware", "").endswith((".yaml", ".yml")):
        given["hardware"] = _beside(folder, given["hardware"])
    if given.get("rules", "").endswith(".py"):
        given["rules"] = _beside(folder, given["rules"])
    if isinstance(given.get("mesh"), dict):
        given["mesh"] = ",".join(f"{name}={size}" for name, size in given["mesh"].items())
    elif "mesh" in given:
        given["mesh"] = str(given["mesh"])
    if isinstance(given.get("pins"), str):
        given["pins"] = _beside(folder, given["pins"])
    elif "pins" in given:
        given["pins"] = tuple(given["pins"])
    return Request(**given)


def _beside(folder: Path, name: str) -> str:
    return str(folder / name)  # an absolute name stays


def _read(path: Path) -> str:
    if not path.is_file():
        raise TargetError(f"no such file: {path}", next_step="a request is a YAML file; configs/ has examples")
    size = path.stat().st_size
    if not 0 < size <= _MAX_BYTES:
        raise TargetError(f"{path} has {size} bytes, a request some hundred", next_step="a request is a YAML file; configs/ has examples")
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise TargetError(f"{path} is not text: byte {error.start} is not UTF-8") from error


def _check(root: Node, report: Report) -> dict[str, Any]:
    """The entries of the file that are right; what is wrong goes to the report."""
    given: dict[str, Any] = {}
    if not isinstance(root.value, dict):
        report.add("a request is a mapping of keys to values", root.line, "start with target: file.py:build")
        return given
    if "autoplan" in root.value:
        report.add(
            "this is a plan, not a request", root.value["autoplan"].line, "autoplan show reads plans; plan takes a target or a request"
        )
        return given
    for key, node in root.value.items():
        value = _plain(node)
        if key not in _KINDS:
            close = difflib.get_close_matches(key, _KINDS, 1)
            step = f"did you mean {close[0]}?" if close else f"known: {', '.join(_KINDS)}"
            report.add(f"unknown key {key!r} in a request", node.line, step)
        elif not isinstance(value, _KINDS[key]) or isinstance(value, bool) != (_KINDS[key] == (bool,)):
            report.add(f"{key}: {value!r} is not {' or '.join(_NAMES[kind] for kind in _KINDS[key])}", node.line)
        else:
            given[key] = value
    if "target" not in root.value:
        report.add("a request needs a target", next_step="add target: file.py:build")
    return given


def _plain(node: Node) -> Any:
    if isinstance(node.value, dict):
        return {key: _plain(child) for key, child in node.value.items()}
    if isinstance(node.value, list):
        return [_plain(child) for child in node.value]
    return node.value
