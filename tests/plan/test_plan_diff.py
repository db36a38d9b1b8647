"""Differences between plans: what they mean, not how they are written."""

import dataclasses
import json

import pytest

from autoplan.placement import Mesh, R, S
from autoplan.plan import ByHandLine, Change, HardwareInfo, ParamLine, Predicted, PredictionChange, RecomputeLine, diff_plans, format_diff


def changed(plan, **sections):
    return dataclasses.replace(plan, **sections)


def test_a_plan_does_not_differ_from_itself(plan):
    diff = diff_plans(plan, plan)
    assert diff.same
    assert format_diff(diff) == "no differences\n"
    assert diff.to_json() == {"same": True, "changes": [], "predictions": {}}


def test_lines_folded_otherwise_do_not_differ(plan):
    wo = plan.params["layers.*.attn.wo.weight"]
    others = {name: line for name, line in plan.params.items() if name != "layers.*.attn.wo.weight"}
    halves = {f"layers.{{{a}-{b}}}.attn.wo.weight": dataclasses.replace(wo, count=16) for a, b in ((0, 15), (16, 31))}
    assert diff_plans(plan, changed(plan, params=others | halves)).same
    (entry,) = plan.reshard["layers.*.attn.wo/linear"]
    singles = {f"layers.{i}.attn.wo/linear": (dataclasses.replace(entry, count=1),) for i in range(32)}
    others = {name: line for name, line in plan.reshard.items() if name != "layers.*.attn.wo/linear"}
    assert diff_plans(plan, changed(plan, reshard=others | singles)).same


def test_the_order_of_lines_and_the_solver_are_no_difference(plan):
    reordered = dict(reversed(plan.params.items()))
    solver = dataclasses.replace(plan.solver, status="feasible", gap=0.2)
    assert diff_plans(plan, changed(plan, params=reordered, solver=solver)).same


def test_only_the_copies_that_differ_are_named(plan):
    wo = plan.params["layers.*.attn.wo.weight"]
    split = {
        "layers.{0-15}.attn.wo.weight": dataclasses.replace(wo, count=16),
        "layers.{16-31}.attn.wo.weight": dataclasses.replace(wo, count=16, use=(R, R)),
    }
    others = {name: line for name, line in plan.params.items() if name != "layers.*.attn.wo.weight"}
    (change,) = diff_plans(plan, changed(plan, params=others | split)).changes
    assert (change.section, change.name, change.count) == ("params", "layers.{16-31}.attn.wo.weight", 16)
    assert (change.old["use"], change.new["use"]) == (["R", "S(1)"], ["R", "R"])


def test_a_change_of_all_copies_is_one_starred_line(plan):
    wo = plan.params["layers.*.attn.wo.weight"]
    diff = diff_plans(plan, changed(plan, params={**plan.params, "layers.*.attn.wo.weight": dataclasses.replace(wo, store=(R, R))}))
    assert [(change.name, change.count) for change in diff.changes] == [("layers.*.attn.wo.weight", 32)]


@pytest.mark.parametrize(
    "section, value, name",
    [
        ("mesh", Mesh(("x", "y"), (4, 2)), ""),
        ("hardware", HardwareInfo("h100-sxm", "sha256:56ef"), "profile"),
        ("pins", (), ""),
        ("recompute", {"layers.*": RecomputeLine(9, 32, "full")}, "layers.*"),
        ("inputs", {}, "tokens"),
        ("outputs", {}, "loss"),
        ("buffers", {}, "rope.cos"),
        ("ops", {}, "head/cross_entropy_loss"),
        ("fallbacks", (), "layers.*/cumsum"),
    ],
)
def test_every_section_is_compared(plan, section, value, name):
    (change,) = diff_plans(plan, changed(plan, **{section: value})).changes
    assert (change.section, change.name) == (section, name)
    assert change.old != change.new


@pytest.mark.parametrize(
    "section, key, value",
    [("model", "digest", "sha256:0"), ("options", "optimizer", "sgd"), ("options", "memory_gib", None), ("options", "compile", True)],
)
def test_identity_and_options_are_compared_key_by_key(plan, section, key, value):
    (change,) = diff_plans(plan, changed(plan, **{section: dataclasses.replace(getattr(plan, section), **{key: value})})).changes
    assert (change.section, change.name, change.new) == (section, key, value)


def test_the_order_of_the_axes_is_a_decision(plan):
    diff = diff_plans(plan, changed(plan, mesh=Mesh(("y", "x"), (4, 2))))
    assert format_diff(diff) == "mesh\n    - {x: 2, y: 4}\n    + {y: 4, x: 2}\n"


