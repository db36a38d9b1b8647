"""Strict loading: whatever is wrong with a plan file, the message says what, on which line, and what next."""

import re
import time
import tracemalloc

import pytest

from autoplan.errors import PlanError
from autoplan.plan import load_plan, parse_plan

MAKE_ONE = "make one with: autoplan plan TARGET --mesh 2x4 -o plan.yaml"


def message(text: str) -> str:
    """What the loader says of `text`."""
    with pytest.raises(PlanError) as caught:
        parse_plan(text, "plan.yaml")
    return str(caught.value)


def edited(text: str, old: str, new: str) -> str:
    """`text` with its first `old` replaced, which must be there."""
    assert old in text
    return text.replace(old, new, 1)


CASES = {
    "an unknown section": ("reshard:", "reshards:", "unknown key 'reshards'\n  plan.yaml:23; did you mean reshard?"),
    "an unknown key": (
        "dtype: int64",
        "dtyp: int64",
        "tokens: unknown key 'dtyp'\n  plan.yaml:9; did you mean dtype?\ntokens: dtype is missing\n  plan.yaml:9",
    ),
    "an unknown key like no other": (
        "{profile: h200-sxm",
        "{cards: 3, profile: h200-sxm",
        "hardware: unknown key 'cards'\n  plan.yaml:4; the keys here are profile, digest, per_host",
    ),
    "a duplicate key": (
        "  layers.1.attn.wqkv.weight:",
        "  layers.0.attn.wqkv.weight:",
        "duplicate key 'layers.0.attn.wqkv.weight'\n  plan.yaml:16; first on line 15; keep one of them",
    ),
    "a duplicate key within a line": (
        "{x: 2, y: 4}",
        "{x: 2, x: 4, y: 4}",
        "duplicate key 'x'\n  plan.yaml:3; first on line 3; keep one of them",
    ),
    "a missing section": (
        "inputs:\n  tokens:",
        "pins2:\n  tokens:",
        "inputs is missing\n  plan.yaml:1\nunknown key 'pins2'\n  plan.yaml:8; did you mean pins?",
    ),
    "missing keys": (", parameters: 8030261248", "", "model: parameters is missing\n  plan.yaml:2"),
    "text for a number": ("parameters: 8030261248", "parameters: many", "model parameters: 'many' is not an integer\n  plan.yaml:2"),
    "a fraction for a count": ("count: 30", "count: 30.5", "layers.{2-31}.attn.wqkv.weight count: 30.5 is not an integer\n  plan.yaml:17"),
    "true for a number": ("step_ms: 412", "step_ms: true", "predicted step_ms: true is not a number\n  plan.yaml:37"),
    "no number at all": ("step_ms: 412", "step_ms: 1e999", "predicted step_ms: inf is not a finite number of at least 0\n  plan.yaml:37"),
    "a negative prediction": (
        "exposed: 36",
        "exposed: -36",
        "predicted communication_ms exposed: -36 is not a finite number of at least 0\n  plan.yaml:42",
    ),
    "a number for text": ('digest: "sha256:56ef"', "digest: 56", "hardware digest: 56 is not text\n  plan.yaml:4"),
    "a word for a flag": ("regather: true", "regather: maybe", "layers.* regather: 'maybe' is not true or false\n  plan.yaml:31"),
    "a mapping for a list": ("pins:\n  - {param", "pins:\n  {param", "pins: a mapping is not a list\n  plan.yaml:6"),
    "nothing for a mapping": ("{x: 2, y: 4}", "", "mesh: null is not a mapping\n  plan.yaml:3"),
    "an empty text": ("profile: h200-sxm", 'profile: ""', "hardware profile: it is empty\n  plan.yaml:4"),
    "an unknown optimizer": (
        "optimizer: adamw",
        "optimizer: adam",
        "options optimizer: 'adam' is not one of adamw, sgd, none\n  plan.yaml:5; did you mean adamw?",
    ),
    "a size that does not divide": (
        "{shape: [4096, 4096], count: 32, store: [S(0), S(1)], use: [R, S(1)]}",
        "{shape: [4096, 4095], count: 32, store: [S(0), R], use: [R, S(1)]}",
        "layers.*.attn.wo.weight: S(1) on y=4 does not divide 4095 columns\n  plan.yaml:14; sizes that divide: 3, 5, 7, 9",
    ),
    "a size that does not divide in what another axis left": (
        "{shape: [4096], store: [S(0), R], use: [R, R]}",
        "{shape: [4100], store: [S(0), S(0)], use: [R, R]}",
        "norm.weight: S(0) on y=4 does not divide 2050 elements (of 4100, cut by the axes before)\n  plan.yaml:18; sizes that divide: 2, 5, 10, 25",
    ),
    "groups that do not divide": (
        'use: [R, "S(0,3)"]',
        'use: [R, "S(0,5)"]',
        "layers.{2-31}.attn.wqkv.weight: S(0,5) on y=4 does not divide 6144 rows in 5 groups\n  plan.yaml:17; 5 groups do not divide 6144",
    ),
    "an input that does not divide": (
        "shape: [8, 8192]",
        "shape: [7, 8192]",
        "tokens: S(0) on x=2 does not divide 7 rows\n  plan.yaml:9; sizes that divide: 7",
    ),
    "a dim that a matrix lacks": (
        "store: [S(1), R]",
        "store: [S(7), R]",
        "layers.1.attn.wqkv.weight: S(7) on x of a tensor with 2 dims, shape [6144, 4096]\n  plan.yaml:16; dims are 0 to 1",
    ),
    "a dim of a scalar": (
        "{shape: [4096], store: [S(0), R], use: [R, R]}",
        "{shape: [], store: [S(0), R], use: [R, R]}",
        "norm.weight: S(0) on x of a tensor with 0 dims, shape []\n  plan.yaml:18; a scalar cannot be split; write R",
    ),
    "too few placements": (
        "loss: {place: [R, R]}",
        "loss: {place: [R]}",
        "loss place: 1 placement, the mesh has 2 axes (x, y)\n  plan.yaml:11; write one per axis, in mesh order",
    ),
    "no placement": (
        "loss: {place: [R, R]}",
        "loss: {place: [R, Q]}",
        "loss place: 'Q' is not a placement\n  plan.yaml:11; write R, P, S(dim) or S(dim,groups)",
    ),
    "an unquoted grouped shard": (
        'use: [R, "S(0,3)"]',
        "use: [R, S(0,3)]",
        "layers.{2-31}.attn.wqkv.weight use: 'S(0' is not a placement\n  plan.yaml:17; \"S(0,3)\" needs its quotes\n"
        "layers.{2-31}.attn.wqkv.weight use: '3)' is not a placement\n  plan.yaml:17; \"S(0,3)\" needs its quotes",
    ),
    "a parameter stored as a partial sum": (
        "store: [S(1), R]",
        "store: [P, R]",
        "layers.1.attn.wqkv.weight store: a parameter cannot be stored as a partial sum\n  plan.yaml:16; write R, or S(dim) to split it",
    ),
    "an unknown collective": (
        "backward: [all-reduce y]",
        "backward: [allreduce y]",
        "layers.*.mlp.w2/linear backward: 'allreduce y' is not a collective\n  plan.yaml:28; did you mean all-reduce?",
    ),
    "a collective over no axis of the mesh": (
        "backward: [all-reduce y]",
        "backward: [all-reduce z]",
        "layers.*.mlp.w2/linear backward: 'all-reduce z' is not over axes of the mesh (x, y)\n  plan.yaml:28; write all-gather x",
    ),
    "an unquoted collective over two axes": (
        '["all-gather x,y"]',
        "[all-gather x,y]",
        "layers.*.attn_norm/rms_norm forward: 'y' is not a collective\n  plan.yaml:26; write a kind and its axes, quoted if there are several: \"all-gather x,y\"",
    ),
    "an axis twice in a collective": (
        '["all-gather x,y"]',
        '["all-gather x,x"]',
        "layers.*.attn_norm/rms_norm forward: 'all-gather x,x' repeats an axis\n  plan.yaml:26; name every axis once",
    ),
    "one of several redistributions without consumers": (
        ", for: [layers.*.attn.wqkv/linear]",
        "",
        "layers.*.attn_norm/rms_norm: one of several entries, without its consumers\n  plan.yaml:25; add for: [ADDRESS, ...]",
    ),
    "a mesh that is no number": ("{x: 2, y: 4}", "{x: 2, y: four}", "mesh y: 'four' is not an integer\n  plan.yaml:3"),
    "a mesh without axes": ("{x: 2, y: 4}", "{}", "mesh: a mesh has at least one axis\n  plan.yaml:3; write {x: 2, y: 4}"),
    "a mesh of nothing": ("{x: 2, y: 4}", "{x: 2, y: 0}", "mesh y: 0 is below 1\n  plan.yaml:3"),
    "an axis that is no name": (
        "{x: 2, y: 4}",
        "{x: 2, 4y: 4}",
        "mesh 4y: an axis name is letters, digits and _\n  plan.yaml:3; write {x: 2, y: 4}",
    ),
    "a malformed star": (
        "  layers.*.attn.wo.weight:",
        "  layers.**.attn.wo.weight:",
        "'layers.**.attn.wo.weight': '**' is not a path segment\n  plan.yaml:14; as a whole segment, * is any integer and {1-30} a range of them",
    ),
    "a range that falls": (
        "  layers.{2-31}.attn",
        "  layers.{31-2}.attn",
        "'layers.{31-2}.attn.wqkv.weight': the range {31-2} does not rise\n  plan.yaml:17; write {first-last} with first below last",
    ),
    "a wildcard in an op": (
        "for: [layers.*.attn.wqkv/linear]",
        "for: [layers.*.attn.wqkv/*]",
        "layers.*.attn_norm/rms_norm for: 'layers.*.attn.wqkv/*': '*' is not the name of an op\n  plan.yaml:25; wildcards belong before the slash",
    ),
    "a count that the range denies": (
        "count: 30",
        "count: 29",
        "layers.{2-31}.attn.wqkv.weight count: 29, but layers.{2-31}.attn.wqkv.weight stands for 30\n  plan.yaml:17; write 30, or mend the pattern",
    ),
    "a count of one name": (
        "{shape: [8192, 128],",
        "{shape: [8192, 128], count: 2,",
        "rope.cos count: 2, but rope.cos stands for 1\n  plan.yaml:20; write 1, or mend the pattern",
    ),
    "more blocks than there are": (
        "blocks: 8",
        "blocks: 33",
        "layers.*: blocks 33 is more than of 32\n  plan.yaml:33; blocks counts those of the class that recompute",
    ),
    "a layout by hand that nobody knows": (
        "  fsdp+tp: {step_ms",
        "  fsdp+pp: {step_ms",
        "by_hand: unknown key 'fsdp+pp'\n  plan.yaml:47; did you mean fsdp+tp?",
    ),
    "a layout by hand without its memory": (
        "{step_ms: 520, peak_gib: 49.0}",
        "{step_ms: 520}",
        "by_hand fsdp+tp: peak_gib is missing\n  plan.yaml:47",
    ),
    "a layout by hand that is none and yet takes time": (
        "ddp:     {none:",
        "ddp:     {step_ms: 400, none:",
        "by_hand ddp: unknown key 'step_ms'\n  plan.yaml:45; the keys here are none",
    ),
    "a layout by hand in words": (
        "fsdp:    {step_ms: 430, peak_gib: 55.0}",
        "fsdp:    fast",
        "by_hand fsdp: 'fast' is not a mapping\n  plan.yaml:46",
    ),
    "a negative time of a layout by hand": (
        "step_ms: 430",
        "step_ms: -430",
        "by_hand fsdp step_ms: -430 is not a finite number of at least 0\n  plan.yaml:46",
    ),
    "another format": (
        "autoplan: 1",
        "autoplan: 2",
        "autoplan: 2 is not a plan format\n  plan.yaml:1; this autoplan reads format 1; plan again, or install the autoplan that wrote it",
    ),
    "a format in words": (
        "autoplan: 1",
        "autoplan: true",
        "autoplan: True is not a plan format\n  plan.yaml:1; this autoplan reads format 1; plan again, or install the autoplan that wrote it",
    ),
    "an alias": (
        "store: [S(1), R]",
        "store: *anything",
        'anchors and aliases (&, *) are not read\n  plan.yaml:16; write the value out, and quote a name that starts with "*"',
    ),
    "an anchor": (
        "store: [S(1), R]",
        "store: &a [S(1), R]",
        'anchors and aliases (&, *) are not read\n  plan.yaml:16; write the value out, and quote a name that starts with "*"',
    ),
    "a tag": (
        "store: [S(1), R]",
        "store: !!python/object:os.system [S(1), R]",
        "tags are not read: 'tag:yaml.org,2002:python/object:os.system'\n  plan.yaml:16; write the plain value",
    ),
    "a key that is a list": ("{x: 2, y: 4}", "{[x]: 2}", "a key that is itself a list or a mapping\n  plan.yaml:3; keys are names"),
    "two documents": ("pins:\n", "---\npins:\n", "a second document\n  plan.yaml:6; a plan file holds one plan"),
}


