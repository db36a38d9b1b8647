"""Targets: the forms they are named in, the three ways they are built, and one clear message for every mistake."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from autoplan.errors import AutoplanError, TargetError, UsageError
from autoplan.load import build_meta, build_on, build_skeleton, load_target
from autoplan.settings import parse_settings

LLAMA = "autoplan.models.llama:build"
SMALL = dict(dim=64, n_layers=2, n_heads=4, n_kv_heads=2, ffn_dim=128, vocab_size=256, batch=2, seq=32)
GPT2_CONFIG = Path(__file__).parent.parent / "configs" / "hf" / "gpt2" / "config.json"
MODEL = """
import torch
from torch import nn

def build(width: int = 4, scale=1.0, name="m", tie: bool = False):
    return nn.Linear(width, width), (torch.zeros(2, width),)
"""


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Writes a user's file in a folder of its own, the current one, and returns its name."""
    monkeypatch.chdir(tmp_path)

    def write(text: str, name: str = "model.py") -> str:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
        return name

    return write


def message(kind: type[AutoplanError], text: str, settings: dict | None = None, build: bool = False) -> str:
    with pytest.raises(kind) as caught:
        target = load_target(text, settings)
        if build:
            build_meta(target)
    return str(caught.value)


def test_a_file_is_loaded_by_its_default_factory_and_leaves_no_bytecode(write, tmp_path: Path) -> None:
    write("HIDDEN = 4\n", "sibling.py")
    write("import sibling\n" + MODEL)
    target = load_target("model.py", {"width": 8})
    assert build_meta(target).module.weight.shape == (8, 8)
    assert (target.name, target.settings) == ("model.py:build", {"width": 8})
    assert not list(tmp_path.rglob("__pycache__"))
    assert str(tmp_path) not in sys.path


def test_two_files_of_one_name_are_two_modules(write) -> None:
    write(MODEL, "a/model.py")
    write(MODEL.replace("width: int = 4", "width: int = 6"), "b/model.py")
    widths = [build_meta(load_target(f"{folder}/model.py:build")).module.weight.shape[0] for folder in "ab"]
    assert widths == [4, 6]


def test_a_plan_names_a_file_from_its_own_folder_and_finds_it_again(write, tmp_path: Path) -> None:
    write(MODEL, "models/model.py")
    (tmp_path / "plans").mkdir()
    spec = load_target("models/model.py").relative_to("plans")
    assert spec == "../models/model.py:build"
    assert load_target(spec, base=tmp_path / "plans").file == tmp_path / "models" / "model.py"
    assert load_target(LLAMA).relative_to("plans") == LLAMA


def test_batch_and_seq_are_settings() -> None:
    assert load_target(LLAMA, {"n_layers": 2}, batch=4, seq=128).settings == {"n_layers": 2, "batch": 4, "seq": 128}


def test_what_a_factory_prints_goes_to_stderr(write, capsys: pytest.CaptureFixture[str]) -> None:
    write("print('importing')\n" + MODEL.replace("    return", "    print('building')\n    return"))
    build_meta(load_target("model.py"))
    out, err = capsys.readouterr()
    assert out == "" and "importing" in err and "building" in err


def test_the_meta_build_has_shapes_without_memory() -> None:
    built = build_meta(load_target(LLAMA))
    assert {p.device.type for p in built.module.parameters()} == {"meta"}
    assert [arg.shape for arg in built.args] == [(8, 8192), (8, 8192)]


def test_a_real_build_follows_its_seed_and_leaves_the_callers_generator_alone() -> None:
    target = load_target(LLAMA, SMALL)
    before = torch.get_rng_state()
    first, again, other = (build_on(target, "cpu", seed) for seed in (1, 1, 2))
    assert torch.equal(before, torch.get_rng_state())
    assert torch.equal(first.module.head.weight, again.module.head.weight)
    assert torch.equal(first.args[0], again.args[0])
    assert not torch.equal(first.module.head.weight, other.module.head.weight)


