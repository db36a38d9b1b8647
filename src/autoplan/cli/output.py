"""stdout is data, stderr is prose."""

from __future__ import annotations

import json
import math
import os
import sys
from pathlib import Path
from typing import Any

from autoplan.errors import AutoplanError, UsageError


def put(text: str) -> None:
    """Data, to stdout; raises AutoplanError if it cannot be written, BrokenPipeError if nobody reads on."""
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        raise AutoplanError(f"stdout cannot be written: {error.strerror}") from None


def put_json(value: Any) -> None:
    """One JSON object, to stdout; what JSON has no number for (infinite, not a number) is null."""
    put(json.dumps(_finite(value), indent=2, allow_nan=False) + "\n")


def tell(text: str) -> None:
    """Prose, to stderr."""
    print(text, file=sys.stderr, flush=True)


def check_output(out: Path, what: str) -> None:
    """Refuses, before minutes of work, a file that could not be written; `what` is to be in it."""
    if out.exists() and not out.is_file():
        kind = "a folder" if out.is_dir() else "no regular file"
        hint = "; without -o the plan goes to stdout" if what == "the plan" else ""
        raise UsageError(f"-o {out}: this is {kind}", next_step=f"name a file{hint}")
    if not out.parent.is_dir():
        raise UsageError(f"-o {out}: there is no folder {out.parent}", next_step=f"mkdir -p {out.parent}")
    if not os.access(out.parent, os.W_OK):
        raise UsageError(f"-o {out}: the folder {out.parent} cannot be written")


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