@pytest.mark.parametrize("old, new, expected", CASES.values(), ids=CASES)
def test_the_message_says_what_where_and_what_next(text, old, new, expected):
    assert message(edited(text, old, new)) == expected


@pytest.mark.parametrize(
    "text, expected",
    [
        ("", f"the plan is empty\n  plan.yaml; {MAKE_ONE}"),
        ("# nothing but a comment\n", f"the plan is empty\n  plan.yaml; {MAKE_ONE}"),
        ("- a\n- b\n", f"not a plan: it does not begin with autoplan: 1\n  plan.yaml:1; {MAKE_ONE}"),
        ("just words", f"not a plan: it does not begin with autoplan: 1\n  plan.yaml:1; {MAKE_ONE}"),
        ("model: {}\n", f"not a plan: it does not begin with autoplan: 1\n  plan.yaml:1; {MAKE_ONE}"),
        ("autoplan: 1\nmodel: {a: [1\nmesh: 2\n", "not YAML: "),
        ("autoplan: 1\n\tmesh: 2\n", "not YAML: "),
        ("autoplan: 1\nmesh: \x07\n", "not a text file: "),
    ],
    ids=["empty", "comment", "list", "words", "other YAML", "open bracket", "tab", "bell"],
)
def test_what_is_no_plan_at_all_is_one_error(text, expected):
    said = message(text)
    assert said.startswith(expected)
    assert said.count("plan.yaml") == 1 + said.count("-o plan.yaml")


