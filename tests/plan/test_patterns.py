"""Patterns, their order, and the canonical folding."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoplan.errors import PlanError
from autoplan.plan import collapse, expand, natural_key, parse_pattern
from autoplan.plan.patterns import match, skeleton


@pytest.mark.parametrize(
    "pattern, name",
    [
        ("layers.*.attn.wq.weight", "layers.11.attn.wq.weight"),
        ("layers.{1-30}.w", "layers.1.w"),
        ("layers.{1-30}.w", "layers.30.w"),
        ("layers.*/add#1", "layers.3/add#1"),
        ("layers.*/split[1]", "layers.0/split[1]"),
        ("layers.*.experts.{0-3}.w", "layers.7.experts.3.w"),
        ("/add", "/add"),
        ("inputs/tokens", "inputs/tokens"),
        ("*.weight", "0.weight"),
    ],
)
def test_a_pattern_matches_what_it_stands_for(pattern, name):
    assert match(pattern, name)


@pytest.mark.parametrize(
    "pattern, name",
    [
        ("layers.*.w", "layers.first.w"),
        ("layers.*.w", "layers.1.2.w"),
        ("layers.*.w", "layers.01.w"),
        ("layers.{1-30}.w", "layers.0.w"),
        ("layers.{1-30}.w", "layers.31.w"),
        ("layers.*/add", "layers.3/add#1"),
        ("layers.*/add", "layers.3"),
        ("layers.*", "layers.3/add"),
        ("layers.1.w", "layers.10.w"),
    ],
)
def test_a_pattern_matches_nothing_else(pattern, name):
    assert not match(pattern, name)


@pytest.mark.parametrize(
    "text",
    [
        "layers.**.w",
        "layers.*x.w",
        "layers..w",
        "",
        "layers.{3-1}.w",
        "layers.{2-2}.w",
        "layers.{1-}.w",
        "layers.{a-b}.w",
        "a/*",
        "a/",
        "a.{1}.b",
    ],
)
def test_a_malformed_pattern_is_an_error_that_shows_it(text):
    with pytest.raises(PlanError, match="^" + repr(text).replace("*", r"\*").replace("{", r"\{").replace(".", r"\.")):
        parse_pattern(text)


def test_natural_order_counts_in_numbers_and_puts_a_star_where_zero_is():
    ordered = ["embed.weight", "layers.*.attn.wq", "layers.0.mlp", "layers.{1-9}.mlp", "layers.10.mlp", "norm", "norm2", "norm10"]
    shuffled = random.Random(0).sample(ordered, len(ordered))
    assert sorted(shuffled, key=natural_key) == ordered


def test_copies_that_agree_in_everything_become_one_starred_line():
    folded = collapse({f"layers.{i}.w": "same" for i in range(12)}, {"layers"})
    assert {key: fold.count for key, fold in folded.items()} == {"layers.*.w": 12}
    assert folded["layers.*.w"].members == tuple(f"layers.{i}.w" for i in range(12))


def test_runs_of_equal_copies_become_ranges_and_single_ones_stay():
    content = {"layers.0.w": "a", **{f"layers.{i}.w": "b" for i in range(1, 11)}, "layers.11.w": "a", "head.w": "a"}
    folded = collapse(content, {"layers"})
    assert {key: (fold.content, fold.count) for key, fold in folded.items()} == {
        "head.w": ("a", 1),
        "layers.0.w": ("a", 1),
        "layers.{1-10}.w": ("b", 10),
        "layers.11.w": ("a", 1),
    }
    assert list(folded) == ["head.w", "layers.0.w", "layers.{1-10}.w", "layers.11.w"]


def test_a_range_does_not_span_a_copy_that_lacks_the_name():
    folded = collapse({"layers.1.w": "a", "layers.3.w": "a", "layers.4.w": "b"}, {"layers"})
    assert list(folded) == ["layers.1.w", "layers.3.w", "layers.4.w"]


def test_a_star_may_span_copies_that_lack_the_name():
    folded = collapse({"layers.1.moe.w": "a", "layers.3.moe.w": "a", "layers.0.w": "a"}, {"layers"})
    assert {key: fold.count for key, fold in folded.items()} == {"layers.0.w": 1, "layers.*.moe.w": 2}


def test_a_star_does_not_cover_a_name_that_exists_without_a_line():
    lines = {f"layers.{i}/add": "gathered" for i in range(3)}
    assert list(collapse(lines, {"layers"}, existing=[f"layers.{i}/add" for i in range(4)])) == ["layers.{0-2}/add"]


def test_only_the_outermost_foldable_segment_is_folded():
    lines = {f"layers.{i}.mlp.{j}.w": "a" for i in range(2) for j in (0, 2)}
    assert list(collapse(lines, {"layers", "layers.0.mlp", "mlp"})) == ["layers.*.mlp.0.w", "layers.*.mlp.2.w"]


def test_a_segment_is_folded_only_behind_a_prefix_that_was_named():
    lines = {"mlp.0.w": "a", "mlp.1.w": "a", "encoder.block.0.w": "a", "encoder.block.1.w": "a"}
    assert list(collapse(lines, {"encoder.block"})) == ["encoder.block.*.w", "mlp.0.w", "mlp.1.w"]


def test_execution_order_is_that_of_the_first_member():
    names = ["embed/embedding", "layers.0/b", "layers.0/a", "layers.1/b", "layers.1/a", "head/linear"]
    folded = collapse(dict.fromkeys(names, "x"), {"layers"}, execution_order=True)
    assert list(folded) == ["embed/embedding", "layers.*/b", "layers.*/a", "head/linear"]


@given(
    lines=st.dictionaries(st.builds("layers.{}.{}".format, st.integers(0, 12), st.sampled_from("uvw")), st.sampled_from("ab")),
    others=st.sets(st.builds("layers.{}.{}".format, st.integers(0, 12), st.sampled_from("uvw"))),
)
def test_folding_says_of_every_name_exactly_what_was_said(lines, others):
    folded = collapse(lines, {"layers"}, existing=others)
    for name in (*lines, *others):
        said = [fold.content for pattern, fold in folded.items() if match(pattern, name)]
        assert said == ([lines[name]] if name in lines else [])
    assert sum(fold.count for fold in folded.values()) == len(lines)


@given(st.sampled_from(["a.*.w", "a.{3-6}.w", "a.*.b.{1-2}/op#1", "a.b"]), st.integers(1, 12))
def test_expanding_gives_names_that_match_and_as_many_as_counted(pattern, count):
    names = expand(pattern, count)
    if names is None:
        expected = parse_pattern(pattern).range_count
        assert count != expected and (expected is not None or count % 2)
    else:
        assert len(set(names)) == count
        assert all(match(pattern, name) for name in names)


def test_what_cannot_be_expanded_is_none():
    assert expand("a.*.b.*", 6) is None
    assert expand("a.{0-999999999}", 1_000_000_000) is None


def test_the_skeleton_is_equal_for_a_pattern_and_what_it_matches():
    assert skeleton("layers.{0-3}.mlp.2/add#1") == skeleton("layers.1.mlp.2/add#1") == "layers.*.mlp.*/add#1"
