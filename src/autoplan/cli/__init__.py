"""The command line: one file per command; parse, call, print. torch, ortools and rich load only where a command needs them."""

from __future__ import annotations

from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command, by default that of this process; the exit code comes back."""
    try:
        from autoplan.cli.app import run
    except KeyboardInterrupt:  # from here on the commands themselves answer to Ctrl-C
        return 130
    return run(argv)


__all__ = ["main"]