def test_a_syntax_error_names_its_line(text):
    assert "\n  plan.yaml:18; see this line" in message(edited(text, "norm.weight:  ", "norm.weight: }"))


def test_all_problems_are_in_one_error(text):
    broken = edited(edited(edited(text, "y: 4", "y: 3"), "adamw", "adam"), "folded: true", "folded: 1")
    assert re.findall(r"plan.yaml:\d+", message(broken)) == [f"plan.yaml:{line}" for line in (5, 14, 17, 48)]


def test_endless_problems_are_cut_off(text):
    noise = "".join(f"  w{i}: 0\n" for i in range(5000))
    said = message(edited(text, "buffers:\n", "buffers:\n" + noise))
    assert said.count("plan.yaml:") == 100
    assert said.endswith("\nthere may be more: reading stopped here")


def test_a_long_value_is_shown_in_part(text):
    said = message(edited(text, "optimizer: adamw", f"optimizer: {'a' * 10**6}"))
    assert len(said) < 300


@pytest.mark.parametrize("opening", ["[", "{a: ", "- "])
def test_deep_nesting_is_an_error_at_once(opening):
    start = time.perf_counter()
    assert message(
        f"autoplan: 1\nset: {opening * 100_000}" if opening != "- " else f"autoplan: 1\nset:\n  {opening * 100_000}a"
    ).startswith("nested deeper than 32 levels")
    assert time.perf_counter() - start < 2


