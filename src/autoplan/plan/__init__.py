"""The plan: the artefact people review and the runtime obeys, as values, YAML, differences and prose. No torch."""

from autoplan.plan.diff import Change, PlanDiff, PredictionChange, diff_plans, format_diff
from autoplan.plan.dump import dump_plan, write_plan
from autoplan.plan.load import load_plan, parse_plan
from autoplan.plan.match import match_buffers, match_lines, match_params
from autoplan.plan.patterns import Fold, Pattern, collapse, expand, natural_key, parse_pattern
from autoplan.plan.plain import plan_to_json
from autoplan.plan.schema import (
    BufferLine,
    ByHandLine,
    Collective,
    CommunicationMs,
    FallbackLine,
    GatherLine,
    HardwareInfo,
    InputLine,
    MemoryGib,
    ModelInfo,
    OpLine,
    Options,
    OutputLine,
    ParamLine,
    Plan,
    Predicted,
    Provenance,
    RecomputeLine,
    ReshardEntry,
    SolverInfo,
)
from autoplan.plan.summary import collective_counts, format_summary

__all__ = [
    "BufferLine", "ByHandLine", "Change", "Collective", "CommunicationMs", "FallbackLine", "Fold", "GatherLine", "HardwareInfo",
    "InputLine", "MemoryGib", "ModelInfo", "OpLine", "Options", "OutputLine", "ParamLine", "Pattern", "Plan",
    "PlanDiff", "Predicted", "PredictionChange", "Provenance", "RecomputeLine", "ReshardEntry", "SolverInfo", "collapse",
    "collective_counts", "diff_plans", "dump_plan", "expand", "format_diff", "format_summary", "load_plan",
    "match_buffers", "match_lines", "match_params", "natural_key", "parse_pattern", "parse_plan", "plan_to_json",
    "write_plan",
]  # fmt: skip
