"""Flags that several commands take, and what they mean together with a request file."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from autoplan.errors import PlanError, TargetError, UsageError
from autoplan.plan import Plan
from autoplan.request import MODES, Request, is_request, load_request
from autoplan.settings import parse_settings

if TYPE_CHECKING:
    from autoplan.load import Target

_SETTING = re.compile(r"[A-Za-z_]\w*=")
PLAN = click.Path(path_type=Path)
TARGET_HELP = "TARGET is file.py[:factory], package.module:factory, a Hugging Face config.json or a request .yaml."

plan_argument = click.argument("plan_file", metavar="PLAN", type=PLAN)
set_option = click.option(
    "--set", "settings", metavar="KEY=VALUE ...", multiple=True, help="Settings of the factory; one or more, may be repeated."
)
batch_option = click.option("--batch", type=click.IntRange(min=1), metavar="B", help="Batch size of the example input.")
seq_option = click.option("--seq", type=click.IntRange(min=1), metavar="T", help="Sequence length of the example input.")
mode_option = click.option("--mode", type=click.Choice(MODES), help="What is planned; train unless said.")
hardware_option = click.option("--hardware", metavar="NAME|FILE", help="A hardware profile.")
rules_option = click.option("--rules", metavar="FILE|MODULE", help="Registers rules for ops of your own.")
json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON object on stdout.")


class SettingsCommand(click.Command):
    """A command whose `--set` takes every KEY=VALUE that follows it."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """`--set a=1 b=2` as `--set a=1 --set b=2`, then as usual."""
        return super().parse_args(ctx, list(_one_setting_each(args)))


def _one_setting_each(args: Sequence[str]) -> Iterator[str]:
    following = False
    for before, arg in zip(["", *args], args, strict=False):
        is_setting = _SETTING.match(arg) is not None
        if following and is_setting and before != "--set":
            yield "--set"
        following = arg == "--set" or (following and is_setting)
        yield arg


def requested(target: str, settings: Sequence[str], **flags: Any) -> Request:
    """What is asked for: the request file if `target` names one, overridden by the flags that are not None."""
    request = load_request(target) if is_request(target) else Request(target)
    return request.override(settings=parse_settings(settings), **flags)


def positive(flag: str, value: float | None) -> float | None:
    """The value of a flag, if any; raises UsageError where it is not a positive number."""
    if value is not None and not (math.isfinite(value) and value > 0):
        raise UsageError(f"{flag} {value:g} is not a positive number")
    return value


@contextmanager
def said_by(file: str | None) -> Iterator[None]:
    """Within it, what is wrong usage on the command line is wrong input if a request file said it."""
    try:
        yield
    except UsageError as error:
        if file is None:
            raise
        raise TargetError(error.what, where=file, next_step=error.next_step) from error


def target_of_request(request: Request) -> Target:
    """The factory and settings a request names."""
    from autoplan.load import load_rules, load_target

    rules = load_rules(request.rules) if request.rules else None
    return load_target(request.target, request.settings, batch=request.batch, seq=request.seq, mode=request.mode, rules=rules)


def target_of_plan(
    plan: Plan, path: Path, target: str | None = None, settings: Mapping[str, Any] | None = None, rules: str | None = None
) -> Target:
    """The factory and rules a plan file names, relative to it, or `target` and `rules` in their place; `settings` override the plan's."""
    from autoplan.load import load_rules, load_target

    if target is not None and is_request(target):
        return target_of_request(load_request(target).override(mode=plan.options.mode, settings=settings, rules=rules))
    model = plan.model
    sizes = {"batch": model.batch, "seq": model.seq}
    try:
        registered = load_rules(rules) if rules else load_rules(model.rules, path.parent) if model.rules else None
        return load_target(
            target or model.target,
            {key: value for key, value in sizes.items() if value is not None} | {**model.set, **(settings or {})},
            mode=plan.options.mode,
            base="." if target else path.parent,
            rules=registered,
        )
    except TargetError as error:
        if target is not None or rules is not None:
            raise
        where = "; ".join(part for part in (error.where, f"named by {plan.provenance.where('model')}") if part)
        raise PlanError(error.what, where=where, next_step=error.next_step or "name it where it is now: TARGET or --target") from error
