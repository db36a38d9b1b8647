"""Where in the user's code an op comes from: `file.py:12`."""

from __future__ import annotations

import os
import re
import traceback
from functools import lru_cache
from pathlib import Path

import torch

_FRAME = re.compile(r'File "([^"]+)", line (\d+)')
_NOT_THE_USERS = (os.path.dirname(torch.__file__) + os.sep, os.path.dirname(__file__) + os.sep)
_MACHINERY = ("<eval_with_key>", "<string>", "<frozen ")


def source_of_trace(stack_trace: str | None) -> str | None:
    """`file.py:12` of the innermost frame of a printed stack that is neither torch's nor capture's; None without one."""
    for file, line in reversed(_FRAME.findall(stack_trace or "")):
        if _is_users(file):
            return f"{short_path(file)}:{line}"
    return None


def source_of_exception(error: BaseException) -> str | None:
    """`file.py:12` of the innermost user's frame that `error`, or what caused it, passed through; None without one."""
    seen: set[int] = set()
    current: BaseException | None = error
    found = None
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        for frame in traceback.extract_tb(current.__traceback__):
            if _is_users(frame.filename):
                found = f"{short_path(frame.filename)}:{frame.lineno}"
        if found:
            return found
        current = current.__cause__ or current.__context__
    return found


def _is_users(file: str) -> bool:
    return not file.startswith(_NOT_THE_USERS + _MACHINERY)


@lru_cache(maxsize=4096)
def short_path(file: str) -> str:
    """A path relative to the working directory, or its last two parts: never a machine's absolute path."""
    path = Path(file)
    try:
        relative = path.relative_to(Path.cwd())
        return str(relative) if "site-packages" not in relative.parts else "/".join(path.parts[-2:])
    except ValueError:
        return "/".join(path.parts[-2:])
