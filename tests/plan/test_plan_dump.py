"""The canonical bytes: golden files compared whole, and every plan survives the way out and in again."""

import dataclasses
import json
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from autoplan.errors import PlanError
from autoplan.placement import Mesh, P, R, S, fits
from autoplan.plan import (
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
    RecomputeLine,
    ReshardEntry,
    SolverInfo,
    dump_plan,
    load_plan,
    parse_pattern,
    parse_plan,
    plan_to_json,
    write_plan,
)
from autoplan.plan.schema import COLLECTIVE_KINDS, LAYOUTS, OPTIMIZERS, PRECISIONS


def test_the_dumped_plan_is_the_golden_file(plan, text):
    assert dump_plan(plan) == text


def test_the_golden_file_loads_as_the_plan_but_for_rounding(plan, golden_path):
    rounded = Predicted(412.0, 350.0, 20.0, 6.04, 0.0, CommunicationMs(36.0, 84.4), MemoryGib(49.0, 2.0, 2.0, 8.0, 31.0, 2.0, 4.0))
    by_hand = {**plan.by_hand, "fsdp": ByHandLine(430.0, 55.0), "fsdp+tp": ByHandLine(520.0, 49.0)}
    assert load_plan(golden_path) == dataclasses.replace(plan, predicted=rounded, by_hand=by_hand)


def test_the_example_of_the_format_loads_and_says_the_same_when_dumped():
    path = Path(__file__).parent / "design_example.yaml"
    plan = load_plan(path)
    expected = yaml.safe_load(path.read_text(encoding="utf-8"))
    expected["gather"]["layers.*"]["count"] = 32  # told from the parameters, as the example leaves it out
    assert yaml.safe_load(dump_plan(plan)) == expected


def test_any_yaml_reader_reads_what_json_says(plan, text):
    assert yaml.safe_load(text) == plan_to_json(plan) == json.loads(json.dumps(plan_to_json(plan)))


def test_parameters_are_dumped_in_natural_order_and_redistributions_as_they_run(plan):
    line, entry = plan.params["norm.weight"], plan.reshard["layers.*.attn.wo/linear"][0]
    params = {f"layers.{i}.w": line for i in (10, 2, 1)}
    reshard = {f"layers.{i}/add": (dataclasses.replace(entry, count=1),) for i in (10, 2, 1)}
    loaded = parse_plan(dump_plan(dataclasses.replace(plan, params=params, reshard=reshard)))
    assert list(loaded.params) == ["layers.1.w", "layers.2.w", "layers.10.w"]
    assert list(loaded.reshard) == ["layers.10/add", "layers.2/add", "layers.1/add"]


def test_eager_steps_need_no_word_and_compiled_ones_have_one(plan, text):
    compiled = dataclasses.replace(plan, options=dataclasses.replace(plan.options, compile=True))
    assert "compile" not in text and "memory_gib: 120, compile: true}" in dump_plan(compiled)
    assert parse_plan(dump_plan(compiled)).options.compile and not parse_plan(text).options.compile


def test_layouts_by_hand_are_left_out_where_there_are_none(plan):
    text = dump_plan(dataclasses.replace(plan, by_hand={}))
    assert "by_hand" not in text and parse_plan(text).by_hand == {}


def test_writing_replaces_the_whole_file_and_leaves_nothing_beside_it(plan, text, tmp_path):
    path = tmp_path / "plan.yaml"
    path.write_text("old")
    write_plan(plan, path)
    assert path.read_text(encoding="utf-8") == text
    assert list(tmp_path.iterdir()) == [path]


def test_a_failed_write_leaves_the_old_file_and_nothing_beside_it(plan, tmp_path, monkeypatch):
    path = tmp_path / "plan.yaml"
    path.write_text("old")
    monkeypatch.setattr("os.replace", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(PlanError, match="the plan cannot be written: No space left on device"):
        write_plan(plan, path)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_missing_folder_is_an_error_that_names_the_path(plan, tmp_path):
    with pytest.raises(PlanError, match="cannot be written: No such file or directory\n  .*nowhere/plan.yaml"):
        write_plan(plan, tmp_path / "nowhere" / "plan.yaml")


AXES = ("x", "y", "zoo")
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
NAMED = TEXTS.filter(bool)
INDEXES = st.integers(0, 30)
AMOUNTS = st.floats(0, 1e9, allow_subnormal=False).map(lambda value: float(f"{value:.3g}"))
PREDICTIONS = st.builds(Predicted, *[AMOUNTS] * 5, st.builds(CommunicationMs, AMOUNTS, AMOUNTS), st.builds(MemoryGib, *[AMOUNTS] * 7))
BY_HAND = st.builds(ByHandLine, AMOUNTS, AMOUNTS) | st.builds(ByHandLine, none=NAMED)
SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXTS
RAW = st.recursive(SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3), max_leaves=6)
PATHS = st.sampled_from(["norm", "layers.*.attn", "layers.{1-30}.mlp.0", "layers.12", "0", "on", "h.*.a.{2-4}", "a-b.ü c", "*.w"])
OPS = st.sampled_from(["linear", "add#1", "split[1]", "scaled_dot_product_attention", "null"])
ADDRESSES = st.builds("{}/{}".format, PATHS, OPS)


def placements(mesh, kinds=(R, P)):
    """Placements over `mesh`, whatever they are of."""
    one = st.sampled_from(kinds) | st.builds(S, st.integers(0, 3), st.sampled_from([1, 1, 3, 16]))
    return st.tuples(*[one] * mesh.ndim)


def placements_of(shape, mesh, kinds=(R, P)):
    """Placements over `mesh` that can cut `shape`."""
    return placements(mesh, kinds).map(lambda found: found if fits(shape, found, mesh) else (R,) * mesh.ndim)


