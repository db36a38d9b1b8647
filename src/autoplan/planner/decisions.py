"""One decision of a plan, found by its address: what it could be instead, and the pins that make it so."""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from autoplan.assignment import Assignment
from autoplan.assignment.names import input_name, output_names
from autoplan.errors import PlanError
from autoplan.graph import Graph, find_blocks, foldable_prefixes
from autoplan.graph.blocks import classes
from autoplan.placement import Placements
from autoplan.plan.patterns import collapse, match, parse_pattern, skeleton
from autoplan.plan.schema import Plan, Uses
from autoplan.planner.pins import ALL, uses_of
from autoplan.planner.terms import Terms

FIELDS: Mapping[str, tuple[str, ...]] = {"params": ("store", "use"), "inputs": ("place",), "ops": ("row",)}
_INPUT, _OUTPUT = "inputs/", "outputs/"
_OUTPUT_NUMBER = re.compile(r"\[\d+\]$")

Said = Mapping[str, Uses | str]
"""What is decided, by field of a pin: placements, or the row of an op. `use` is a mapping where the uses of a parameter differ."""
Pin = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Decision:
    """What is decided at once: parameters, ops or an input, by `names`; `patterns` stand for these and no others."""

    section: str  # of a pin: params, inputs or ops
    names: tuple[str, ...]
    patterns: tuple[str, ...]

    def __str__(self) -> str:
        return ", ".join(self.patterns)

    def pins(self, said: Said) -> tuple[Pin, ...]:
        """The pins by which just this is decided."""
        fields = {field: value if isinstance(value, str) else list(map(str, value)) for field, value in said.items()}
        return tuple({self.section: pattern, **fields} for pattern in self.patterns)

    def is_bound_by(self, pin: Pin) -> bool:
        """Whether a pin decides some of it."""
        wanted = pin.get(self.section)
        if not isinstance(wanted, str) or not set(FIELDS[self.section]) & set(pin):
            return False
        return any(_names(self.section, wanted, name) for name in self.names)


@dataclass(frozen=True, slots=True)
class Option:
    """One thing that could be decided, and by problem node the strategies that have it."""

    field: str
    value: Placements | str
    strategies: tuple[tuple[int, tuple[int, ...]], ...]


def decision_of(address: str, graph: Graph, plan: Plan) -> Decision:
    """What `address` names, an FQN, the address of an op or input or a pattern of these, with all that decides alike.

    Copies of a block do where the plan is folded; else those of the same line. Raises PlanError for what is nowhere or never decided.
    """
    parse_pattern(address)
    parameters = [parameter.fqn for parameter in graph.parameters]
    named = [p.fqn for p in graph.parameters if any(match(address, name) for name in (p.fqn, *p.aliases))]
    if named:
        return _decision("params", named, parameters, graph, plan)
    inputs = [input_name(graph, value) for value in graph.inputs]
    if (name := address.removeprefix(_INPUT)) in inputs:
        return Decision("inputs", (name,), (name,))
    ops = [node.address for node in graph.nodes]
    named = [name for name in ops if match(_OUTPUT_NUMBER.sub("", address), name)]
    if named:
        return _decision("ops", named, ops, graph, plan)
    raise _undecided(address, graph) or _unknown(address, [*parameters, *ops], inputs, graph, plan)


def _decision(section: str, named: Sequence[str], existing: Sequence[str], graph: Graph, plan: Plan) -> Decision:
    alike = _of_one_class(section, named, graph) if plan.solver.folded else _of_one_line(named, existing, getattr(plan, section))
    names = tuple(name for name in existing if name in alike)
    return Decision(section, names, tuple(collapse(dict.fromkeys(names, ""), foldable_prefixes(find_blocks(graph)), existing=existing)))


def _of_one_class(section: str, named: Iterable[str], graph: Graph) -> set[str]:
    found = classes(graph, find_blocks(graph))
    if section == "params":
        of_class: Mapping[str, int] = found.parameter_class
    else:
        of_class = {node.address: found.node_class[node.id] for node in graph.nodes}
    wanted = {of_class[name] for name in named}
    return {name for name, c in of_class.items() if c in wanted}


def _of_one_line(named: Collection[str], existing: Iterable[str], lines: Iterable[str]) -> set[str]:
    keys = [key for key in lines if any(match(key, name) for name in named)]
    return {*named, *(name for name in existing if any(match(key, name) for key in keys))}


def _undecided(address: str, graph: Graph) -> PlanError | None:
    """The error for what the model has, but leaves no choice."""
    if any(match(address, fqn) for fqn in graph.buffers):
        return PlanError(f"{address} is a buffer: every rank holds the whole of it", next_step="name a parameter, an input or an op")
    makers = {name: graph.producers.get(value) for name, value in zip(output_names(graph), graph.outputs, strict=True)}
    if (name := address.removeprefix(_OUTPUT)) in makers:
        maker = makers[name]
        hint = None if maker is None else f"name that: {maker.address}"
        return PlanError(f"{address} is an output: it leaves as the op that makes it has it", next_step=hint)
    return None


