"""What torch.compile can put into one kernel: which ops fuse, and in which stage of which piece each node runs.

A piece of the program (`runtime.pieces`: a copy of a block, or a stretch between copies) is compiled as one function. In it a
stage is what lies between two ops that have kernels of their own: the fusing ops of a stage are taken to be one kernel. That
is what Inductor's scheduler aims at; where a reduction splits a stage in two, the caches hold what both read.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

import torch

from autoplan.cost.families import CASTS, NORMS, SOFTMAXES, is_view, op_name
from autoplan.graph.ir import Graph, Node
from autoplan.graph.once import once
from autoplan.graph.segments import block_segments
from autoplan.rules.row import Call, calls_of

REDUCTIONS = frozenset(
    f"aten.{name}"
    for name in ("sum", "mean", "amax", "amin", "max", "min", "var", "std", "var_mean", "logsumexp", "prod", "argmax", "argmin")
)
LOSSES = frozenset(
    f"aten.{name}"
    for name in (
        "cross_entropy_loss", "nll_loss", "nll_loss_nd", "mse_loss", "l1_loss", "smooth_l1_loss", "huber_loss", "kl_div",
        "binary_cross_entropy", "binary_cross_entropy_with_logits",
    )
)  # fmt: skip
COPIES = frozenset(
    f"aten.{name}"
    for name in (
        "cat", "stack", "contiguous", "lift_fresh_copy", "reshape", "flatten", "rsub", "triu", "tril", "pad", "constant_pad_nd", "arange",
        "full", "zeros", "ones", "zeros_like", "ones_like", "full_like", "new_zeros", "new_ones", "new_full", "scalar_tensor", "repeat",
        "masked_fill", "where", "__and__", "__or__", "__xor__", "select_scatter", "slice_scatter",
    )
)  # fmt: skip
_FUSING = CASTS | NORMS | SOFTMAXES | REDUCTIONS | LOSSES | COPIES | {"aten.dropout"}


def fuses(call: Call) -> bool:
    """Whether an op becomes a part of a kernel with others: those that torch tags as pointwise, reductions, norms, casts, copies.

    Products, attention, lookups, sorts and all that torch has no name for run kernels of their own.
    """
    return op_name(call.op) in _FUSING or _is_pointwise(op_name(call.op))


@cache
def _is_pointwise(name: str) -> bool:
    space, _, short = name.partition(".")
    packet = getattr(torch.ops.aten, short, None) if space == "aten" else None
    return packet is not None and any(torch.Tag.pointwise in getattr(packet, overload).tags for overload in packet.overloads())


@dataclass(frozen=True, slots=True)
class Stages:
    """Where each node of a graph runs: `piece[node]`, and `stage[node]` counted within it. `sources[view]` is what a view shows,
    itself no view; `parts` are the views that show less than the whole of it.
    """

    piece: tuple[int, ...]
    stage: tuple[int, ...]
    fusing: tuple[bool, ...]
    viewing: tuple[bool, ...]
    sources: Mapping[int, int]
    parts: frozenset[int]

    def source(self, value: int) -> int:
        """What a value shows, in the end: itself, if it is no view."""
        return self.sources.get(value, value)

    def place(self, node: Node) -> tuple[int, int]:
        """The stage of a node among all of the graph."""
        return self.piece[node.id], self.stage[node.id]


@once
def stages_of(graph: Graph) -> Stages:
    """The stages of a graph that is compiled piece by piece; a stage ends with each op that has a kernel of its own."""
    calls = calls_of(graph)
    pieces = _pieces(graph)
    viewing = tuple(is_view(call) for call in calls)
    fusing = tuple(not view and fuses(call) for view, call in zip(viewing, calls, strict=True))
    sources: dict[int, int] = {}
    parts: set[int] = set()
    behind: dict[int, int] = {}  # by value, the stage in which it can be read first
    stage = []
    for node in graph.nodes:
        made_here = [v for v in node.inputs if v in graph.producers and pieces[graph.producers[v].id] == pieces[node.id]]
        here = max((behind[value] for value in made_here), default=0)
        stage.append(here)
        behind.update(dict.fromkeys(node.outputs, here + (not fusing[node.id] and not viewing[node.id])))
        if viewing[node.id]:
            shown = node.inputs[0]
            sources.update(dict.fromkeys(node.outputs, sources.get(shown, shown)))
            parts.update(out for out in node.outputs if shown in parts or graph.values[out].bytes < graph.values[shown].bytes)
    return Stages(pieces, tuple(stage), fusing, viewing, sources, frozenset(parts))


def _pieces(graph: Graph) -> tuple[int, ...]:
    """By node the number of its piece: copies of blocks, and what lies before, between and behind them."""
    found = [0] * len(graph.nodes)
    for number, segment in enumerate(block_segments(graph)):
        for node in range(segment.nodes.start, len(graph.nodes)):
            found[node] = 2 * number + (1 if node in segment.nodes else 2)
    return tuple(found)
