"""A plan in prose: what was planned, where time and memory go, and which collectives a step runs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping

from autoplan.placement import format_placements
from autoplan.plan.dump import flow
from autoplan.plan.patterns import natural_key
from autoplan.plan.plain import Plain, plan_to_json
from autoplan.plan.schema import Plan, Uses

_BAR_WIDTH = 24
_EIGHTHS = " ▏▎▍▌▋▊▉"


def collective_counts(plan: Plan) -> dict[str, int]:
    """How many collectives of each kind and axes one step runs, forward and backward: {"all-gather y": 64, ...}.

    Counted are those of `reshard`, inside `ops` and of `gather`, each times the count of its line. The forward of a
    recomputed block counts once, as the file says it (`assignment.recompute.collectives_again` counts the second).
    """
    counts: Counter[str] = Counter()
    for entries in plan.reshard.values():
        for entry in entries:
            counts.update({str(c): n * entry.count for c, n in Counter(entry.forward + entry.backward).items()})
    for op in plan.ops.values():
        counts.update({str(c): n * op.count for c, n in Counter(op.inside).items()})
    for gather in plan.gather.values():
        counts.update({str(c): n * gather.count for c, n in Counter(gather.forward + gather.backward).items()})
    return {name: counts[name] for name in sorted(counts)}


def format_summary(plan: Plan) -> str:
    """Header, time split, memory by kind, layouts by hand, collectives, parameters and what to look at, as plain text."""
    said = plan_to_json(plan)
    parts = (
        _header(plan, said),
        _time(said["predicted"]),
        _memory(said["predicted"]["memory_gib"]),
        _by_hand(said),
        _collectives(plan),
        _params(plan),
        _remarks(plan),
    )
    return "\n\n".join(text for part in parts if (text := "\n".join(part))) + "\n"


def _header(plan: Plan, said: Mapping[str, Plain]) -> Iterator[str]:
    model, options, solver = plan.model, plan.options, said["solver"]
    example = [f"{key}={flow(said['model'][key])}" for key in ("batch", "seq") if key in said["model"]]
    settings = [f"{key}={flow(value)}" for key, value in said["model"]["set"].items()]
    axes = " ".join(f"{name}={size}" for name, size in said["mesh"].items())
    devices = "1 device" if plan.mesh.size == 1 else f"{plan.mesh.size} devices"
    limit = "" if options.memory_gib is None else f", at most {flow(said['options']['memory_gib'])} GiB per device"
    gap = "" if solver["gap"] is None else f", gap {100 * solver['gap']:.3g} %"
    yield "  ".join([model.target, *settings, *example])
    yield f"  {model.parameters:,} parameters on {axes} ({devices}, {plan.hardware.profile})"
    compiled = ", compiled" if options.compile else ""
    yield f"  {options.mode}, {options.optimizer}, {options.precision}{compiled}{limit}"
    unfolded_gap = solver.get("unfolded_gap")
    unfolded = "" if unfolded_gap is None else f", unfolded gap {100 * unfolded_gap:.3g} %"
    yield f"  {solver['status']}{gap}{unfolded}"


def _time(predicted: Mapping[str, Plain]) -> Iterator[str]:
    communication = predicted["communication_ms"]
    parts = {name.removesuffix("_ms"): predicted[name] for name in ("compute_ms", "recompute_ms", "optimizer_ms", "host_ms")}
    yield f"step {flow(predicted['step_ms'])} ms"
    yield from _bars(parts | {"communication": communication["exposed"]})
    if communication["hidden"]:
        yield f"  and {flow(communication['hidden'])} ms of communication hidden behind compute"


def _memory(memory_gib: Mapping[str, Plain]) -> Iterator[str]:
    yield f"memory {flow(memory_gib['peak'])} GiB per device at its peak"
    yield from _bars({name: part for name, part in memory_gib.items() if name != "peak"})


def _bars(parts: Mapping[str, float]) -> Iterator[str]:
    """One line a part, with a bar as long as its share of them all."""
    total = sum(parts.values())
    for name, part in parts.items():
        yield f"  {name:<13} {flow(part):>6}  {_bar(part / total if total else 0.0)}".rstrip()


def _bar(share: float) -> str:
    whole, eighths = divmod(round(share * _BAR_WIDTH * 8), 8)
    return "█" * whole + _EIGHTHS[eighths]


def _by_hand(said: Mapping[str, Plain]) -> Iterator[str]:
    """The plan beside layouts that one writes by hand, each with a bar as long as its step beside the longest."""
    lines = said.get("by_hand")
    if not lines:
        return
    predicted = said["predicted"]
    lines = {"this plan": {"step_ms": predicted["step_ms"], "peak_gib": predicted["memory_gib"]["peak"]}} | lines
    longest = max(line.get("step_ms", 0) for line in lines.values())
    yield f"{'beside layouts by hand':<22}  {'step ms':>7}  {'peak GiB':>8}"
    for name, line in lines.items():
        if reason := line.get("none"):
            yield f"  {name:<20}  {'-':>7}  {'-':>8}  {reason}"
        else:
            bar = _bar(line["step_ms"] / longest if longest else 0.0)
            yield f"  {name:<20}  {flow(line['step_ms']):>7}  {flow(line['peak_gib']):>8}  {bar}".rstrip()


def _collectives(plan: Plan) -> Iterator[str]:
    counts = collective_counts(plan)
    width = max(map(len, counts), default=0)
    yield "collectives per step" if counts else "no collectives"
    yield from (f"  {name:<{width}}  {count:>5}" for name, count in counts.items())


def _params(plan: Plan) -> Iterator[str]:
    """Each line of parameters: how many, stored how, used how."""
    rows = [("parameters", "", "stored", "used")]
    for name in sorted(plan.params, key=natural_key):
        line = plan.params[name]
        rows.append((f"  {name}", f"x{line.count}" if line.count > 1 else "", format_placements(line.store), _use_text(line.use)))
    widths = [max(len(row[i]) for row in rows) for i in range(3)]
    for name, count, store, use in rows:
        yield f"{name:<{widths[0]}}  {count:>{widths[1]}}  {store:<{widths[2]}}  {use}".rstrip()


def _use_text(use: Uses) -> str:
    if isinstance(use, Mapping):
        return "; ".join(f"{format_placements(use[op])} in {op}" for op in sorted(use, key=natural_key))
    return format_placements(use)


def _remarks(plan: Plan) -> Iterator[str]:
    """What a reviewer should not overlook: recomputed blocks, and ops without a rule."""
    for name in sorted(plan.recompute, key=natural_key):
        line = plan.recompute[name]
        yield f"recompute: the first {line.blocks} of {line.of} {name} ({line.policy})"
    for line in plan_to_json(plan)["fallbacks"]:
        yield f"fallback: {line['address']} ({line['op']}) is replicated, x{line['count']}, {flow(line['added_ms'])} ms"
