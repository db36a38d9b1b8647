"""Plans decode to the decisions they encode; those edited by hand so that they do not resolve say where, and what to write."""

from __future__ import annotations

from itertools import product

import pytest
from assignment_cases import candidates_of, model_of, plan_of, random_of, unfolded_of, written

from autoplan.assignment import Assignment, decode
from autoplan.errors import PlanError
from autoplan.plan import dump_plan, parse_plan
from autoplan.planner.random_plans import fold

SMALL = ("4", "2x2", "1x4", "2x3")


def assert_same(found: Assignment, said: Assignment) -> None:
    for node, strategy, right in zip(said.graph.nodes, found.strategies, said.strategies, strict=True):
        where = f"{node.address}: {strategy} is not {right}"
        assert strategy.rows == right.rows and strategy.local == right.local, where
        assert strategy.needs == right.needs, where
        assert strategy.makes == right.makes, where
    assert found.sources == said.sources and found.outputs == said.outputs and found.mesh == said.mesh


@pytest.mark.parametrize(("name", "mesh", "seed"), [*product(("llama", "gpt2"), SMALL, range(3))])
def test_random_decisions_are_read_back_from_the_file(name: str, mesh: str, seed: int) -> None:
    said = random_of(name, mesh, seed)
    assert_same(decode(written(plan_of(name, said)), said.graph), said)


@pytest.mark.parametrize("seed", range(3))
def test_random_decisions_on_three_axes_are_read_back(seed: int) -> None:
    said = random_of("llama", "2x2x2", seed)
    assert_same(decode(written(plan_of("llama", said)), said.graph), said)


@pytest.mark.parametrize(("name", "mesh", "seed"), [*product(("llama", "gpt2"), ("4", "2x2"), range(2))])
def test_blocks_that_decide_differently_are_read_back(name: str, mesh: str, seed: int) -> None:
    said = unfolded_of(name, mesh, seed)
    plan = written(plan_of(name, said))
    assert any(".0." in pattern for pattern in plan.params)  # not folded
    assert_same(decode(plan, said.graph), said)


def test_copies_that_decide_alike_are_one_line() -> None:
    plan = written(plan_of("llama", random_of("llama", "2x2", 0)))
    blocks = [pattern for pattern in plan.params if pattern.startswith("layers.")]
    assert len(blocks) == 9 and all(pattern.startswith("layers.*.") and plan.params[pattern].count == 2 for pattern in blocks)
    assert len(fold(model_of("llama")[1]).node_representatives) < len(model_of("llama")[1].nodes)


@pytest.fixture(scope="module")
def text() -> str:
    """A plan with a redistribution of the normed input of the first feed-forward projection, and more."""
    return dump_plan(plan_of("llama", random_of("llama", "2x2", 0)))


def line_of(text: str, part: str) -> int:
    """The number of the first line that has `part`."""
    return next(number for number, line in enumerate(text.splitlines(), 1) if part in line)


def edited(text: str, number: int, old: str, new: str) -> str:
    lines = text.splitlines(keepends=True)
    assert old in lines[number - 1], lines[number - 1]
    lines[number - 1] = lines[number - 1].replace(old, new, 1)
    return "".join(lines)


def refusal(text: str) -> str:
    with pytest.raises(PlanError) as raised:
        decode(parse_plan(text), model_of("llama")[1])
    return str(raised.value)


def reshard_lines(text: str) -> list[int]:
    """The numbers of the lines of `reshard` that each say one redistribution."""
    return [number for number, line in enumerate(text.splitlines(), 1) if "from: [" in line]


def test_a_wrong_from_names_the_line_and_what_is_made(text: str) -> None:
    number = reshard_lines(text)[0]
    before = text.splitlines()[number - 1].split("from: ")[1].split("]")[0] + "]"
    other = "[P, P]" if before != "[P, P]" else "[R, R]"
    said = refusal(edited(text, number, f"from: {before}", f"from: {other}"))
    assert f"from {other}, but it is made as {before}" in said
    assert f":{number};" in said and "correct `from`" in said