def test_a_skeleton_has_real_buffers_and_no_weights() -> None:
    target = load_target(LLAMA, SMALL | {"tie": True})
    real, skeleton = build_on(target).module, build_skeleton(target)
    assert {p.device.type for p in skeleton.module.parameters()} == {"meta"}
    assert skeleton.args[0].device.type == "cpu"
    for (name, ours), (_, theirs) in zip(skeleton.module.named_buffers(), real.named_buffers(), strict=True):
        assert ours.device.type == "cpu" and torch.equal(ours, theirs), name
    assert skeleton.module.head.weight is skeleton.module.embed.weight
    assert [name for name, _ in skeleton.module.named_parameters()] == [name for name, _ in real.named_parameters()]


def test_a_skeleton_keeps_ties_subclasses_and_frozen_parameters(write) -> None:
    write("""
import torch
from torch import nn

class Tagged(nn.Parameter):
    pass

class Model(nn.Module):
    def __init__(self):
        super().__init__()
        shared = nn.Parameter(torch.ones(3))
        self.a, self.b = shared, shared
        self.frozen = nn.Parameter(torch.ones(2), requires_grad=False)
        self.tagged = Tagged(torch.ones(2))
        self.tagged.kind = "router"
        self.register_buffer("mask", torch.tensor([1.0, 2.0]))
        self.register_parameter("nothing", None)

def build():
    return Model(), (torch.zeros(1),)
""")
    module = build_skeleton(load_target("model.py")).module
    assert module.a is module.b and module.a.is_meta
    assert not module.frozen.requires_grad and type(module.tagged).__name__ == "Tagged" and module.tagged.kind == "router"
    assert module.nothing is None and module.mask.tolist() == [1.0, 2.0]
    assert torch.nn.Linear(2, 2).weight.device.type == "cpu"  # registration is as it was


def test_settings_are_yaml_scalars_that_take_the_type_of_their_parameter(write) -> None:
    write(MODEL)
    settings = parse_settings(["width=8", "scale=1e-3", "name=x", "tie=true"])
    assert load_target("model.py", settings).settings == {"width": 8, "scale": 1e-3, "name": "x", "tie": True}
    assert load_target("model.py", {"scale": 2}).settings == {"scale": 2.0}


def test_wrong_settings_are_named_all_at_once(write) -> None:
    write(MODEL)
    text = message(UsageError, "model.py", {"widht": 8, "tie": 3, "name": 1})
    assert "no setting 'widht'" in text and "did you mean width?" in text
    assert "tie=3: model.py:build wants bool, not int" in text and "name=1" in text
    assert "width, scale, name, tie" in text


def test_a_setting_without_a_value_is_asked_for(write) -> None:
    write("def build(width: int): pass")
    assert "needs width" in message(UsageError, "model.py")
    with pytest.raises(UsageError, match="not key=value"):
        parse_settings(["width"])


def test_a_missing_file_is_named_with_the_nearest_one(write) -> None:
    write(MODEL)
    assert message(TargetError, "modle.py").splitlines()[0] == "no such file: modle.py"
    assert "did you mean model.py?" in message(TargetError, "modle.py:build")


def test_a_target_of_no_known_form_says_which_there_are() -> None:
    assert "file.py[:factory], package.module:factory" in message(TargetError, "llama")


def test_a_missing_module_is_told_from_a_module_that_fails(write) -> None:
    assert "no module named 'autoplan.models.lama'" in message(TargetError, "autoplan.models.lama:build")
    write("import no_such_package\n", "broken_here.py")
    text = message(TargetError, "broken_here:build")
    assert "broken_here cannot be imported" in text and "no_such_package" in text and "broken_here.py:1" in text


@pytest.mark.parametrize(
    ("source", "expected"), [("x = 1\ny = 1 / 0\n", "ZeroDivisionError: division by zero"), ("x = 1\ndef build(:\n", "SyntaxError")]
)
def test_a_file_that_does_not_import_shows_its_own_error_and_line(write, source: str, expected: str) -> None:
    write(source)
    text = message(TargetError, "model.py")
    assert expected in text and "model.py:2" in text


def test_a_missing_factory_lists_the_candidates(write) -> None:
    write(MODEL + "\ndef make_big(): pass\ndef _hidden(): pass\nVALUE = 3\n")
    text = message(TargetError, "model.py:biuld")
    assert "no factory 'biuld'" in text and "build, make_big" in text and "did you mean model.py:build?" in text and "_hidden" not in text
    assert "not a factory but a value of type int" in message(TargetError, "model.py:VALUE")


