"""The layouts that one writes by hand, for any model: as the pins for three models have them, never faster than the plan, told where they cannot be."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from planner_cases import MODULES, Module, graph_of, module, planned, request
from torch import Tensor, nn

from autoplan.errors import OutOfTime
from autoplan.models import llama
from autoplan.placement import R, S, parse_mesh
from autoplan.plan import ByHandLine, Options, Plan
from autoplan.planner import by_hand
from autoplan.planner.layouts import data_parallel, layouts_of, tensor_parallel
from autoplan.planner.pins import pinned
from autoplan.planner.pipeline import capture_for

PINS = Path(__file__).parents[2] / "configs" / "pins"
ROUNDING = 1e-3  # of a step: costs closer than that are equal to the solver
WIDE: dict[str, Any] = {"dim": 4096, "n_layers": 2, "n_heads": 32, "n_kv_heads": 8, "ffn_dim": 14336, "batch": 8, "seq": 4096}


@cache
def plan_of(name: str, mesh: str = "2x2", hardware: str = "h200-sxm", memory_gib: float | None = None, **asked: Any) -> Plan:
    return planned(module(name), request(mesh, hardware, memory_gib, **asked))


@cache
def wide() -> Module:
    with torch.device("meta"):
        return llama.build(**WIDE)


def on_gpus(**asked: Any) -> Plan:
    """Of a model wide enough that GPUs are busy with it."""
    return planned(wide(), replace(request("2x2", "h200-sxm", **asked), options=Options(precision="bf16")))


@pytest.mark.parametrize("hardware", ["cpu-gloo", "h200-sxm"])
@pytest.mark.parametrize("mesh", ["4", "2x2", "2x4"])
@pytest.mark.parametrize("name", MODULES)
def test_no_layout_by_hand_is_predicted_faster_than_the_plan(name: str, mesh: str, hardware: str) -> None:
    plan = plan_of(name, mesh, hardware)
    assert plan.solver.status == "optimal"
    times = {layout: line.step_ms for layout, line in plan.by_hand.items()}
    assert list(times) == ["ddp", "fsdp", "fsdp+tp" if "x" in mesh else "tp"]
    for layout, step_ms in times.items():
        assert step_ms is not None and plan.predicted.step_ms <= step_ms * (1 + ROUNDING), layout


def test_nor_where_memory_is_tight() -> None:
    limit_gib = 0.6 * plan_of("mlp").predicted.memory_gib.peak
    plan = plan_of("mlp", memory_gib=limit_gib)
    assert "needs" in (plan.by_hand["ddp"].none or "")
    for layout in ("fsdp", "fsdp+tp"):
        line = plan.by_hand[layout]
        assert line.step_ms is not None and plan.predicted.step_ms <= line.step_ms * (1 + ROUNDING), layout
        assert line.peak_gib is not None and line.peak_gib <= limit_gib, layout


def test_they_are_what_pins_for_llama_say() -> None:
    """Two layers do not hide that pins split the vocabulary where `fsdp+tp` may not, and let every device embed the whole batch in `ddp`."""
    lines = on_gpus().by_hand
    for layout, file, close in (("ddp", "ddp", 0.04), ("fsdp", "fsdp", 0.02), ("fsdp+tp", "fsdp-tp", 0.03)):
        pins = tuple(yaml.safe_load((PINS / "llama" / f"{file}.yaml").read_text(encoding="utf-8")))
        plan = on_gpus(pins=pins)
        assert lines[layout].step_ms == pytest.approx(plan.predicted.step_ms, rel=close), layout
        assert plan.by_hand == lines  # pins do not bind them


def test_an_axis_of_one_device_is_no_axis() -> None:
    assert plan_of("mlp", "1x4").by_hand == plan_of("mlp", "4").by_hand == plan_of("mlp", "4x1").by_hand
    assert plan_of("mlp", "1").by_hand == {}


def test_three_axes_are_as_two_for_what_is_split_over_all_of_them() -> None:
    two, three = plan_of("mlp", "2x4", "cpu-gloo").by_hand, plan_of("mlp", "2x2x2", "cpu-gloo").by_hand
    for layout in ("ddp", "fsdp"):
        assert three[layout].step_ms == pytest.approx(two[layout].step_ms, rel=0.05)


def test_inference_has_none() -> None:
    asked = replace(request(), options=Options(mode="infer", optimizer="none"))
    assert planned(module("mlp"), asked).by_hand == {}


def lines_of(name: str, mesh: str, memory_gib: float | None = None, **options: Any) -> dict[str, ByHandLine]:
    """Without the plan that they are compared with."""
    asked = request(mesh, "h200-sxm", memory_gib)
    asked = replace(asked, options=replace(asked.options, **options))
    return dict(by_hand.by_hand(pinned(graph_of(name), asked)[0], asked))


def test_a_batch_that_does_not_divide_is_told() -> None:
    lines = lines_of("llama", "4x4")
    assert lines["ddp"] == lines["fsdp"] == ByHandLine(none="batch 8 does not divide over 16 devices")
    assert lines["fsdp+tp"].step_ms is not None
    assert lines_of("llama", "16x2")["fsdp+tp"] == lines["ddp"]
    assert lines_of("llama", "16")["tp"].none is None  # which does not split it


def test_what_does_not_fit_says_how_much_it_needs() -> None:
    ample = lines_of("llama", "2x2")
    assert ample["ddp"].peak_gib is not None
    few = lines_of("llama", "2x2", memory_gib=0.1 * ample["ddp"].peak_gib)
    for line in few.values():
        assert line.none is not None and line.none.startswith("needs 0.00") and line.none.endswith(" GiB with everything recomputed")


def test_as_few_copies_recompute_as_are_needed() -> None:
    ample = lines_of("llama", "2x2")["fsdp"]
    assert ample.step_ms is not None and ample.peak_gib is not None
    before = ample
    for share in (0.95, 0.85, 0.75):
        line = lines_of("llama", "2x2", memory_gib=share * ample.peak_gib)["fsdp"]
        assert line.step_ms is not None and line.peak_gib is not None and before.step_ms is not None
        assert line.peak_gib <= share * ample.peak_gib and line.step_ms >= before.step_ms
        before = line
    assert before.step_ms is not None and before.step_ms > ample.step_ms


def test_the_options_of_the_request_hold() -> None:
    plain = lines_of("llama", "2x2")["ddp"]
    assert lines_of("llama", "2x2", optimizer="sgd")["ddp"].peak_gib < plain.peak_gib  # type: ignore[operator]
    assert lines_of("llama", "2x2", compile=True)["ddp"].peak_gib < plain.peak_gib  # type: ignore[operator]


def test_a_layout_that_takes_too_long_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def late(*_: Any) -> None:
        raise OutOfTime("no plan found in 60 s")

    monkeypatch.setattr(by_hand, "solve", late)
    assert lines_of("mlp", "2")["ddp"] == ByHandLine(none="no plan found in 60 s")


class Positions(nn.Module):
    """The first input has no dims, the table of positions is no sample's, and there are as many masks as samples."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.zeros(6, 8))

    def forward(self, scale: Tensor, x: Tensor, positions: Tensor, keep: Tensor) -> Tensor:
        return ((x + self.table + positions) * keep[:, None, None] * scale).square().mean()


