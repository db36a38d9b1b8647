"""A graph for reading: one line an op, repeated blocks once."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import Any

from autoplan.graph.blocks import BlockRun, find_blocks
from autoplan.graph.ir import Graph, Node, Ref, Value

_GIB = 2**30


def format_graph(graph: Graph) -> str:
    """Inputs, parameters and ops as a table of result, address, arguments and source.

    Of a run of repeated blocks the first copy is shown, under a line with the others' indexes and the count.
    """
    runs = {node: run for run in find_blocks(graph) for node in run.nodes[0]}
    repeated = {node for run in runs.values() for copy in run.nodes[1:] for node in copy}
    rows: list[tuple[str, str, str] | str] = []
    inside: BlockRun | None = None
    for node in graph.nodes:
        if node.id in repeated:
            continue
        run = runs.get(node.id)
        if run is not None and run is not inside:
            rows.append(f"{run.pattern}, {run.count} copies:")
        inside = run
        rows.append((_results(graph, node), ("  " if run else "") + node.address, f"{_call(graph, node)}  {node.source}"))
    return "\n".join([*_head(graph), "", *_table(rows), "", *_tail(graph)])


def _head(graph: Graph) -> list[str]:
    elements = sum(prod(graph.values[p.value].shape) for p in graph.parameters)
    gib = sum(graph.values[p.value].bytes for p in graph.parameters) / _GIB
    tied = sum(len(p.aliases) for p in graph.parameters)
    inputs = ", ".join(f"{graph.values[i].address.removeprefix('inputs/')} {_type(graph.values[i])}" for i in graph.inputs)
    return [
        f"inputs      {inputs or 'none'}",
        f"parameters  {len(graph.parameters)} with {elements:,} elements, {gib:.2f} GiB" + (f", {tied} tied names" if tied else ""),
        f"buffers     {len(graph.buffers)}, constants {len(graph.constants)}",
        f"ops         {len(graph.nodes)}",
    ]


def _tail(graph: Graph) -> list[str]:
    names = graph.output_names or tuple("output" for _ in graph.outputs)
    lines = [f"returns     {name} = {graph.values[value].address}" for name, value in zip(names, graph.outputs, strict=True)]
    return lines + [f"overwrites  {fqn} = {graph.values[value].address}" for fqn, value in graph.mutations.items()]


def _table(rows: list[tuple[str, str, str] | str]) -> list[str]:
    cells = [row for row in rows if not isinstance(row, str)]
    widths = [max((len(row[column]) for row in cells), default=0) for column in (0, 1)]
    return [row if isinstance(row, str) else f"{row[0]:<{widths[0]}}  {row[1]:<{widths[1]}}  {row[2]}" for row in rows]


def _results(graph: Graph, node: Node) -> str:
    types = [_type(graph.values[output]) for output in node.outputs]
    return types[0] if len(types) == 1 else f"{len(types)} x {types[0]}" if len(set(types)) == 1 else ", ".join(types)


def _call(graph: Graph, node: Node) -> str:
    parts = [_text(graph, argument) for argument in node.args] + [f"{name}={_text(graph, value)}" for name, value in node.kwargs.items()]
    return f"{node.name.split('.')[-1]}({', '.join(parts)})"


def _text(graph: Graph, argument: Any) -> str:
    if isinstance(argument, Ref):
        return graph.values[argument.value].address
    if isinstance(argument, tuple | list):
        return "[" + ", ".join(_text(graph, item) for item in argument) + "]"
    if isinstance(argument, Mapping):
        return "{" + ", ".join(f"{key}: {_text(graph, item)}" for key, item in argument.items()) + "}"
    return str(argument).removeprefix("torch.")


def _type(value: Value) -> str:
    return f"{value.dtype}{list(value.shape)}"
