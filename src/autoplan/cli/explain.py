"""`autoplan explain`: why a plan decides something as it does, by what each alternative would cost."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from math import floor, log10
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from autoplan.cli.exits import reported
from autoplan.cli.options import (
    SettingsCommand,
    hardware_option,
    json_option,
    plan_argument,
    positive,
    rules_option,
    set_option,
    target_of_plan,
)
from autoplan.cli.output import put, put_json, tell
from autoplan.cli.validate import captured, hardware_of, notes, recosted
from autoplan.placement import format_placements
from autoplan.plan import Plan, load_plan
from autoplan.settings import parse_settings

if TYPE_CHECKING:
    from autoplan.cost.hardware import Hardware
    from autoplan.load import Built
    from autoplan.planner.alternatives import Alternative, Explained, Question
    from autoplan.planner.decisions import Said

ALTERNATIVES = 12
TIME_LIMIT_S = 20.0
SAME = 1e-3  # of a step: costs that differ by less are not known apart


@click.command(
    cls=SettingsCommand,
    epilog="ADDRESS is a parameter ('layers.*.attn.wq.weight'), an op ('layers.*.attn/linear') or an input ('inputs/tokens') as the "
    "plan names it; a copy of a repeated block stands for all that decide alike.",
)
@plan_argument
@click.argument("address")
@click.option("--target", metavar="TARGET", help="The model, where it is no longer what the plan names.")
@set_option
@hardware_option
@rules_option
@click.option("--alternatives", type=click.IntRange(min=0), default=ALTERNATIVES, show_default=True, metavar="N", help="Solve at most N.")
@click.option(
    "--time-limit", type=float, default=TIME_LIMIT_S, show_default=True, metavar="S", help="Seconds the solver may take for each."
)
@json_option
@reported
def explain(
    plan_file: Path,
    address: str,
    target: str | None,
    settings: tuple[str, ...],
    hardware: str | None,
    rules: str | None,
    alternatives: int,
    time_limit: float,
    as_json: bool,
) -> None:
    """Show what else a parameter, op or input could be, and what each would cost.

    Each alternative is the best plan that has it, all else being free: what it costs more is the price of that one decision.
    """
    plan = load_plan(plan_file)
    time_limit_s = positive("--time-limit", time_limit)
    machine = hardware_of(plan, hardware)
    changes = parse_settings(settings)
    from autoplan.cli.progress import Stages
    from autoplan.load import build_meta
    from autoplan.planner.alternatives import explain as explain_decision

    with Stages() as stages:
        stages.stage("load")
        built = build_meta(target_of_plan(plan, plan_file, target, changes, rules))
        stages.stage("capture")
        question = asked(plan, address, built, machine, time_limit_s, shrunk=bool(changes))
        stages.stage("solve")
        found = explain_decision(question, alternatives, stages.found)
        stages.found(f"{len(found.others)} alternatives")
    for note in (
        *notes(question.plan if changes else plan, question.plan, machine, chosen=hardware is not None),
        *remarks(question, found),
    ):
        tell(f"note: {note}")
    if as_json:
        put_json({**report(question, found), "seconds": dict(stages.seconds)})
    else:
        put("\n".join(table(question, found)) + "\n")


def asked(plan: Plan, address: str, built: Built, hardware: Hardware, time_limit_s: float | None, *, shrunk: bool) -> Question:
    """The question about a plan, predicted anew, and rescaled where settings have `shrunk` its model; raises PlanError."""
    from autoplan.assignment import decode
    from autoplan.assignment.rescale import rescale
    from autoplan.planner.alternatives import Question
    from autoplan.planner.decisions import decision_of
    from autoplan.planner.pipeline import PlanRequest, capture_for

    graph = capture_for(built.module, built.args, built.kwargs, plan.options) if shrunk else captured(plan, built)
    decision = decision_of(address, graph, plan)
    plan = rescale(plan, graph) if shrunk else plan
    now = recosted(plan, built, graph, hardware)
    request = PlanRequest(plan.mesh, hardware, plan.options, pins=plan.pins, unfold=not plan.solver.folded, time_limit_s=time_limit_s)
    return Question(built, graph, now, decode(plan, graph), request, decision)


def remarks(question: Question, found: Explained) -> Iterator[str]:
    """What is worth knowing of the answer."""
    for pin in found.unbound:
        yield f"the plan pins this: {dict(pin)}; alternatives are planned without that"
    if len(found.own) > 1:
        yield "copies differ in this plan, so the plan itself stands for its choice; in alternatives all copies are alike"
    elif any(isinstance(value, Mapping) for own in found.own for value in own.said.values()):
        yield "its uses differ, so the plan itself stands for its choice; an alternative `use` is one for all of them"
    step_ms = question.plan.predicted.step_ms
    for own in found.own:
        if own.step_ms is not None and own.step_ms < step_ms * (1 - SAME):
            yield f"the plan takes {step_ms - own.step_ms:.3g} ms more than the best with its choice: other decisions cost that"
    if found.interrupted:
        yield "interrupted: what was not solved by then is left out"


def report(question: Question, found: Explained) -> dict[str, Any]:
    """What `--json` prints."""
    predicted = question.plan.predicted
    return {
        "section": question.decision.section,
        "address": list(question.decision.patterns),
        "count": len(question.decision.names),
        "step_ms": predicted.step_ms,
        "peak_gib": predicted.memory_gib.peak,
        "limit_gib": question.request.limit_bytes / 2**30,
        "alternatives": [_reported(one, predicted.step_ms) for one in (*found.own, *found.others)],
        "left_out": {"count": found.left_out, "at_least_ms": found.at_least_ms},
        "unbound_pins": [dict(pin) for pin in found.unbound],
        "interrupted": found.interrupted,
    }


def _reported(one: Alternative, step_ms: float) -> dict[str, Any]:
    return {
        **{field: _plain(value) for field, value in one.said.items()},
        "own": one.is_own,
        "fits": one.fits,
        "step_ms": one.step_ms,
        "difference_ms": None if one.step_ms is None else one.step_ms - step_ms,
        "peak_gib": one.peak_gib,
        "gap": one.gap,
        "problem": one.problem,
        "pins": [dict(pin) for pin in one.pins],
    }


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _plain(place) for name, place in value.items()}
    return value if isinstance(value, str) else list(map(str, value))


def table(question: Question, found: Explained) -> Iterator[str]:
    """The plan's own choice and its alternatives, by the time of a step."""
    from autoplan.planner.decisions import FIELDS

    decision, predicted = question.decision, question.plan.predicted
    times = f" x{len(decision.names)}" if len(decision.names) > 1 else ""
    yield f"{decision}{times}: this plan takes {_number(predicted.step_ms, predicted.step_ms)} ms a step, {_gib(predicted.memory_gib.peak)} GiB"
    yield ""
    fields = FIELDS[decision.section]
    rows = [[*fields, "step ms", "difference", "peak GiB", ""]]
    rows += [[*(_text(one.said, field) for field in fields), *_costs(one, predicted.step_ms)] for one in (*found.own, *found.others)]
    yield from _aligned(rows, len(fields))
    if found.left_out:
        yield ""
        yield f"{found.left_out} more left out (--alternatives N){_at_least(question, found)}"


