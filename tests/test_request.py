"""Requests: read strictly, completed by flags, their files found beside them."""

from __future__ import annotations

from pathlib import Path

import pytest

from autoplan.errors import TargetError, UsageError
from autoplan.placement import parse_mesh
from autoplan.request import Request, is_request, load_request

CONFIGS = sorted((Path(__file__).parent.parent / "configs").glob("*.yaml"))


def load(folder: Path, text: str) -> Request:
    path = folder / "request.yaml"
    path.write_text(text)
    return load_request(path)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_request_of_the_repository_loads(path: Path) -> None:
    request = load_request(path)
    assert is_request(str(path)) and parse_mesh(request.mesh or "").size >= 4


def test_flags_override_the_file_and_settings_add_up(tmp_path: Path) -> None:
    request = load(tmp_path, "target: a:b\nset: {n_layers: 4, dim: 8}\nmesh: 4\nseed: 3\n")
    request = request.override(mesh="2x2", hardware=None, settings={"dim": 16})
    assert (request.mesh, request.hardware, request.seed) == ("2x2", None, 3)
    assert request.settings == {"n_layers": 4, "dim": 16}


def test_a_request_says_whether_steps_are_compiled(tmp_path: Path) -> None:
    assert load(tmp_path, "target: a:b\ncompile: true\n").compile and not load(tmp_path, "target: a:b\n").compile
    assert load(tmp_path, "target: a:b\n").override(compile=True).compile


def test_files_are_found_beside_the_request_and_modules_are_not_touched(tmp_path: Path) -> None:
    request = load(tmp_path, "target: m.py:build\nhardware: my.yaml\npins: pins.yaml\n")
    assert request.target == f"{tmp_path}/m.py:build"
    assert request.hardware == f"{tmp_path}/my.yaml" and request.pins == f"{tmp_path}/pins.yaml"
    assert load(tmp_path, "target: my.pyramid:build\nhardware: h200-sxm\n").target == "my.pyramid:build"


def test_a_mesh_may_name_its_axes(tmp_path: Path) -> None:
    assert load(tmp_path, "target: a:b\nmesh: {data: 2, tensor: 4}\n").mesh == "data=2,tensor=4"
    assert load(tmp_path, "target: a:b\nmesh: 4\n").mesh == "4"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("traget: a:b\n", "unknown key 'traget'"),
        ("mesh: 2x2\n", "a request needs a target"),
        ("target: a:b\nmesh: 2x2\nmesh: 4\n", "duplicate key 'mesh'"),
        ("target: a:b\nseed: x\n", "seed: 'x' is not a whole number"),
        ("target: a:b\nseed: true\n", "seed: True is not a whole number"),
        ("target: a:b\ncompile: 1\n", "compile: 1 is not true or false"),
        ("target: a:b\nmode: fly\n", "mode 'fly' is unknown"),
        ("target: a:b\nset: [1]\n", "set: [1] is not a mapping"),
        ("autoplan: 1\n", "this is a plan, not a request"),
        ("- a\n", "a request is a mapping"),
        ("target: [a\n", "not YAML"),
        ("", "0 bytes"),
    ],
)
def test_a_malformed_request_is_an_error_of_the_input(tmp_path: Path, text: str, expected: str) -> None:
    with pytest.raises(TargetError) as caught:
        load(tmp_path, text)
    assert expected in str(caught.value) and "request.yaml" in str(caught.value)


def test_all_problems_of_a_request_are_named_at_once(tmp_path: Path) -> None:
    with pytest.raises(TargetError) as caught:
        load(tmp_path, "traget: a:b\nseed: x\n")
    assert "request.yaml:1; did you mean target?" in str(caught.value) and "request.yaml:2" in str(caught.value)


def test_a_missing_request_is_named(tmp_path: Path) -> None:
    with pytest.raises(TargetError, match="no such file"):
        load_request(tmp_path / "none.yaml")


def test_an_unknown_flag_value_is_wrong_usage() -> None:
    with pytest.raises(UsageError, match="bf16-master"):
        Request("a:b").override(precision="fp8")
