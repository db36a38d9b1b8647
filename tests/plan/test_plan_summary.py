"""What a plan says of itself in prose."""

import dataclasses
import os
import subprocess
import sys

from autoplan.plan import ByHandLine, Collective, OpLine, Predicted, collective_counts, format_summary


def test_collectives_are_counted_with_the_counts_of_their_lines(plan):
    # reshard: 32 x (AG y, RS y; AG xy, RS xy; RS y, AG y; AR y)  ops: 3 AR y  gather: 32 x (AG, AG, RS) x, 1 x (AG, RS) x
    assert collective_counts(plan) == {
        "all-gather x": 65,
        "all-gather x,y": 32,
        "all-gather y": 64,
        "all-reduce y": 35,
        "reduce-scatter x": 33,
        "reduce-scatter x,y": 32,
        "reduce-scatter y": 64,
    }


def test_collectives_inside_an_op_count_as_often_as_the_op(plan):
    twice = OpLine(inside=(Collective("all-to-all", ("x",)),) * 2, count=32)
    only = dataclasses.replace(plan, reshard={}, gather={}, ops={"layers.*/sdpa": twice})
    assert collective_counts(only) == {"all-to-all x": 64}


def test_a_plan_without_collectives_says_so(plan):
    alone = dataclasses.replace(plan, reshard={}, gather={}, ops={})
    assert collective_counts(alone) == {}
    assert "\nno collectives\n" in format_summary(alone)


def test_the_summary_shows_time_memory_collectives_and_parameters(plan):
    assert format_summary(plan) == SUMMARY


def test_the_summary_says_that_steps_are_compiled(plan):
    compiled = dataclasses.replace(plan, options=dataclasses.replace(plan.options, compile=True))
    assert "\n  train, adamw, bf16, compiled, at most 120 GiB per device\n" in format_summary(compiled)


def test_a_plan_that_predicts_nothing_has_no_bars(plan):
    assert "█" not in format_summary(dataclasses.replace(plan, predicted=Predicted(), by_hand={}))


def test_a_plan_from_before_there_were_layouts_by_hand_is_shown_as_it_was_then(plan):
    header, table, rest = SUMMARY.partition("beside layouts by hand")
    assert format_summary(dataclasses.replace(plan, by_hand={})) == header + (table + rest).split("\n\n", 1)[1]


def test_layouts_none_of_which_can_be_had_are_shown_with_their_reasons(plan):
    none = {name: ByHandLine(none="batch 8 does not divide over 32 devices") for name in ("ddp", "fsdp", "fsdp+tp")}
    shown = format_summary(dataclasses.replace(plan, by_hand=none))
    assert shown.count("-  batch 8 does not divide over 32 devices\n") == 3


def test_reading_a_plan_needs_no_torch(golden_path):
    code = (
        "import sys; from autoplan.plan import load_plan, format_summary; format_summary(load_plan(sys.argv[1])); "
        "sys.exit(' '.join(sorted({'torch', 'numpy', 'ortools', 'rich', 'typer'} & set(sys.modules))) or 0)"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", code, str(golden_path)], capture_output=True, text=True, env=environment)
    assert (done.returncode, done.stderr) == (0, "")


SUMMARY = """\
models/llama.py:build  eps=0.00001  n_layers=32  name="on"
  8,030,261,248 parameters on x=2 y=4 (8 devices, h200-sxm)
  train, adamw, bf16, at most 120 GiB per device
  optimal, gap 0 %, unfolded gap 0.0123 %

step 412 ms
  compute          350  ████████████████████▍
  recompute         20  █▏
  optimizer       6.04  ▍
  host               0
  communication     36  ██▏
  and 84.4 ms of communication hidden behind compute

memory 49.0 GiB per device at its peak
  parameters       2.0  █
  gradients        2.0  █
  optimizer        8.0  ███▉
  activations     31.0  ███████████████▏
  gathered         2.0  █
  transient        4.0  ██

beside layouts by hand  step ms  peak GiB
  this plan                 412      49.0  ███████████████████
  ddp                         -         -  needs 151.2 GiB with everything recomputed
  fsdp                      430      55.0  ███████████████████▉
  fsdp+tp                   520      49.0  ████████████████████████

collectives per step
  all-gather x           65
  all-gather x,y         32
  all-gather y           64
  all-reduce y           35
  reduce-scatter x       33
  reduce-scatter x,y     32
  reduce-scatter y       64

parameters                             stored          used
  embed.weight                         [S(0), R]       [R, R] in embed/embedding; [R, S(0)] in head/linear
  layers.*.attn.wo.weight         x32  [S(0), S(1)]    [R, S(1)]
  layers.0.attn.wqkv.weight            [S(0), R]       [R, R]
  layers.1.attn.wqkv.weight            [S(1), R]       [R, R]
  layers.{2-31}.attn.wqkv.weight  x30  [S(1), S(0,3)]  [R, S(0,3)]
  norm.weight                          [S(0), R]       [R, R]

recompute: the first 8 of 32 layers.* (full)
fallback: layers.*/cumsum (aten.cumsum) is replicated, x32, 1.5 ms
"""
