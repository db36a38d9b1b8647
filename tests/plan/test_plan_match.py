"""A plan's lines against a model's names."""

import re

import pytest

from autoplan.errors import PlanError
from autoplan.plan import match_buffers, match_lines, match_params, parse_plan

NORM = {"norm.weight": (4096,)}
EMBED = {"embed.weight": (128256, 4096)}


def layers(count=32, rows=6144):
    """The shapes of `count` layers."""
    return {f"layers.{i}.attn.{name}.weight": shape for i in range(count) for name, shape in (("wqkv", (rows, 4096)), ("wo", (4096, 4096)))}


def message(text, shapes):
    with pytest.raises(PlanError) as caught:
        match_params(parse_plan(text, "plan.yaml"), shapes)
    return str(caught.value)


def test_every_parameter_gets_the_key_of_its_line(text):
    keys = match_params(parse_plan(text), NORM | EMBED | layers())
    assert len(keys) == 66
    assert keys["embed.weight"] == "embed.weight"
    assert keys["layers.0.attn.wo.weight"] == "layers.*.attn.wo.weight"
    assert keys["layers.1.attn.wqkv.weight"] == "layers.1.attn.wqkv.weight"
    assert keys["layers.2.attn.wqkv.weight"] == keys["layers.31.attn.wqkv.weight"] == "layers.{2-31}.attn.wqkv.weight"


def test_a_parameter_without_a_line_is_named_once_for_all_blocks(text):
    extra = {f"layers.{i}.attn.wk.weight": (8, 8) for i in range(32)}
    assert message(text, NORM | EMBED | layers() | extra) == (
        "layers.0.attn.wk.weight and 31 more: this parameter of the model is matched by no line of params\n"
        "  plan.yaml:12; add a line for it, or plan again; did you mean layers.*.attn.wqkv.weight?"
    )


def test_a_parameter_of_two_lines_names_both(text):
    broken = text.replace(
        "layers.{2-31}.attn.wqkv.weight: {shape: [6144, 4096], count: 30", "layers.{1-31}.attn.wqkv.weight: {shape: [6144, 4096], count: 31"
    )
    assert message(broken, NORM | EMBED | layers()) == (
        "layers.1.attn.wqkv.weight: matched by 2 lines, layers.1.attn.wqkv.weight and layers.{1-31}.attn.wqkv.weight\n"
        "  plan.yaml:16, plan.yaml:17; exactly one line may match"
    )


def test_a_line_that_matches_nothing_suggests_the_nearest_name(text):
    assert message(text, EMBED | layers() | {"norms.weight": (4096,)}) == (
        "norm.weight: the model has no such parameter\n"
        "  plan.yaml:18; remove the line, or plan again; did you mean norms.weight?\n"
        "norms.weight: this parameter of the model is matched by no line of params\n"
        "  plan.yaml:12; add a line for it, or plan again; did you mean norm.weight?"
    )


def test_a_wrong_count_says_the_right_one(text):
    assert message(
        text.replace("wo.weight:        {shape: [4096, 4096], count: 32", "wo.weight:        {shape: [4096, 4096], count: 31"),
        NORM | EMBED | layers(),
    ) == ("layers.*.attn.wo.weight: count 31, but the model has 32 such parameters\n  plan.yaml:14; write count: 32")


def test_another_shape_is_reported_once_a_line(text):
    said = message(text, NORM | EMBED | layers(rows=12288))
    assert said.splitlines()[-2:] == [
        "layers.{2-31}.attn.wqkv.weight: shape [6144, 4096], but layers.2.attn.wqkv.weight of the model has [12288, 4096]",
        "  plan.yaml:17; plan again for this model, or give the plan's own --set",
    ]
    assert re.findall(r"plan.yaml:(\d+)", said) == ["15", "16", "17"]


def test_all_that_does_not_match_is_in_one_error(text):
    said = message(text, layers(count=30) | {"new": (1,)})
    assert re.findall(r"plan.yaml:(\d+)", said) == ["13", "14", "17", "18", "12"]


def test_buffers_are_matched_like_parameters(text):
    plan = parse_plan(text, "plan.yaml")
    assert match_buffers(plan, {"rope.cos": (8192, 128)}) == {"rope.cos": "rope.cos"}
    with pytest.raises(PlanError, match=r"^rope.cos: shape \[8192, 128\], but rope.cos of the model has \[4096, 128\]\n  plan.yaml:20"):
        match_buffers(plan, {"rope.cos": (4096, 128)})


def test_an_op_needs_no_line_but_a_line_needs_its_ops(text):
    plan = parse_plan(text, "plan.yaml")
    assert match_lines(plan, "ops", ["head/linear", "head/cross_entropy_loss"]) == {"head/cross_entropy_loss": "head/cross_entropy_loss"}
    with pytest.raises(
        PlanError, match="^head/cross_entropy_loss: the model has no such op\n  plan.yaml:22; remove the line, or plan again$"
    ):
        match_lines(plan, "ops", ["head/linear"])


def test_every_entry_of_a_redistribution_is_counted(text):
    names = [f"layers.{i}{rest}" for i in range(31) for rest in (".attn_norm/rms_norm", ".attn.wo/linear", ".mlp.w2/linear")]
    with pytest.raises(PlanError) as caught:
        match_lines(parse_plan(text, "plan.yaml"), "reshard", names)
    assert str(caught.value).count("count 32, but the model has 31 such ops") == 3


def test_recomputed_blocks_are_those_of_the_model(text):
    plan = parse_plan(text, "plan.yaml")
    assert set(match_lines(plan, "recompute", [f"layers.{i}" for i in range(32)]).values()) == {"layers.*"}
    with pytest.raises(PlanError, match=r"^layers.\*: of 32, but the model has 2 such modules\n  plan.yaml:33; write of: 2$"):
        match_lines(plan, "recompute", ["layers.0", "layers.1"])
