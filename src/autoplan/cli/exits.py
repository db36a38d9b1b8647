"""How a command ends: the one place where exceptions become messages and exit codes."""

from __future__ import annotations

import functools
import os
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from autoplan.cli.output import tell
from autoplan.errors import BUG, AutoplanError

DIFFERS = 4
INTERRUPTED = 130  # 128 + SIGINT, as shells have it
PACKAGE = Path(__file__).parent.parent


def reported(command: Callable[..., None]) -> Callable[..., None]:
    """`command`, which ends with one message on stderr and the exit code of what it raised."""

    @functools.wraps(command)
    def run(*args: Any, **kwargs: Any) -> None:
        try:
            command(*args, **kwargs)
        except (click.exceptions.Exit, click.ClickException, BrokenPipeError):
            raise
        except AutoplanError as error:
            tell(f"error: {error}")
            raise click.exceptions.Exit(error.exit_code) from None
        except KeyboardInterrupt:
            tell("interrupted")
            raise click.exceptions.Exit(INTERRUPTED) from None
        except Exception as error:
            tell(traceback.format_exc() if os.environ.get("AUTOPLAN_DEBUG") == "1" else _bug(error))
            raise click.exceptions.Exit(BUG) from None

    return run


def _bug(error: Exception) -> str:
    """One message for what is our own mistake: the exception, and the innermost line of ours that saw it."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if Path(frame.filename).is_relative_to(PACKAGE)]
    where = f" at {Path(frames[-1].filename).relative_to(PACKAGE.parent)}:{frames[-1].lineno}" if frames else ""
    said = str(error).strip().splitlines()
    what = f"{type(error).__name__}: {said[0][:300]}" if said else type(error).__name__
    return f"internal error: {what}{where}\n  this is a bug of autoplan: please report it with the command; AUTOPLAN_DEBUG=1 shows the traceback"
