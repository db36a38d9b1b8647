"""Placement rules: for each op, which placements go in and which come out, on one mesh axis at a time."""

from autoplan.rules import ops
from autoplan.rules.combine import rows_of, strategies_of
from autoplan.rules.execute import LocalOp, localize
from autoplan.rules.registry import LocalCall, all_rules, local, rule, rule_of
from autoplan.rules.row import Call, Row, Strategy, TensorSpec, call_of

__all__ = [
    "Call",
    "LocalCall",
    "LocalOp",
    "Row",
    "Strategy",
    "TensorSpec",
    "all_rules",
    "call_of",
    "local",
    "localize",
    "ops",
    "rows_of",
    "rule",
    "rule_of",
    "strategies_of",
]
