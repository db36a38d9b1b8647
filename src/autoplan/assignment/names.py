"""The names by which a plan speaks of a graph's inputs, outputs and readers."""

from __future__ import annotations

from collections.abc import Collection

from autoplan.assignment.assignment import BUFFER_READER, OUTPUT_READER
from autoplan.graph.ir import Graph
from autoplan.plan.patterns import collapse

INPUT_PREFIX = "inputs/"


def input_name(graph: Graph, value: int) -> str:
    """`tokens` for the input whose address is `inputs/tokens`."""
    return graph.values[value].address.removeprefix(INPUT_PREFIX)


def output_names(graph: Graph) -> tuple[str, ...]:
    """`loss` for the loss; any other output by its place in forward's result, as capture names it (`logits`, `output`)."""
    return tuple("loss" if value == graph.loss else name for name, value in zip(graph.output_names, graph.outputs, strict=True))


def reader_name(graph: Graph, node: int, operand: int) -> str:
    """The address of a node that reads a value; `outputs/loss` where the graph's output does, its FQN where it overwrites a buffer."""
    if node == BUFFER_READER:
        return list(graph.mutations)[operand]
    return f"outputs/{output_names(graph)[operand]}" if node == OUTPUT_READER else graph.nodes[node].address


def reader_patterns(producer: str, readers: Collection[str], all_readers: Collection[str], prefixes: Collection[str]) -> tuple[str, ...]:
    """Patterns for some readers of a value. A producer inside a repeated block names its readers' blocks by `*`, so that copies agree."""
    if _in_block(producer, prefixes):
        return tuple(dict.fromkeys(_star(reader, prefixes) for reader in readers))
    return tuple(collapse(dict.fromkeys(readers, ""), prefixes, existing=all_readers, execution_order=True))


def block_of(name: str, prefixes: Collection[str]) -> str | None:
    """`layers.3` for any FQN or address inside the repeated block; None outside of one."""
    segments = name.partition("/")[0].split(".")
    for i in range(1, len(segments)):
        if segments[i].isdigit() and ".".join(segments[:i]) in prefixes:
            return ".".join(segments[: i + 1])
    return None


def kind_of_block(block: str) -> str:
    """`layers` for `layers.3`: the prefix of all copies."""
    return block.rpartition(".")[0]


def _in_block(name: str, prefixes: Collection[str]) -> bool:
    return block_of(name, prefixes) is not None


def _star(name: str, prefixes: Collection[str]) -> str:
    block = block_of(name, prefixes)
    return name if block is None else kind_of_block(block) + ".*" + name[len(block) :]
