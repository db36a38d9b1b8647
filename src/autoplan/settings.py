"""The text of a target and of its `--set key=value`, the latter checked against the factory's parameters. No torch."""

from __future__ import annotations

import difflib
import inspect
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import yaml

from autoplan.errors import UsageError, join_problems

SCALARS = (bool, int, float, str)


def split_target(text: str) -> tuple[str, str | None]:
    """`model.py:build` as `("model.py", "build")`; None where no factory is named."""
    if names_file(text):
        return text, None
    place, colon, factory = text.rpartition(":")
    return (place, factory or None) if colon else (text, None)


def names_file(place: str) -> bool:
    """Whether a target without its factory is a file, not a module."""
    return place.endswith((".py", ".json"))


def parse_settings(pairs: Iterable[str]) -> dict[str, Any]:
    """`["n_layers=4", "tie=true"]` as `{"n_layers": 4, "tie": True}`; the last of equal keys wins; raises UsageError."""
    settings: dict[str, Any] = {}
    for pair in pairs:
        key, equals, text = pair.partition("=")
        if not equals or not key.strip().isidentifier():
            raise UsageError(f"--set {pair}: not key=value", next_step="write --set n_layers=4")
        try:
            settings[key.strip()] = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise UsageError(f"--set {pair}: {text!r} is not a YAML value", next_step="write --set n_layers=4") from error
    return settings


def check_settings(factory: Callable[..., Any], settings: Mapping[str, Any], name: str) -> dict[str, Any]:
    """`settings` as `factory` takes them, in the order of its parameters; raises UsageError with all that is wrong.

    A parameter's type is its annotation, else its default's; only bool, int, float and str are checked. An int or a text
    such as `1e-5` becomes a float where one is wanted.
    """
    parameters, open_ended = _parameters(factory)
    problems: list[UsageError] = []
    checked: dict[str, Any] = {}
    order = [key for key in parameters if key in settings] + [key for key in settings if key not in parameters]
    for key in order:
        value = settings[key]
        if key not in parameters:
            if open_ended:
                checked[key] = value
            else:
                problems.append(_unknown(key, name, list(parameters)))
            continue
        allowed = _types(parameters[key])
        fitted = _fit(value, allowed)
        if fitted is _WRONG:
            wanted = " or ".join(kind.__name__ for kind in allowed)
            problems.append(UsageError(f"{key}={value!r}: {name} wants {wanted}, not {type(value).__name__}"))
        else:
            checked[key] = fitted
    missing = [key for key, p in parameters.items() if p.default is p.empty and key not in settings]
    if missing:
        step = " ".join(f"--set {key}=VALUE" for key in missing)
        problems.append(UsageError(f"{name} needs {', '.join(missing)}", next_step=f"add {step}, or give it a default in the factory"))
    if problems:
        raise problems[0] if len(problems) == 1 else join_problems(UsageError, problems)
    return checked


def _parameters(factory: Callable[..., Any]) -> tuple[dict[str, inspect.Parameter], bool]:
    """The parameters that a keyword can set, and whether any other keyword is taken too."""
    try:
        signature = inspect.signature(factory, eval_str=True)
    except NameError:
        signature = inspect.signature(factory)
    except (ValueError, TypeError):
        return {}, True
    by_name = {p.name: p for p in signature.parameters.values() if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    return by_name, any(p.kind is p.VAR_KEYWORD for p in signature.parameters.values())


def _unknown(key: str, name: str, known: list[str]) -> UsageError:
    close = difflib.get_close_matches(key, known, 1)
    listed = f"it takes {', '.join(known)}" if known else "it takes none"
    return UsageError(f"{name} has no setting {key!r}", where=listed, next_step=f"did you mean {close[0]}?" if close else None)


_WRONG = object()


def _types(parameter: inspect.Parameter) -> tuple[type, ...]:
    """The scalar types a value may have; empty where anything goes."""
    annotation = parameter.annotation
    if annotation is parameter.empty:
        return (type(parameter.default),) if type(parameter.default) in SCALARS else ()
    union = typing.get_origin(annotation) in (typing.Union, types.UnionType)
    members = typing.get_args(annotation) if union else (annotation,)
    return tuple(members) if all(kind in (*SCALARS, type(None)) for kind in members) else ()


def _fit(value: Any, allowed: tuple[type, ...]) -> Any:
    if not allowed or type(value) in allowed:
        return value
    if float in allowed:
        if type(value) is int:
            return float(value)
        if type(value) is str:
            try:
                return float(value)  # YAML 1.1 reads 1e-5 as text
            except ValueError:
                return _WRONG
    return _WRONG
