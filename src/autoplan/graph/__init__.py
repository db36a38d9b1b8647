"""Capture a module as a graph of ops with stable addresses, and read that graph."""

from autoplan.graph.blocks import BlockRun, NodeClasses, classes, find_blocks, foldable_prefixes
from autoplan.graph.capture import capture
from autoplan.graph.cast import COMPUTE_DTYPE, cast_module
from autoplan.graph.digest import graph_digest, model_digest, model_signature
from autoplan.graph.interpret import execute, on_device, run_graph, tensors_of
from autoplan.graph.ir import Graph, Node, Parameter, Ref, Value, map_refs, refs
from autoplan.graph.ops import arguments, resolve, written_arguments
from autoplan.graph.show import format_graph
from autoplan.graph.trees import input_leaves

__all__ = [
    "COMPUTE_DTYPE",
    "BlockRun",
    "Graph",
    "Node",
    "NodeClasses",
    "Parameter",
    "Ref",
    "Value",
    "arguments",
    "capture",
    "cast_module",
    "classes",
    "execute",
    "find_blocks",
    "foldable_prefixes",
    "format_graph",
    "graph_digest",
    "input_leaves",
    "map_refs",
    "model_digest",
    "model_signature",
    "on_device",
    "refs",
    "resolve",
    "run_graph",
    "tensors_of",
    "written_arguments",
]