def test_a_large_plan_loads_in_time_that_grows_with_its_size(text):
    line = "layers.{}.w: {{shape: [4096, 4096], store: [S(0), S(1)], use: [R, S(1)]}}\n"
    many = "".join("  " + line.format(i) for i in range(3000))
    start = time.perf_counter()
    plan = parse_plan(edited(text, "buffers:\n", many + "buffers:\n"))
    assert len(plan.params) == 3006
    assert time.perf_counter() - start < 10


def test_a_missing_file_is_an_error_that_names_it(tmp_path):
    with pytest.raises(PlanError) as caught:
        load_plan(tmp_path / "plan.yaml")
    assert str(caught.value) == f"the plan cannot be read: No such file or directory\n  {tmp_path}/plan.yaml; {MAKE_ONE}"


def test_a_folder_is_no_plan(tmp_path):
    with pytest.raises(PlanError, match="^a plan is a file\n"):
        load_plan(tmp_path)


@pytest.mark.parametrize("data", [b"autoplan: 1\0", b"\x80\x04\x95torch", "autoplan: 1".encode("utf-16")], ids=["NUL", "pickle", "UTF-16"])
def test_a_binary_file_is_no_plan(tmp_path, data):
    path = tmp_path / "plan.yaml"
    path.write_bytes(data)
    with pytest.raises(PlanError) as caught:
        load_plan(path)
    assert str(caught.value) == f"a binary file, not a plan\n  {path}; {MAKE_ONE}"


