"""Decisions on a graph, and their way into a plan and back."""

from autoplan.assignment.assignment import BUFFER_READER, OUTPUT_READER, Assignment, Need
from autoplan.assignment.decode import decode
from autoplan.assignment.encode import Decisions, encode

__all__ = ["BUFFER_READER", "OUTPUT_READER", "Assignment", "Decisions", "Need", "decode", "encode"]
