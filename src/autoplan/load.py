"""A target, as the user names it, to a module with example inputs.

A target is `file.py[:factory]`, `package.module:factory` or a Hugging Face `config.json`. Its factory returns
`(module, args)` or `(module, args, kwargs)`, and is called in one of three ways: on meta for planning (`build_meta`), on
a device for a real model (`build_on`), and with parameters on meta but real buffers for the runtime (`build_skeleton`).
"""

from __future__ import annotations

import contextlib
import difflib
import hashlib
import importlib
import importlib.util
import inspect
import os
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn
from torch.utils.weak import WeakIdKeyDictionary

from autoplan.errors import AutoplanError, TargetError
from autoplan.settings import check_settings, names_file, split_target

DEFAULT_FACTORY = "build"
FORMS = "a target is file.py[:factory], package.module:factory, a Hugging Face config.json or a request .yaml"


@dataclass(frozen=True, slots=True)
class Target:
    """A factory and the settings it is called with."""

    name: str  # as messages name it: "model.py:build"
    factory: Callable[..., Any]
    settings: Mapping[str, Any]  # what `set` of a plan records
    file: Path | None = None  # absolute; None for `package.module:factory`
    suffix: str = field(default="", kw_only=True)  # ":factory", empty for a config.json
    rules: UserRules | None = field(default=None, kw_only=True)

    def relative_to(self, folder: str | os.PathLike[str]) -> str:
        """The target as a plan in `folder` writes it: files relative to the plan, modules as they are."""
        return self.name if self.file is None else _relative(self.file, folder) + self.suffix

    def rules_relative_to(self, folder: str | os.PathLike[str]) -> str | None:
        """The module of the user's rules as a plan in `folder` writes it, None where there is none."""
        if self.rules is None:
            return None
        return self.rules.name if self.rules.file is None else _relative(self.rules.file, folder)


@dataclass(frozen=True, slots=True)
class UserRules:
    """A module that registered rules for the user's ops when it was imported."""

    name: str  # as the user names it: "my_rules.py", "package.module"
    file: Path | None = None  # absolute; None for a module

    @property
    def place(self) -> str:
        """The file or module, to be found from any folder."""
        return self.name if self.file is None else str(self.file)


@dataclass(frozen=True, slots=True)
class Built:
    """What a factory returned."""

    module: nn.Module
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]


def load_target(
    text: str,
    settings: Mapping[str, Any] | None = None,
    *,
    batch: int | None = None,
    seq: int | None = None,
    mode: str = "train",
    base: str | os.PathLike[str] = ".",
    rules: UserRules | None = None,
) -> Target:
    """The target `text` names, a relative file being looked up from the folder `base`; raises TargetError.

    `batch` and `seq` are settings like any other, so that a plan's `set` tells all there is to know. `settings` are
    checked against the factory's parameters: an unknown name or a value of another type is a UsageError. `rules` are
    those that the model's ops need, loaded already.
    """
    given = dict(settings or {})
    given |= {key: value for key, value in (("batch", batch), ("seq", seq)) if value is not None}
    place, named = split_target(text)
    factory_name = named or DEFAULT_FACTORY
    if place.endswith(".json"):
        from autoplan.hf import EXAMPLE_SIZE, hugging_face_factory

        path = _existing_file(place, base, f"target {text}", FORMS)
        factory = hugging_face_factory(path, mode)
        return Target(text, factory, check_settings(factory, EXAMPLE_SIZE | given, text), path, rules=rules)
    if names_file(place):
        path = _existing_file(place, base, f"target {text}", FORMS)
        module = _import_file(path, place)
        factory = _find_factory(module, factory_name, place)
        name = f"{place}:{factory_name}"
        return Target(name, factory, check_settings(factory, given, name), path, suffix=f":{factory_name}", rules=rules)
    if ":" not in text:
        raise TargetError(f"no such target: {text}", next_step=FORMS)
    factory = _find_factory(_import_module(place), factory_name, place)
    return Target(text, factory, check_settings(factory, given, text), rules=rules)


def load_rules(text: str, base: str | os.PathLike[str] = ".") -> UserRules:
    """Imports the file (looked up from the folder `base`) or module that registers a user's rules; raises TargetError."""
    if text.endswith(".py"):
        path = _existing_file(text, base, f"rules {text}", "rules are file.py or package.module")
        _import_file(path, text)
        return UserRules(text, path)
    _import_module(text)
    return UserRules(text)