def _at_least(question: Question, found: Explained) -> str:
    """What is proved of alternatives that were left out, where that says something."""
    step_ms, least_ms = question.plan.predicted.step_ms, found.at_least_ms or 0.0
    if question.request.unfold or least_ms < step_ms:
        return ""
    return f": none takes less than {_number(least_ms, step_ms)} ms while copies of a block decide alike"


def _costs(one: Alternative, step_ms: float) -> list[str]:
    remark = "; ".join(
        text
        for text in (
            "<- this plan" if one.is_own else "",
            one.problem or "",
            f"up to {one.gap:.1%} less is not excluded" if one.gap else "",
        )
        if text
    )
    if one.step_ms is None:
        return ["-", "-", "-" if one.peak_gib is None else _gib(one.peak_gib), remark]
    more = _number(one.step_ms - step_ms, step_ms)
    return [_number(one.step_ms, step_ms), f"+{more}" if float(more) > 0 else more, _gib(one.peak_gib or 0.0), remark]


def _number(value: float, like: float, digits: int = 4) -> str:
    """With as many decimals as make so many digits of a number `like` it."""
    text = f"{value:.{max(0, digits - 1 - floor(log10(like)))}f}" if like > 0 else f"{value:g}"
    return text if float(text) else text.removeprefix("-")


def _gib(amount: float) -> str:
    return _number(amount, amount, digits=3)


def _text(said: Said, field: str) -> str:
    """A choice as plans write it; `any` where it was left open and nothing was found."""
    value = said.get(field, "any")
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {format_placements(place)}" for name, place in value.items())
    return value if isinstance(value, str) else format_placements(value)


def _aligned(rows: Sequence[Sequence[str]], texts: int) -> Iterator[str]:
    """Columns: so many of text, then numbers to the right, then a remark."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = [
            f"{cell:<{width}}" if k < texts or k == len(row) - 1 else f"{cell:>{width}}"
            for k, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        yield "  ".join(cells).rstrip()