def test_the_batch_is_the_first_dim_of_the_first_input_that_has_one_and_of_those_like_it() -> None:
    inputs = (torch.tensor(1.0), torch.zeros(4, 6, 8), torch.zeros(6, 8), torch.zeros(4))
    asked = request("2x2")
    candidates, _ = pinned(capture_for(Positions(), inputs, {}, asked.options), asked)
    ddp, fsdp, split = layouts_of(asked.mesh)
    graph, value_class = candidates.graph, candidates.classes.value_class
    names = [graph.values[value].address for value in graph.inputs]
    for left, placed in ((data_parallel(ddp, candidates), (S(0), S(0))), (tensor_parallel(split, candidates, None), (S(0), R))):
        states = [left.sources[value_class[value]] for value in graph.inputs]
        assert dict(zip(names, states, strict=True)) == {
            "inputs/scale": ((R, R),),
            "inputs/x": (placed,),
            "inputs/positions": ((R, R),),
            "inputs/keep": (placed,),
        }
    table = candidates.classes.parameter_class["table"]
    assert data_parallel(fsdp, candidates).sources[table] == ((R, S(0)), (S(0), R))  # six rows are two halves, not four quarters
    assert data_parallel(ddp, candidates).sources[table] == ((R, R),)


class Masked(nn.Module):
    """A mask that is made in forward, of no input, for every sample its own."""

    def forward(self, x: Tensor) -> Tensor:
        mask = torch.ones(4, 6, 8).cumsum(1)
        return (x * mask).square().mean()


def test_what_is_whole_is_cut_for_what_is_split() -> None:
    asked = request("2x2")
    candidates, _ = pinned(
        capture_for(Masked(), (torch.zeros(4, 6, 8, requires_grad=True),), {}, replace(asked.options, mode="infer")), asked
    )
    left = data_parallel(layouts_of(asked.mesh)[0], candidates)
    addresses = [candidates.graph.nodes[node].address for node in candidates.classes.node_representatives]
    rows = {address: {str(strategy.rows[0]) for strategy in found} for address, found in zip(addresses, left.strategies, strict=True)}
    assert rows["/mul"] == {"S(0) S(0) -> S(0)"} and rows["/cumsum"] == {"R -> R"}


def test_a_mesh_has_the_layouts_that_one_writes_for_it() -> None:
    assert [layout.name for layout in layouts_of(parse_mesh("8"))] == ["ddp", "fsdp", "tp"]
    assert [layout.name for layout in layouts_of(parse_mesh("2x1x4"))] == ["ddp", "fsdp", "fsdp+tp"]
    assert (layouts_of(parse_mesh("2x1x4"))[2].batch, layouts_of(parse_mesh("2x1x4"))[2].tensor) == ((0,), 2)
