"""Pins: what the user has decided already. They only take candidates away; the solver decides the rest.

- {params: "layers.*.attn.wq.weight", use: [R, S(0)], store: [S(1), S(0)]}   # `store` and `use` may stand alone
- {params: all, gather: never}                                               # weights are used as they are stored
- {inputs: tokens, place: [S(0), R]}
- {recompute: "layers.*", blocks: 8}                                          # the first 8 copies; 0 for none
- {ops: "layers.*.attn/scaled_dot_product_attention", row: "S(0) S(0) S(0) -> S(0) on x; S(1) S(1) S(1) -> S(1) on y"}
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

from autoplan.assignment.names import input_name
from autoplan.errors import PlacementError, PlanError, join_problems
from autoplan.graph.blocks import BlockRun, classes, find_blocks
from autoplan.graph.ir import Graph
from autoplan.graph.segments import block_segments
from autoplan.placement import Placements, format_placements, forward_of, parse_placement
from autoplan.plan.patterns import match
from autoplan.planner.candidates import Candidates, enumerate_candidates
from autoplan.planner.request import PlanRequest
from autoplan.planner.split import split_candidates
from autoplan.rules.row import Strategy

_KEYS = {"params": {"store", "use", "gather"}, "inputs": {"place"}, "ops": {"row"}, "recompute": {"blocks"}}
_HINT = "write {params: PATTERN, store: [...], use: [...]}, {params: PATTERN, gather: never}, {inputs: NAME, place: [...]}, {ops: PATTERN, row: ...} or {recompute: BLOCKS, blocks: N}"
ALL = "all"


def apply_pins(candidates: Candidates, pins: Sequence[Mapping[str, Any]]) -> Candidates:
    """The candidates that respect every pin; raises PlanError that lists all pins that match nothing or leave no choice."""
    problems = []
    for pin in pins:
        try:
            candidates = _apply(candidates, pin)
        except (PlanError, PlacementError) as error:
            problems.append(PlanError(f"pin {dict(pin)}: {error.what}", where=error.where, next_step=error.next_step))
    if problems:
        raise join_problems(PlanError, problems)
    return candidates


def pinned(graph: Graph, request: PlanRequest) -> tuple[Candidates, tuple[BlockRun, ...]]:
    """The candidates that a request allows, and the runs of blocks that are folded: none where pins name single copies under --unfold."""
    runs = find_blocks(graph)
    candidates = enumerate_candidates(graph, request.mesh, classes(graph, runs))
    if request.unfold and _name_single_copies(candidates, request.pins):
        runs, candidates = (), split_candidates(candidates, ())
    return apply_pins(candidates, request.pins), runs


def _name_single_copies(candidates: Candidates, pins: Sequence[Mapping[str, Any]]) -> bool:
    """Whether a pin names some of the copies that decide alike, and not the others."""
    graph, classes = candidates.graph, candidates.classes
    alike = [[graph.values[value].address for value in members] for members in classes.value_members]
    alike += [[graph.nodes[node].address for node in members] for members in classes.node_members]
    patterns = [pin[key] for pin in pins for key in ("params", "ops") if isinstance(pin.get(key), str) and pin[key] != ALL]
    return any(len({match(pattern, name) for name in names}) > 1 for pattern in patterns for names in alike)


def _apply(candidates: Candidates, pin: Mapping[str, Any]) -> Candidates:
    section = next((key for key in _KEYS if key in pin), None)
    said = set(pin) - {section}
    if section is None or not said or not said <= _KEYS[section] or not isinstance(pin[section], str):
        raise PlanError("says nothing that can be pinned", next_step=_HINT)
    if section == "inputs":
        return _pin_sources(candidates, _inputs(candidates, pin[section]), pin["place"])
    if section == "ops":
        return _pin_ops(candidates, pin[section], pin["row"])
    if section == "recompute":
        return _pin_recompute(candidates, pin[section], pin["blocks"])
    values = _params(candidates, pin[section])
    if "store" in pin:
        candidates = _pin_sources(candidates, values, pin["store"])
    if "use" in pin:
        candidates = _pin_uses(candidates, values, _placements(candidates, pin["use"]))
    if "gather" in pin:
        if pin["gather"] != "never":
            raise PlanError(f"gather: {pin['gather']!r}", next_step="`never` is what can be pinned")
        candidates = replace(candidates, never_gathered=candidates.never_gathered | set(values))
    return candidates


def _params(candidates: Candidates, pattern: str) -> list[int]:
    """The value classes of the parameters that `pattern` names."""
    of_class = candidates.classes.parameter_class
    return _found(pattern, [of_class[fqn] for fqn in of_class if pattern == ALL or match(pattern, fqn)], list(of_class))


def _inputs(candidates: Candidates, name: str) -> list[int]:
    graph, value_class = candidates.graph, candidates.classes.value_class
    names = {input_name(graph, value): value_class[value] for value in graph.inputs}
    return _found(name, [c for other, c in names.items() if other == name], list(names))


def _found(pattern: str, classes: list[int], known: list[str]) -> list[int]:
    if not classes:
        raise PlanError(f"{pattern} matches nothing", next_step=f"the model has {', '.join(known[:6])}{', ...' if len(known) > 6 else ''}")
    return list(dict.fromkeys(classes))


def _placements(candidates: Candidates, said: Any) -> Placements:
    if not isinstance(said, list | tuple) or len(said) != candidates.mesh.ndim:
        raise PlanError(f"{said!r} is not one placement for each of the {candidates.mesh.ndim} mesh axes")
    return tuple(parse_placement(str(placement)) for placement in said)


def _pin_sources(candidates: Candidates, classes: Sequence[int], said: Any) -> Candidates:
    wanted = _placements(candidates, said)
    for c in classes:
        if wanted not in candidates.sources[c]:
            value = candidates.graph.values[candidates.classes.value_members[c][0]]
            raise PlanError(f"{format_placements(wanted)} does not divide {value.address} of shape {list(value.shape)}")
    return replace(candidates, sources={**candidates.sources, **dict.fromkeys(classes, (wanted,))})


def _pin_uses(candidates: Candidates, classes: Sequence[int], wanted: Placements) -> Candidates:
    return _filter(candidates, lambda c, strategy: uses_of(candidates, c, strategy, classes) <= {wanted})


def uses_of(candidates: Candidates, c: int, strategy: Strategy, classes: Collection[int]) -> set[Placements]:
    """The placements in which a strategy of node class `c` uses values of these classes; none where it reads at most their shape."""
    inputs = candidates.graph.nodes[candidates.classes.node_members[c][0]].inputs
    needs = zip(inputs, strategy.needs, strict=True)
    value_class = candidates.classes.value_class
    return {forward_of(state) for value, state in needs if state is not None and value_class[value] in classes}


def _pin_ops(candidates: Candidates, pattern: str, row: Any) -> Candidates:
    graph = candidates.graph
    addresses = [graph.nodes[members[0]].address for members in candidates.classes.node_members]
    pinned = set(_found(pattern, [c for c, address in enumerate(addresses) if match(pattern, address)], addresses))
    return _filter(candidates, lambda c, strategy: c not in pinned or strategy.describe(candidates.mesh) == row)


def _pin_recompute(candidates: Candidates, pattern: str, blocks: Any) -> Candidates:
    graph = candidates.graph
    segments = block_segments(graph)
    copies = Counter(segment.prefix for segment in segments if match(pattern, segment.name))
    if not copies:
        known = dict.fromkeys(f"{segment.prefix}.*" for segment in segments)
        raise PlanError(f"{pattern} matches no repeated block", next_step=f"the model has {', '.join(known) or 'none'}")
    if not isinstance(blocks, int) or not 0 <= blocks <= min(copies.values()):
        raise PlanError(f"blocks: {blocks!r}", next_step=f"write a number from 0 to {min(copies.values())}")
    return replace(candidates, recompute={**candidates.recompute, **dict.fromkeys(copies, blocks)})


def _filter(candidates: Candidates, keeps: Callable[[int, Strategy], bool]) -> Candidates:
    """The candidates whose strategies `keeps(class, strategy)`; raises PlanError where a class has none left."""
    kept = tuple(tuple(s for s in strategies if keeps(c, s)) for c, strategies in enumerate(candidates.strategies))
    for c, (strategies, before) in enumerate(zip(kept, candidates.strategies, strict=True)):
        if not strategies:
            node = candidates.graph.nodes[candidates.classes.node_members[c][0]]
            rows = list(dict.fromkeys(s.describe(candidates.mesh) for s in before))
            raise PlanError(f"leaves {node.address} ({node.source}) no row", next_step=f"rows it has: {' | '.join(rows[:4])}")
    return replace(candidates, strategies=kept)