def build_meta(target: Target) -> Built:
    """The module and its inputs on the meta device: shapes without memory."""
    with torch.device("meta"):
        return _call(target)


def build_on(target: Target, device: torch.device | str = "cpu", seed: int = 0) -> Built:
    """The real module and inputs on `device`, every random number from `seed`; the caller's generators are left alone."""
    with _seeded(torch.device(device), seed), torch.device(device):
        return _call(target)


def build_skeleton(target: Target, seed: int = 0) -> Built:
    """The module with its parameters on meta, its buffers, constants and the inputs real on the CPU.

    A parameter is moved to meta as it is registered and its init then costs nothing, so a model of any size is built in
    the memory of its buffers. Ties survive. Random buffers follow `seed`: alike on all ranks, unlike `build_on`'s.
    """
    with _seeded(torch.device("cpu"), seed), parameters_on_meta():
        return _call(target)


@contextlib.contextmanager
def parameters_on_meta() -> Iterator[None]:
    """Within it, every parameter that a module registers becomes a meta tensor; buffers stay as they are."""
    register = nn.Module.register_parameter
    moved = WeakIdKeyDictionary()  # a parameter registered twice stays one parameter

    def register_on_meta(module: nn.Module, name: str, param: nn.Parameter | None) -> None:
        register(module, name, param)
        if param is None or param.is_meta:
            return
        if param not in moved:
            moved[param] = _meta_copy(param)
        module._parameters[name] = moved[param]

    nn.Module.register_parameter = register_on_meta  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        nn.Module.register_parameter = register  # type: ignore[method-assign]


def _meta_copy(param: nn.Parameter) -> nn.Parameter:
    copy = nn.Parameter(param.detach().to("meta"), requires_grad=param.requires_grad)
    copy.__class__ = type(param)
    copy.__dict__.update(param.__dict__)
    return copy


@contextlib.contextmanager
def _seeded(device: torch.device, seed: int) -> Iterator[None]:
    devices = [] if device.type in ("cpu", "meta") else [device]
    with torch.random.fork_rng(devices, device_type=device.type if devices else "cuda"):
        torch.manual_seed(seed)
        yield


def _relative(file: Path, folder: str | os.PathLike[str]) -> str:
    return Path(os.path.relpath(file, Path(folder).resolve())).as_posix()


def _existing_file(place: str, base: str | os.PathLike[str], where: str, forms: str) -> Path:
    path = Path(base, place).expanduser()
    if path.is_file():
        return path.resolve()
    siblings = [str(Path(place).parent / p.name) for p in path.parent.glob(f"*{path.suffix}")] if path.parent.is_dir() else []
    close = difflib.get_close_matches(place, siblings, 1)
    raise TargetError(f"no such file: {place}", where=where, next_step=f"did you mean {close[0]}?" if close else forms)


def _import_file(path: Path, place: str) -> ModuleType:
    """Runs a user's file under a module name of its own; sibling modules import as they do for `python file.py`."""
    name = f"_autoplan_target_{hashlib.sha256(str(path).encode()).hexdigest()[:12]}_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    with _user_code(path.parent):
        sys.modules[name] = module
        try:
            source = importlib.util.decode_source(path.read_bytes())
            exec(compile(source, str(path), "exec"), module.__dict__)  # not the loader: it would read a stale cache
        except (Exception, SystemExit) as error:
            del sys.modules[name]
            next_step = "the file must import on this machine; nothing of it was planned"
            raise TargetError(
                f"{place} cannot be imported: {_describe(error)}", where=_line_of(error, path), next_step=next_step
            ) from error
    return module


def _import_module(name: str) -> ModuleType:
    with _user_code(Path.cwd()):
        try:
            return importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name and (name == error.name or name.startswith(error.name + ".")):
                step = "is it installed in this environment, or in the current folder? a file is given as file.py:factory"
                raise TargetError(f"no module named {error.name!r}", where=f"target {name}", next_step=step) from error
            raise _import_error(name, error) from error
        except (Exception, SystemExit) as error:
            raise _import_error(name, error) from error


