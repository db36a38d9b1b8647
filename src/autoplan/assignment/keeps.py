"""What autograd keeps of a forward: which operands a node holds until its backward."""

from __future__ import annotations

from autoplan.assignment.assignment import Need
from autoplan.graph.ir import Graph, Node

# Operands whose values no backward needs, by op; of those in _FACTORS each is kept for the gradient of the other alone.
_NOT_KEPT: dict[str, frozenset[int]] = {
    "aten.embedding": frozenset({0}),
    "aten.layer_norm": frozenset({2}),
    "aten.native_layer_norm": frozenset({2}),
    "aten.group_norm": frozenset({2}),
    "aten.batch_norm": frozenset({2}),
    "aten.instance_norm": frozenset({1, 2}),
    **dict.fromkeys((f"aten.conv{n}d" for n in (1, 2, 3)), frozenset({2})),
    **dict.fromkeys((f"aten.conv_transpose{n}d" for n in (1, 2, 3)), frozenset({2})),
    "aten.add": frozenset({0, 1}),
    "aten.sub": frozenset({0, 1}),
    "aten.detach": frozenset({0}),
    "aten.to": frozenset({0}),
    "aten.sum": frozenset({0}),
    "aten.mean": frozenset({0}),
    "aten.clone": frozenset({0}),
    "aten.cat": frozenset(range(64)),
}
_FACTORS: dict[str, tuple[int, int]] = {
    "aten.linear": (0, 1),
    "aten.mm": (0, 1),
    "aten.bmm": (0, 1),
    "aten.matmul": (0, 1),
    "aten.mul": (0, 1),
    "aten.addmm": (1, 2),
    "aten.baddbmm": (1, 2),
}
_VIEWS = frozenset(
    f"aten.{name}"
    for name in ("view", "reshape", "t", "transpose", "permute", "unsqueeze", "squeeze", "expand", "slice", "select", "split", "chunk", "flatten", "unflatten", "alias")
)  # fmt: skip


def is_kept(graph: Graph, need: Need) -> bool:
    """Whether a reader of this state keeps the value, or a view of it, for its backward."""
    return graph.loss is not None and any(node >= 0 and node_keeps(graph, graph.nodes[node], operand) for node, operand in need.readers)


def keeps_anything(graph: Graph, node: Node) -> bool:
    """Whether a node itself holds any tensor until its backward; a view holds none of its own."""
    return node.name not in _VIEWS and any(node_keeps(graph, node, operand) for operand in range(len(node.inputs)))


def node_keeps(graph: Graph, node: Node, operand: int) -> bool:
    """Whether a node, or what reads a view that it makes, holds an operand until its backward."""
    if not any(graph.values[output].needs_grad for output in node.outputs):
        return False
    if node.name in _VIEWS:
        return any(node_keeps(graph, reader, position) for output in node.outputs for reader, position in graph.consumers[output])
    if node.name in _FACTORS:
        first, second = _FACTORS[node.name]
        other = {first: second, second: first}.get(operand)
        return other is not None and other < len(node.inputs) and graph.values[node.inputs[other]].needs_grad
    return operand not in _NOT_KEPT.get(node.name, frozenset())
