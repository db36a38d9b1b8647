"""The command line: one file per command; parse, call, print. torch, ortools and rich load only where a command needs them."""

from autoplan.cli.app import main

__all__ = ["main"]