def test_a_file_of_100_mb_is_refused_without_being_read_whole(tmp_path):
    path = tmp_path / "plan.yaml"
    with path.open("wb") as file:
        file.truncate(100 * 10**6)
    tracemalloc.start()
    with pytest.raises(PlanError) as caught:
        load_plan(path)
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert str(caught.value) == f"larger than a plan can be (16 MiB)\n  {path}; {MAKE_ONE}"
    assert peak_bytes < 50 * 10**6


def test_a_byte_order_mark_and_windows_line_ends_are_read(tmp_path, text, golden_path):
    path = tmp_path / "plan.yaml"
    path.write_bytes(b"\xef\xbb\xbf" + text.replace("\n", "\r\n").encode())
    assert load_plan(path) == load_plan(golden_path)


def test_later_stages_can_name_the_line_of_every_key(text):
    where = parse_plan(text, "plan.yaml").provenance.where
    assert where("params", "layers.*.attn.wo.weight") == "plan.yaml:14"
    assert where("params", "layers.*.attn.wo.weight", "store") == "plan.yaml:14"
    assert where("reshard", "layers.*.attn_norm/rms_norm") == "plan.yaml:24"
    assert where("reshard", "layers.*.attn_norm/rms_norm", "1") == "plan.yaml:26"
    assert where("predicted", "memory_gib", "peak") == "plan.yaml:43"
    assert where("params", "no such line") == "plan.yaml:12"
    assert where() == "plan.yaml"


def test_a_plan_that_was_never_a_file_names_the_keys(plan):
    assert plan.provenance.where("params", "norm.weight") == "plan: params norm.weight"


def test_where_a_plan_was_read_is_no_part_of_what_it_says(text):
    assert parse_plan(text, "a.yaml") == parse_plan("# moved down\n" + text, "b.yaml")


def test_sections_that_can_be_empty_can_be_left_out(text):
    head, rest = text.split("buffers:\n")
    predicted = rest.split("predicted:\n")[1]
    tail = "predicted:\n" + predicted.split("by_hand:")[0] + "solver:" + predicted.split("solver:")[1]
    plan = parse_plan(head.replace("pins:\n  - {param: layers.*.attn.wq.weight, use: [R, S(0)]}\n", "") + tail)
    assert plan.pins == plan.fallbacks == ()
    assert plan.buffers == plan.ops == plan.reshard == plan.gather == plan.recompute == plan.by_hand == {}
