"""`autoplan ops`: the ops that have rules, or how those of one model are covered."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import click

from autoplan.cli.exits import reported
from autoplan.cli.options import (
    TARGET_HELP,
    SettingsCommand,
    batch_option,
    json_option,
    mode_option,
    requested,
    rules_option,
    seq_option,
    set_option,
    target_of_request,
)
from autoplan.cli.output import put, put_json
from autoplan.errors import UsageError

if TYPE_CHECKING:
    from autoplan.graph import Graph
    from autoplan.planner.coverage import UsedOp
    from autoplan.request import Request


@click.command(cls=SettingsCommand, epilog=TARGET_HELP)
@click.argument("target", required=False)
@set_option
@batch_option
@seq_option
@mode_option
@rules_option
@click.option("--markdown", is_flag=True, help="Print autoplan's own rules as docs/OPS.md has them.")
@json_option
@reported
def ops(target: str | None, settings: tuple[str, ...], markdown: bool, as_json: bool, **flags: Any) -> None:
    """List the ops that have rules, with their rows. With TARGET: those the model uses, and those that run replicated."""
    if markdown and (as_json or target is not None):
        raise UsageError("--markdown goes with neither --json nor a TARGET")
    if target is None:
        known(flags["rules"], markdown=markdown, as_json=as_json)
        return
    from autoplan.planner.coverage import used_ops

    used = used_ops(captured(requested(target, settings, **flags)))
    if as_json:
        put_json({"ops": [op.to_json() for op in used]})
    else:
        put("\n".join(table(used)) + "\n")


def known(rules: str | None, *, markdown: bool, as_json: bool) -> None:
    """Prints every rule, those of the user's module `rules` too."""
    from autoplan.rules.describe import as_markdown, as_text, documented_rules

    if markdown:
        put(as_markdown(documented_rules(users=False)))
        return
    if rules is not None:
        from autoplan.load import load_rules

        load_rules(rules)
    found = documented_rules()
    if as_json:
        entries = [
            {"op": op, "family": rule.family, "rows": [{"row": row, "when": when} for row, when in rule.rows()]}
            for rule in found
            for op in rule.ops
        ]
        put_json({"ops": entries})
    else:
        put(as_text(found))


def captured(request: Request) -> Graph:
    """The graph of the model that a request names."""
    from autoplan.graph import capture
    from autoplan.load import build_meta

    built = build_meta(target_of_request(request))
    return capture(built.module, built.args, built.kwargs, mode="infer" if request.mode == "infer" else "train")


def table(used: tuple[UsedOp, ...]) -> Iterator[str]:
    """A line for each op, those without a rule first and with the places where they are; then how much is covered."""
    width = max((len(op.op) for op in used), default=2)
    yield f"{'op':<{width}}  {'calls':>5}  {'splittable':>10}  rule"
    for op in used:
        yield f"{op.op:<{width}}  {op.count:>5}  {op.splittable:>10}  {op.rule or 'none: runs replicated'}"
        for place in op.places if op.rule is None else ():
            times = f" x{place.count}" if place.count > 1 else ""
            yield f"  {place.address}{times}  {place.source}"
    without = [op for op in used if op.rule is None]
    calls = sum(op.count for op in without)
    yield f"{len(used)} ops in {sum(op.count for op in used)} calls; " + (
        f"{len(without)} of them, {calls} calls, have no rule" if without else "every one has a rule"
    )