def _unknown(address: str, foldable: Sequence[str], inputs: Sequence[str], graph: Graph, plan: Plan) -> PlanError:
    """The error for what the model does not have, with the names most like it."""
    patterns = collapse(dict.fromkeys(foldable, ""), foldable_prefixes(find_blocks(graph)), execution_order=True)
    known = {skeleton(pattern): pattern for pattern in reversed(patterns)} | {name: _INPUT + name for name in inputs}
    wanted = skeleton(address.removeprefix(_INPUT))
    inside = [name for name in reversed(known) if name.startswith((f"{wanted}.", f"{wanted}/"))]
    near = [wanted] if wanted in known else inside[:3] or difflib.get_close_matches(wanted, known, n=3)
    hint = f"did you mean {' or '.join(known[name] for name in near)}?" if near else f"it has {', '.join(list(patterns)[:6])}, ..."
    return PlanError(f"{address}: the model has no such parameter, input or op", where=plan.provenance.where("model"), next_step=hint)


def decided(decision: Decision, plan: Plan, assignment: Assignment | None = None) -> tuple[Said, ...]:
    """What a plan decides there, once for all copies that agree; rows are those of its `assignment`."""
    found: list[Said] = []
    for said in _decided(decision, plan, assignment):
        if said not in found:
            found.append(said)
    return tuple(found)


def _decided(decision: Decision, plan: Plan, assignment: Assignment | None) -> Iterator[Said]:
    if decision.section == "ops":
        assert assignment is not None, "a plan writes down only rows that do not follow"
        wanted = set(decision.names)
        for node in assignment.graph.nodes:
            if node.address in wanted:
                yield {"row": assignment.strategies[node.id].describe(assignment.mesh)}
    elif decision.section == "inputs":
        yield from ({"place": plan.inputs[name].place} for name in decision.names)
    else:
        for name in decision.names:
            line = next(line for key, line in plan.params.items() if match(key, name))
            yield {"store": line.store, "use": line.use}


def freed(pins: Sequence[Pin], decision: Decision, graph: Graph) -> tuple[Pin, ...]:
    """The pins without what they say of a decision; what they say of other names stays."""
    prefixes = foldable_prefixes(find_blocks(graph))
    known = {"params": [parameter.fqn for parameter in graph.parameters], "ops": [node.address for node in graph.nodes]}
    kept: list[Pin] = []
    for pin in pins:
        if not decision.is_bound_by(pin):
            kept.append(pin)
            continue
        names = [name for name in known.get(decision.section, ()) if _names(decision.section, pin[decision.section], name)]
        others = [name for name in names if name not in decision.names]
        patterns = collapse(dict.fromkeys(others, ""), prefixes, existing=known.get(decision.section, ()))
        kept += [{**pin, decision.section: pattern} for pattern in patterns]
        rest = {key: value for key, value in pin.items() if key not in FIELDS[decision.section]}
        if len(rest) > 1:
            kept += [{**rest, decision.section: pattern} for pattern in decision.patterns]
    return tuple(kept)


def _names(section: str, wanted: str, name: str) -> bool:
    """Whether a pin on `wanted` speaks of `name`."""
    if section == "inputs":
        return wanted == name
    return (section == "params" and wanted == ALL) or match(wanted, name)


def options_of(decision: Decision, terms: Terms) -> tuple[Option, ...]:
    """All that could be decided, one field at a time, as far as candidates allow it."""
    graph, found = terms.candidates.graph, terms.candidates.classes
    if decision.section == "ops":
        return tuple(_rows(terms, {found.node_class[node.id] for node in graph.nodes if node.address in decision.names}))
    if decision.section == "inputs":
        values = {found.value_class[value] for value in graph.inputs if input_name(graph, value) in decision.names}
        return tuple(_states("place", terms, values))
    values = {found.parameter_class[name] for name in decision.names}
    return (*_states("store", terms, values), *_uses(terms, values))


def _states(field: str, terms: Terms, values: Collection[int]) -> Iterator[Option]:
    """The states that sources of all these value classes may have."""
    sources = {c: terms.candidates.sources[c] for c in sorted(values)}
    for state in next(iter(sources.values())):
        if all(state in states for states in sources.values()):
            yield Option(field, state, tuple((terms.source_nodes[c], (states.index(state),)) for c, states in sources.items()))


def _uses(terms: Terms, values: Collection[int]) -> Iterator[Option]:
    """The placements in which all readers can use parameters of these value classes."""
    candidates = terms.candidates
    uses = {c: [uses_of(candidates, c, s, values) for s in candidates.strategies[c]] for c in _readers(terms, values)}
    for wanted in dict.fromkeys(use for of_class in uses.values() for used in of_class for use in sorted(used, key=str)):
        takes = tuple((c, tuple(s for s, used in enumerate(of_class) if used <= {wanted})) for c, of_class in uses.items())
        if all(strategies for _, strategies in takes):
            yield Option("use", wanted, takes)


def _readers(terms: Terms, values: Collection[int]) -> list[int]:
    """The node classes that read values of these classes."""
    graph, found = terms.candidates.graph, terms.candidates.classes
    return [
        c for c, node in enumerate(found.node_representatives) if {found.value_class[v] for v in graph.nodes[node].inputs} & set(values)
    ]


def _rows(terms: Terms, nodes: Collection[int]) -> Iterator[Option]:
    """The rows that all these node classes may run by."""
    by_row: dict[str, dict[int, list[int]]] = {}
    for c in sorted(nodes):
        for s, strategy in enumerate(terms.candidates.strategies[c]):
            by_row.setdefault(strategy.describe(terms.candidates.mesh), {}).setdefault(c, []).append(s)
    for row, takes in by_row.items():
        if len(takes) == len(nodes):
            yield Option("row", row, tuple((c, tuple(strategies)) for c, strategies in takes.items()))
