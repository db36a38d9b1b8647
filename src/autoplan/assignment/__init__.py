"""Decisions on a graph, and their way into a plan and back."""

from autoplan.assignment.assignment import OUTPUT_READER, Assignment, Need

__all__ = ["OUTPUT_READER", "Assignment", "Need"]