def _import_error(name: str, error: BaseException) -> TargetError:
    return TargetError(
        f"{name} cannot be imported: {_describe(error)}", where=_line_of(error, None), next_step="the module must import on this machine"
    )


def _find_factory(module: ModuleType, name: str, place: str) -> Callable[..., Any]:
    found = getattr(module, name, None)
    if callable(found):
        return found
    own = [key for key, value in vars(module).items() if inspect.isfunction(value) and value.__module__ == module.__name__]
    candidates = [key for key in own if not key.startswith("_")]
    close = difflib.get_close_matches(name, candidates, 1)
    if found is not None:
        what = f"{place}: {name!r} is not a factory but a value of type {type(found).__name__}"
    else:
        what = f"{place} has no factory {name!r}"
    listed = f"its functions: {', '.join(candidates)}" if candidates else "it defines no function"
    raise TargetError(what, where=listed, next_step=f"did you mean {place}:{close[0]}?" if close else f"name one as {place}:FACTORY")


def _call(target: Target) -> Built:
    with _user_code(target.file.parent if target.file else Path.cwd()):
        try:
            returned = target.factory(**target.settings)
        except AutoplanError:
            raise
        except (Exception, SystemExit) as error:
            step = "planning calls the factory on the meta device: shapes only, so it must not read values of tensors"
            raise TargetError(f"{target.name} raised {_describe(error)}", where=_line_of(error, target.file), next_step=step) from error
    return _check_returned(target.name, returned)


def _check_returned(name: str, returned: Any) -> Built:
    expected = "a factory returns (module, args) or (module, args, kwargs), args being a tuple and kwargs a dict"
    if not isinstance(returned, tuple):
        hint = "; add the example inputs" if isinstance(returned, nn.Module) else ""
        raise TargetError(f"{name} returned {_kind(returned)}, not a tuple", next_step=expected + hint)
    if len(returned) not in (2, 3):
        raise TargetError(f"{name} returned a tuple of {len(returned)} items", next_step=expected)
    module, args, kwargs = returned if len(returned) == 3 else (*returned, {})
    if not isinstance(module, nn.Module):
        raise TargetError(f"{name} returned {_kind(module)} as its module, which is no torch.nn.Module", next_step=expected)
    if not isinstance(args, tuple):
        hint = "; one input is written (x,)" if isinstance(args, torch.Tensor) else ""
        raise TargetError(f"{name} returned {_kind(args)} as its args, which is no tuple", next_step=expected + hint)
    if not isinstance(kwargs, dict) or not all(isinstance(key, str) for key in kwargs):
        raise TargetError(f"{name} returned {_kind(kwargs)} as its kwargs, which is no dict with names as keys", next_step=expected)
    return Built(module, args, kwargs)


def _kind(value: Any) -> str:
    return "None" if value is None else f"a value of type {type(value).__name__}"


def _describe(error: BaseException) -> str:
    message = error.msg if isinstance(error, SyntaxError) else str(error)
    return f"{type(error).__name__}: {message}" if message else type(error).__name__


def _line_of(error: BaseException, file: Path | None) -> str | None:
    """`model.py:12`: the innermost line of the user's file, else the innermost line that is neither ours nor torch's."""
    if isinstance(error, SyntaxError) and error.filename:
        return f"{_shown(error.filename)}:{error.lineno}"
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if not frame.filename.startswith("<frozen ")]
    own = [frame for frame in frames if file is not None and frame.filename == str(file)]
    skipped = (__file__, os.path.dirname(torch.__file__) + os.sep, os.path.dirname(importlib.__file__) + os.sep)
    users = own or [frame for frame in frames if not frame.filename.startswith(skipped)]
    return f"{_shown(users[-1].filename)}:{users[-1].lineno}" if users else None


def _shown(filename: str) -> str:
    """A path as the user would write it: relative where it lies below the current folder."""
    path = Path(filename)
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else filename


@contextlib.contextmanager
def _user_code(folder: Path) -> Iterator[None]:
    """Runs a user's code: modules beside it import, no bytecode is left there, and what it prints goes to stderr."""
    before = sys.dont_write_bytecode
    sys.dont_write_bytecode = True
    sys.path.insert(0, str(folder))
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    finally:
        sys.dont_write_bytecode = before
        with contextlib.suppress(ValueError):
            sys.path.remove(str(folder))