def test_a_factory_that_raises_shows_its_own_error_and_line(write) -> None:
    write("import torch\n\ndef helper():\n    return torch.zeros(2).view(3)\n\ndef build():\n    return helper()\n")
    text = message(TargetError, "model.py", build=True)
    assert "model.py:build raised RuntimeError" in text and "model.py:4" in text
    write("import sys\ndef build():\n    sys.exit('no GPU')\n")
    assert "SystemExit: no GPU" in message(TargetError, "model.py", build=True)


@pytest.mark.parametrize(
    ("returned", "expected"),
    [
        ("None", "returned None, not a tuple"),
        ("nn.Linear(2, 2)", "returned a value of type Linear, not a tuple"),
        ("(nn.Linear(2, 2),)", "a tuple of 1 items"),
        ("(3, ())", "returned a value of type int as its module"),
        ("(nn.Linear(2, 2), torch.zeros(2))", "one input is written (x,)"),
        ("(nn.Linear(2, 2), (), [])", "returned a value of type list as its kwargs"),
    ],
)
def test_a_factory_that_returns_the_wrong_thing_is_told_what_it_returned(write, returned: str, expected: str) -> None:
    write(f"import torch\nfrom torch import nn\ndef build():\n    return {returned}\n")
    text = message(TargetError, "model.py", build=True)
    assert expected in text and "(module, args)" in text


class TestHuggingFace:
    @pytest.fixture(autouse=True)
    def _installed(self) -> None:
        pytest.importorskip("transformers", reason="the extra autoplan[hf] is not installed")

    def test_a_config_gives_its_class_its_inputs_and_its_labels(self) -> None:
        target = load_target(str(GPT2_CONFIG), batch=2, seq=64)
        built = build_meta(target)
        assert type(built.module).__name__ == "GPT2LMHeadModel" and built.args == ()
        assert {name: tuple(value.shape) for name, value in built.kwargs.items()} == {"input_ids": (2, 64), "labels": (2, 64)}
        assert sum(p.numel() for p in built.module.parameters()) == 124_439_808
        assert built.module.config._attn_implementation == "sdpa" and built.module.config.use_cache is False
        assert built.module.training

    def test_a_plan_records_batch_and_seq_even_where_they_were_not_said(self) -> None:
        assert load_target(str(GPT2_CONFIG), {"n_layer": 2}).settings == {"batch": 8, "seq": 512, "n_layer": 2}

    def test_inference_has_no_labels(self) -> None:
        built = build_meta(load_target(str(GPT2_CONFIG), batch=2, seq=64, mode="infer"))
        assert list(built.kwargs) == ["input_ids"] and not built.module.training

    def test_a_real_small_one_computes_a_loss(self) -> None:
        built = build_on(load_target(str(GPT2_CONFIG), {"n_layer": 1, "n_embd": 32, "n_head": 2, "vocab_size": 99}, batch=2, seq=16))
        assert built.module(**built.kwargs).loss.item() == pytest.approx(4.6, abs=0.3)  # ln 99

    def test_its_settings_are_those_of_the_configuration(self) -> None:
        text = message(UsageError, str(GPT2_CONFIG), {"n_layers": 2})
        assert "no setting 'n_layers'" in text and "did you mean n_layer?" in text

    def test_more_tokens_than_positions_is_an_error(self) -> None:
        assert "1024 positions" in message(UsageError, str(GPT2_CONFIG), {"seq": 2048}, build=True)

    @pytest.mark.parametrize(
        ("text", "expected"),
        [("{", "is not JSON"), ("{}", "no model_type"), ('{"model_type": "nope"}', "unknown model_type 'nope'")],
    )
    def test_another_file_is_no_configuration(self, write, text: str, expected: str) -> None:
        write(text, "config.json")
        assert expected in message(TargetError, "config.json")

    def test_an_unknown_class_is_an_error(self, write) -> None:
        write('{"model_type": "gpt2", "architectures": ["GPT9"]}', "config.json")
        assert "no class 'GPT9'" in message(TargetError, "config.json", build=True)
