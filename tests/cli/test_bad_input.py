"""Bad input: one message that says what, where and what next, the right exit code, and an older output file left as it was."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Run = Callable[..., Any]
SAVED = "what somebody saved before\n"

# (arguments of `plan`, exit code, parts of the message)
BAD_TARGETS = [
    (["absent.py"], 1, ["no such file: absent.py"]),
    (["modle.py"], 1, ["no such file: modle.py", "did you mean model.py?"]),
    (["no_such_package.models:build"], 1, ["no module named 'no_such_package'"]),
    (["model.py:bulid"], 1, ["model.py has no factory 'bulid'", "did you mean model.py:build?"]),
    (["model.py:raises"], 1, ["RuntimeError: the tokenizer is missing", "model.py:51"]),
    (["model.py:bare"], 1, ["not a tuple", "add the example inputs"]),
    (["model.py:no_tensor_tuple"], 1, ["no tuple", "one input is written (x,)"]),
    (["model.py:no_loss"], 1, ["scalar", "--mode infer"]),
    (["model.py:decides"], 1, ["depends on the values of a tensor", "model.py:28", "torch.where"]),
    (["broken.py"], 1, ["SyntaxError", "broken.py:1"]),
    (["model.py", "--set", "dmi=8"], 2, ["no setting 'dmi'", "did you mean dim?"]),
    (["model.py", "--set", "dim=wide"], 2, ["dim='wide'", "wants int"]),
    (["model.py", "--set", "dim"], 2, ["--set dim: not key=value"]),
    (["config.json"], 1, ["config.json", "model_type"]),
    (["request.yaml"], 1, ["request.yaml:2", "unknown key 'mehs'", "did you mean mesh?"]),
    (["absent.yaml"], 1, ["no such file: absent.yaml"]),
    (["mesh.yaml"], 1, ["mesh '2x'", "mesh.yaml"]),
    (["hardware.yaml"], 1, ["unknown hardware 'h300'", "hardware.yaml"]),
]  # fmt: skip


@pytest.fixture
def requests(tmp_path: Path) -> None:
    """Files with one mistake each, beside the model."""
    (tmp_path / "broken.py").write_text("def build(:\n")
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "request.yaml").write_text("target: model.py\nmehs: 4\n")
    (tmp_path / "mesh.yaml").write_text("target: model.py\nmesh: 2x\n")
    (tmp_path / "hardware.yaml").write_text("target: model.py\nmesh: 4\nhardware: h300\n")


@pytest.mark.usefixtures("model", "requests")
@pytest.mark.parametrize(
    ("arguments", "code", "parts"), BAD_TARGETS, ids=lambda value: " ".join(value) if isinstance(value, list) else None
)
def test_a_bad_target_is_named(run: Run, arguments: list[str], code: int, parts: list[str]) -> None:
    given = arguments[0] in ("mesh.yaml", "hardware.yaml")
    refused(run, [*arguments, *([] if given else ["--mesh", "4", "--hardware", "cpu-gloo"])], code, parts)


@pytest.mark.usefixtures("model")
@pytest.mark.parametrize(
    ("mesh", "token"),
    [
        ("2x", "''"),
        ("0x4", "'0'"),
        ("2x-1", "'-1'"),
        ("abc", "'abc'"),
        ("dp=2,dp=2", "'dp=2' repeats the name 'dp'"),
        ("dp=2,4", "'4'"),
        ("", "''"),
    ],
)
def test_a_bad_mesh_names_its_token(run: Run, mesh: str, token: str) -> None:
    refused(run, ["model.py", "--mesh", mesh], 2, [f"mesh {mesh!r}", token, "data=2,tensor=4"])


@pytest.mark.usefixtures("model")
@pytest.mark.parametrize(
    ("arguments", "code", "parts"),
    [
        ([], 2, ["no mesh", "--mesh 4"]),
        (["--mesh", "4", "--hardware", "h2000-sxm"], 2, ["unknown hardware 'h2000-sxm'", "did you mean h200-sxm?"]),
        (["--mesh", "4", "--hardware", "absent.yaml"], 1, ["absent.yaml: no such hardware profile"]),
        (["--mesh", "4", "--hardware", "profile.yaml"], 1, ["profile.yaml:1", "device"]),
        (["--mesh", "4", "--mode", "fly"], 2, ["'fly' is not one of 'train', 'infer'"]),
        (["--mesh", "4", "--precision", "fp7"], 2, ["'fp7' is not one of"]),
        (["--mesh", "4", "--memory-gib", "-1"], 2, ["--memory-gib -1 is not a positive number"]),
        (["--mesh", "4", "--memory-gib", "nan"], 2, ["--memory-gib nan is not a positive number"]),
        (["--mesh", "4", "--time-limit", "0"], 2, ["--time-limit 0 is not a positive number"]),
        (["--mesh", "4", "--batch", "0"], 2, ["--batch"]),
        (["--mesh", "4", "--pins", "absent.yaml"], 1, ["no such pins file: absent.yaml"]),
        (["--mesh", "4", "--pins", "profile.yaml"], 1, ["profile.yaml", "not a list"]),
        (["--mesh", "4", "--base", "absent.yaml"], 1, ["absent.yaml", "cannot be read"]),
        (["--mesh", "4", "--bogus"], 2, ["No such option", "--bogus"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_a_bad_option_is_named(run: Run, tmp_path: Path, arguments: list[str], code: int, parts: list[str]) -> None:
    (tmp_path / "profile.yaml").write_text("autoplan_hardware: 1\n")
    refused(run, ["model.py", *arguments], code, parts)


@pytest.mark.usefixtures("model")
@pytest.mark.parametrize(
    ("out", "part"),
    [
        ("folder", "this is a folder"),
        ("absent/plan.yaml", "there is no folder absent"),
        ("/dev/null", "no regular file"),
        ("model.py", "this is what is planned"),
    ],
)
def test_an_output_that_cannot_be_is_refused_before_planning(run: Run, tmp_path: Path, model: Path, out: str, part: str) -> None:
    (tmp_path / "folder").mkdir()
    before = model.read_text()
    ended = run("plan", "model.py", "--mesh", "4", "-o", out)
    assert ended.code == 2 and part in ended.err
    assert model.read_text() == before


# (what the file holds, parts of the message of `show`, `diff`, `validate` and `verify`)
NO_PLANS = [
    (b"", ["empty"]),
    (b"\x00\x01\x02\xff", ["binary file"]),
    (b"hello: world\n", ["not a plan"]),
    (b"autoplan: 2\n", ["2 is not a plan format", "format 1"]),
    (b"autoplan: [1\n", ["not YAML"]),
]


@pytest.mark.parametrize("command", ["show", "diff", "validate", "verify"])
@pytest.mark.parametrize(("data", "parts"), NO_PLANS, ids=["empty", "binary", "other", "version", "syntax"])
def test_a_file_that_is_no_plan_is_named(run: Run, tmp_path: Path, command: str, data: bytes, parts: list[str]) -> None:
    (tmp_path / "p.yaml").write_bytes(data)
    ended = run(command, *["p.yaml"] * (2 if command == "diff" else 1))
    assert (ended.code, ended.out) == (1, "")
    assert_message(ended.err, ["p.yaml", *parts])


def test_a_missing_and_a_huge_file_are_named(run: Run, tmp_path: Path) -> None:
    with open(tmp_path / "huge.yaml", "wb") as file:
        file.truncate(100 << 20)
    for name, part in (("absent.yaml", "cannot be read"), ("huge.yaml", "larger than a plan"), (".", "a plan is a file")):
        ended = run("show", name)
        assert ended.code == 1 and part in ended.err


def refused(run: Run, arguments: list[str], code: int, parts: list[str]) -> None:
    """`plan` with `arguments` ends with that code and message, and leaves the output file alone."""
    saved = Path("saved.yaml")
    saved.write_text(SAVED)
    ended = run("plan", *arguments, "-o", saved)
    assert (ended.code, ended.out) == (code, ""), ended.err
    assert saved.read_text() == SAVED
    assert not list(Path().glob(".saved*")), "no temporary file stays"
    assert_message(ended.err, parts)


def assert_message(message: str, parts: list[str]) -> None:
    missing = [part for part in parts if part not in message]
    assert not missing, f"{missing} not in:\n{message}"
    assert "Traceback" not in message and "internal error" not in message
    assert message.count("rror: ") == 1 or "RuntimeError" in message or "SyntaxError" in message, message
