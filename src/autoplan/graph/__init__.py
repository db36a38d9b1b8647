"""Capture a module as a graph of ops with stable addresses, and read that graph."""

from autoplan.graph.capture import capture
from autoplan.graph.ir import Graph, Node, Parameter, Ref, Value, map_refs, refs
from autoplan.graph.ops import arguments, resolve, written_arguments
from autoplan.graph.trees import input_leaves

__all__ = ["Graph", "Node", "Parameter", "Ref", "Value", "arguments", "capture", "input_leaves", "map_refs", "refs", "resolve", "written_arguments"]
