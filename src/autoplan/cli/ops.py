"""`autoplan ops`: the ops that have rules, or how those of one model are covered."""

from __future__ import annotations

from collections.abc import Iterator
from inspect import cleandoc
from textwrap import wrap
from typing import TYPE_CHECKING, Any

import click

from autoplan.cli.exits import reported
from autoplan.cli.options import TARGET_HELP, batch_option, mode_option, requested, seq_option, set_option, target_of_request
from autoplan.cli.output import put

if TYPE_CHECKING:
    from autoplan.graph import Graph, Node

_WIDTH = 120


@click.command(epilog=TARGET_HELP)
@click.argument("target", required=False)
@set_option
@batch_option
@seq_option
@mode_option
@reported
def ops(target: str | None, settings: tuple[str, ...], **flags: Any) -> None:
    """List the ops that have rules. With TARGET: those the model uses, and those that run replicated."""
    if target is None:
        put("\n\n".join(known_ops()) + "\n")
        return
    request = requested(target, settings, **flags)
    from autoplan.graph import capture
    from autoplan.load import build_meta

    built = build_meta(target_of_request(request))
    graph = capture(built.module, built.args, built.kwargs, mode="infer" if request.mode == "infer" else "train")
    put("\n".join(used_ops(graph)) + "\n")


def known_ops() -> Iterator[str]:
    """One text for each rule: the ops that share it, and its rows."""
    from autoplan.rules import all_rules

    by_doc: dict[str, list[str]] = {}
    for rule in all_rules():
        by_doc.setdefault(rule.doc, []).append(rule.op)
    for doc, names in by_doc.items():
        rows = (f"    {line}".rstrip() for line in cleandoc(doc).splitlines())
        yield "\n".join([*wrap(", ".join(names), _WIDTH), *rows])
    yield "Every other op that torch tags as pointwise has the rows of pointwise ops; every op can run replicated."


def used_ops(graph: Graph) -> Iterator[str]:
    """A line for each op of the model: how often, by which rule, and for an op without one where it is."""
    from autoplan.rules import all_rules, rule_of

    named = {rule.op for rule in all_rules()}
    found: dict[str, list[Node]] = {}
    for node in graph.nodes:
        found.setdefault(node.op, []).append(node)
    width = max(map(len, found), default=0)
    for op, nodes in sorted(found.items(), key=lambda item: (rule_of(item[0]) is not None, item[0])):
        if rule_of(op) is None:
            how = f"no rule, runs replicated: {nodes[0].address} ({nodes[0].source})"
        else:
            how = "rule" if op in named or nodes[0].name in named else "pointwise"
        yield f"{op:<{width}}  {len(nodes):>5}  {how}"
