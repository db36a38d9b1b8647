"""stdout is data, stderr is prose."""

from __future__ import annotations

import json
import math
import sys
from typing import Any

from autoplan.errors import AutoplanError


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


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
