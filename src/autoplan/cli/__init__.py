"""The command line: one file per command; parse, call, print. torch, ortools and rich load only where a command needs them."""

from __future__ import annotations

import atexit
import gc
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

_RARELY = (200_000, 20, 20)
"""How many objects are made before Python looks for garbage among the youngest; how many such searches before a wider one."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command, by default that of this process; the exit code comes back."""
    with _garbage_collected(_RARELY):
        try:
            from autoplan.cli.app import run
        except KeyboardInterrupt:  # from here on the commands themselves answer to Ctrl-C
            return 130
        return run(argv)


@contextmanager
def _garbage_collected(thresholds: tuple[int, int, int]) -> Iterator[None]:
    """Within it garbage is looked for as rarely as `thresholds` say, and not at all once the process ends.

    Importing torch and exporting a model make a million objects that stay: searching them for cycles again and again, and
    twice more at the end, took 1.6 of the 6.9 s that a plan of an 8B model takes (2 cores, November 2026).
    """
    before = gc.get_threshold()
    gc.set_threshold(*thresholds)
    atexit.register(gc.freeze)
    try:
        yield
    finally:
        gc.set_threshold(*before)


__all__ = ["main"]