def test_collectives_and_consumers_are_decisions(plan):
    entries = plan.reshard["layers.*.attn_norm/rms_norm"]
    without = {**plan.reshard, "layers.*.attn_norm/rms_norm": (dataclasses.replace(entries[0], backward=()), entries[1])}
    other = {**plan.reshard, "layers.*.attn_norm/rms_norm": (dataclasses.replace(entries[0], for_=("head/linear",)), entries[1])}
    for reshard in (without, other):
        assert [change.section for change in diff_plans(plan, changed(plan, reshard=reshard)).changes] == ["reshard"]


def test_predictions_are_compared_as_the_files_round_them(plan):
    predicted = dataclasses.replace(plan.predicted, step_ms=412.1, compute_ms=175.0, host_ms=3.0)
    diff = diff_plans(plan, changed(plan, predicted=predicted))
    assert diff.predictions == (PredictionChange("compute_ms", 350, 175), PredictionChange("host_ms", 0, 3))
    assert [change.relative for change in diff.predictions] == [-0.5, None]
    assert not diff.changes and not diff.same


def test_layouts_by_hand_are_predictions(plan):
    by_hand = {"ddp": ByHandLine(600.0, 119.0), "fsdp": ByHandLine(473.0, 55.0)}
    diff = diff_plans(plan, changed(plan, by_hand=by_hand))
    assert not diff.changes
    assert diff.predictions == (
        PredictionChange("by hand ddp none", "needs 151.2 GiB with everything recomputed", None),
        PredictionChange("by hand ddp step_ms", None, 600),
        PredictionChange("by hand ddp peak_gib", None, 119.0),
        PredictionChange("by hand fsdp step_ms", 430, 473),
        PredictionChange("by hand fsdp+tp step_ms", 520, None),
        PredictionChange("by hand fsdp+tp peak_gib", 49.0, None),
    )
    assert [change.relative for change in diff.predictions] == [None, None, None, 0.1, None, None]
    assert "  by hand ddp step_ms               -        600\n" in format_diff(diff)
    assert "  by hand fsdp step_ms            430        473     +10.0%\n" in format_diff(diff)


def test_a_plan_from_before_there_were_layouts_by_hand_does_not_differ_for_lack_of_them(plan):
    older = changed(plan, by_hand={})
    assert diff_plans(older, plan).same and diff_plans(plan, older).same


def test_a_pattern_too_wide_to_expand_is_compared_as_it_stands(plan):
    line = ParamLine((8,), (R, R), (R, R), 4)
    a = changed(plan, params={"a.*.b.*.w": line})
    b = changed(plan, params={"a.*.b.*.w": dataclasses.replace(line, count=6)})
    assert diff_plans(a, a).same
    assert [change.name for change in diff_plans(a, b).changes] == ["a.*.b.*.w"]


def test_the_json_of_a_diff_is_plain_data(plan):
    diff = diff_plans(plan, changed(plan, predicted=Predicted(), outputs={}))
    said = json.loads(json.dumps(diff.to_json()))
    assert said["same"] is False
    assert said["changes"] == [{"section": "outputs", "name": "loss", "count": 1, "old": {"place": ["R", "R"]}, "new": None}]
    assert said["predictions"]["step_ms"] == {"old": 412, "new": 0, "relative": -1.0}


def test_a_diff_reads_as_old_and_new_lines_and_a_table(plan):
    wo = dataclasses.replace(plan.params["layers.*.attn.wo.weight"], store=(R, S(0)), use=(R, R))
    new = changed(
        plan,
        mesh=Mesh(("x", "y"), (4, 2)),
        options=dataclasses.replace(plan.options, memory_gib=None),
        params={**plan.params, "layers.*.attn.wo.weight": wo, "bias": ParamLine((8,), (R, R), (R, R))},
        predicted=dataclasses.replace(plan.predicted, step_ms=380.0, host_ms=3.0),
    )
    assert format_diff(diff_plans(plan, new)) == (
        "mesh\n"
        "    - {x: 2, y: 4}\n"
        "    + {x: 4, y: 2}\n"
        "options\n"
        "  memory_gib\n"
        "    - 120\n"
        "params\n"
        "  bias\n"
        "    + {shape: [8], store: [R, R], use: [R, R]}\n"
        "  layers.*.attn.wo.weight  (x32)\n"
        "    - {store: [S(0), S(1)], use: [R, S(1)]}\n"
        "    + {store: [R, S(0)], use: [R, R]}\n"
        "predicted        old        new     change\n"
        "  step_ms        412        380      -7.8%\n"
        "  host_ms          0          3\n"
    )


def test_a_change_says_on_which_side_it_is_missing(plan):
    diff = diff_plans(changed(plan, outputs={}), plan)
    assert diff.changes == (Change("outputs", "loss", 1, None, {"place": ["R", "R"]}),)
