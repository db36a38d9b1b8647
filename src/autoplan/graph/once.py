"""Answers about a value that never changes, found once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from functools import cached_property, wraps
from typing import Any, TypeVar


class Remembering:
    """A frozen dataclass that keeps what functions marked with `once` have found of it, but sends none of that elsewhere."""

    @cached_property
    def found(self) -> dict[str, Any]:
        """The answers, by the name of the function."""
        return {}

    def __getstate__(self) -> dict[str, Any]:
        return {field.name: getattr(self, field.name) for field in fields(self)}  # type: ignore[arg-type]  # who inherits this is a dataclass


Asked = TypeVar("Asked", bound=Remembering)
Answer = TypeVar("Answer")


def once(function: Callable[[Asked], Answer]) -> Callable[[Asked], Answer]:
    """`function` of one such value, asked once for each."""
    name = f"{function.__module__}.{function.__qualname__}"

    @wraps(function)
    def asked(value: Asked) -> Answer:
        if name not in value.found:
            value.found[name] = function(value)
        answer: Answer = value.found[name]
        return answer

    return asked