def test_collectives_other_than_those_it_takes_are_told_with_the_right_ones(text: str) -> None:
    lines = text.splitlines()
    number = next(number for number in reshard_lines(text) if "forward: [all-" in lines[number - 1])
    listed = lines[number - 1].split("forward: ")[1].split("]")[0] + "]"
    said = refusal(edited(text, number, f"forward: {listed}", "forward: [all-to-all x, all-to-all x]"))
    assert "takes other collectives than listed" in said and f"write forward: {listed}" in said and f":{number};" in said


def test_a_wrong_count_is_told_with_the_right_one(text: str) -> None:
    number = line_of(text, "layers.*.attn.wq.weight")
    said = refusal(edited(text, number, "count: 2", "count: 3"))
    assert "layers.*.attn.wq.weight" in said and "3" in said and "2" in said and f":{number}" in said


def test_a_parameter_that_no_line_matches_is_named(text: str) -> None:
    number = line_of(text, "  layers.*.attn.wq.weight")
    said = refusal("".join(line for i, line in enumerate(text.splitlines(keepends=True), 1) if i != number))
    assert "layers.0.attn.wq.weight" in said and "params" in said


def test_a_use_that_no_row_takes_lists_rows_that_do(text: str) -> None:
    """The head reads its weight as a sum of terms, which a parameter is not."""
    number = line_of(text, "  norm.weight:")
    use = text.splitlines()[number - 1].split("use: ")[1].split("]")[0] + "]"
    said = refusal(edited(text, number, f"use: {use}", "use: [P, P]"))
    assert "no row takes inputs" in said and "norm/rms_norm" in said and "rows it has: " in said and "llama.py:" in said


def test_placements_that_do_not_resolve_are_one_error(text: str) -> None:
    """Three that do not depend on each other: what is downstream of a problem is not guessed at."""
    before = text[: text.index("reshard:")].count("\n")
    numbers = [before + line_of(text[text.index("reshard:") :], f"  {name}: ") for name in ("inputs/labels", "rope.cos", "rope.sin")]
    for number in numbers:
        place = text.splitlines()[number - 1].split("from: ")[1].split("]")[0] + "]"
        text = edited(text, number, f"from: {place}", "from: [P, P]")
    said = refusal(text)
    assert said.count("correct `from`") == 3 and all(f":{number};" in said for number in numbers)


def test_parameters_that_do_not_match_are_one_error(text: str) -> None:
    for name in ("wq", "wk"):
        text = edited(text, line_of(text, f"  layers.*.attn.{name}.weight"), "count: 2", "count: 3")
    text = edited(text, line_of(text, "  norm.weight:"), "norm.weight", "nrom.weight")
    said = refusal(text)
    missing = [name for name in ("layers.*.attn.wq.weight", "layers.*.attn.wk.weight", "nrom.weight") if name not in said]
    assert not missing, said


def test_a_redistribution_without_a_line_is_told_with_the_line_to_write(text: str) -> None:
    """Backward alone: a value that is read as it was made, whose partial gradient takes a collective."""
    lines = text.splitlines(keepends=True)
    for number in reshard_lines(text):
        try:
            decode(parse_plan("".join(line for i, line in enumerate(lines, 1) if i != number)), model_of("llama")[1])
        except PlanError as error:
            assert str(error)
        else:
            pytest.fail(f"resolves without {lines[number - 1]!r}")


def test_a_plan_of_another_model_is_refused() -> None:
    plan = plan_of("gpt2", random_of("gpt2", "4", 0))
    with pytest.raises(PlanError, match=r"layers\.0\.attn\.wq\.weight"):
        decode(plan, model_of("llama")[1])


def test_the_cases_have_what_they_are_to_show() -> None:
    """Grouped shards, local implementations and partial gradients are among the random decisions."""
    drawn = [s for seed in range(3) for name in ("llama", "gpt2") for s in random_of(name, "2x2", seed).strategies]
    assert any(strategy.local for strategy in drawn) and any(any(strategy.partial) for strategy in drawn)
    assert any("," in str(placement) for s in drawn for state in s.makes for placement in state)
    assert len(candidates_of("llama", "2x2").strategies) > 20