def collectives(mesh):
    axes = st.lists(st.sampled_from(mesh.names), min_size=1, unique=True).map(tuple)
    return st.lists(st.builds(Collective, st.sampled_from(COLLECTIVE_KINDS), axes), max_size=3).map(tuple)


def counted(draw, name):
    """A count that the ranges of `name` allow."""
    count = parse_pattern(name).range_count
    return draw(st.integers(1, 40)) if count is None else count


@st.composite
def plans(draw):
    """Any plan that makes sense as far as a file can tell."""
    names = draw(st.lists(st.sampled_from(AXES), min_size=1, unique=True).map(tuple))
    mesh = Mesh(names, tuple(draw(st.integers(1, 4)) for _ in names))
    shapes = st.lists(st.sampled_from([1, 6, 48, 4096, 6144]), max_size=4).map(tuple)

    def section(keys, line):
        return {name: line(name) for name in draw(st.lists(keys, unique=True, max_size=4))}

    def param(name):
        shape = draw(shapes)
        use = placements_of(shape, mesh)
        store = draw(placements_of(shape, mesh, kinds=(R,)))
        return ParamLine(shape, store, draw(use | st.dictionaries(ADDRESSES, use, min_size=1, max_size=2)), counted(draw, name))

    def buffer(name):
        shape = draw(shapes)
        return BufferLine(shape, draw(placements_of(shape, mesh)), counted(draw, name))

    def op(name):
        return OpLine(draw(st.none() | NAMED), draw(collectives(mesh)), draw(st.none() | placements(mesh)), counted(draw, name))

    def entry(name, consumers):
        both = draw(collectives(mesh)), draw(collectives(mesh))
        return ReshardEntry(draw(placements(mesh)), draw(placements(mesh)), *both, counted(draw, name), tuple(consumers))

    def reshard(name):
        consumers = draw(st.lists(st.lists(ADDRESSES, min_size=1, max_size=2), max_size=3))
        return tuple(entry(name, group) for group in consumers) or (entry(name, ()),)

    def gather(name):
        both = draw(collectives(mesh)), draw(collectives(mesh))
        return GatherLine(draw(st.sampled_from(["block", "parameter"])), draw(st.booleans()), draw(INDEXES), *both, counted(draw, name))

    def recompute(_):
        blocks = draw(INDEXES)
        return RecomputeLine(blocks, blocks + draw(INDEXES), draw(NAMED))

    def given_input(_):
        shape = draw(shapes)
        return InputLine(shape, draw(NAMED), draw(placements_of(shape, mesh)))

    def fallback():
        return FallbackLine(draw(ADDRESSES), draw(NAMED), draw(st.integers(1, 99)), draw(AMOUNTS))

    sizes = st.none() | st.integers(1, 9999)
    model = ModelInfo(
        *(draw(s) for s in (NAMED, st.integers(0), NAMED, NAMED, st.dictionaries(TEXTS, RAW, max_size=3), sizes, sizes, st.none() | NAMED))
    )
    asked = st.sampled_from(["train", "infer"]), st.sampled_from(OPTIMIZERS), st.sampled_from(PRECISIONS)
    limit = st.none() | st.floats(0, 1e6)
    return Plan(
        model=model,
        mesh=mesh,
        hardware=HardwareInfo(draw(NAMED), draw(NAMED), draw(sizes)),
        options=Options(*(draw(s) for s in (*asked, limit, INDEXES, st.booleans(), st.booleans()))),
        pins=tuple(draw(st.lists(st.dictionaries(TEXTS, RAW, max_size=3), max_size=2))),
        inputs=section(NAMED, given_input),
        outputs=section(NAMED, lambda _: OutputLine(draw(placements(mesh)))),
        params=section(PATHS, param),
        buffers=section(PATHS, buffer),
        ops=section(ADDRESSES, op),
        reshard=section(ADDRESSES, reshard),
        gather=section(PATHS, gather),
        recompute=section(PATHS, recompute),
        fallbacks=tuple(fallback() for _ in range(draw(st.integers(0, 2)))),
        predicted=draw(PREDICTIONS),
        by_hand={name: draw(BY_HAND) for name in LAYOUTS if draw(st.booleans())},
        solver=SolverInfo(draw(NAMED), draw(st.none() | AMOUNTS), draw(st.booleans()), draw(st.none() | AMOUNTS)),
    )


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(plans())
def test_a_plan_that_is_dumped_and_loaded_is_the_same_plan(plan):
    text = dump_plan(plan)
    loaded = parse_plan(text)
    assert loaded == plan
    assert [list(getattr(loaded, section)) for section in ("inputs", "ops", "reshard")] == [
        list(plan.inputs),
        list(plan.ops),
        list(plan.reshard),
    ]
    assert dump_plan(loaded) == text
    assert yaml.safe_load(text) == plan_to_json(plan)


@settings(max_examples=30)
@given(st.floats(0, 1e9), st.floats(0, 1e9))
def test_unrounded_predictions_are_rounded_once(step_ms, peak_gib):
    text = dump_plan(dataclasses.replace(parse_plan(GOLDEN), predicted=Predicted(step_ms, memory_gib=MemoryGib(peak_gib))))
    loaded = parse_plan(text)
    assert loaded.predicted.step_ms == pytest.approx(step_ms, rel=5.1e-3)
    assert loaded.predicted.memory_gib.peak == pytest.approx(peak_gib, rel=5.1e-3)
    assert dump_plan(loaded) == text


GOLDEN = (Path(__file__).parent / "golden.yaml").read_text(encoding="utf-8")
