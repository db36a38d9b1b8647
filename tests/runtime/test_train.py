"""The torchrun entry: what it prints, what it resumes, and how it ends when something is wrong."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from runtime_cases import TINY, Seeded, graph_of, mesh_of, random_plan

from autoplan.errors import TargetError
from autoplan.plan import write_plan
from autoplan.runtime.data import Text, open_text
from autoplan.runtime.train import _parser

ROOT = Path(__file__).parent.parent.parent
SETTINGS = {**TINY.settings, "vocab_size": 256, "n_layers": 1}
BUILD = Seeded(TINY.factory, SETTINGS)


@pytest.fixture(scope="module")
def plans(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("plans")
    for ranks in (1, 2):
        plan = random_plan(BUILD, mesh_of(ranks), 0, target="autoplan.models.llama:build", settings=SETTINGS)
        write_plan(plan, folder / f"{ranks}.yaml")
    return folder


def torchrun(processes: int, *arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes), *arguments]
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)


def alone(*arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    environment = {key: value for key, value in os.environ.items() if key not in ("RANK", "WORLD_SIZE")} | {"PYTHONPATH": str(ROOT / "src")}
    return subprocess.run([sys.executable, *arguments], cwd=folder, env=environment, capture_output=True, text=True, timeout=300)


def test_two_processes_train_as_one_does_and_go_on_from_a_checkpoint(plans: Path, tmp_path: Path) -> None:
    text = str(ROOT / "src/autoplan/models/data/proverbs.txt")
    common = ("--data", text, "--lr", "3e-3", "--json", "--seed", "3")
    one = alone(str(ROOT / "apply.py"), "--plan", str(plans / "1.yaml"), "--steps", "6", *common, folder=tmp_path)
    assert one.returncode == 0, one.stderr
    expected = json.loads(one.stdout)
    assert set(expected) == {"step_ms", "peak_gib", "losses", "predicted"}
    assert len(expected["losses"]) == 6 and expected["losses"][-1] < expected["losses"][0]
    assert "step 1: loss" in one.stderr and "predicted" in one.stderr

    losses = []
    for _ in range(2):
        part = torchrun(
            2, "-m", "autoplan.runtime", "--plan", str(plans / "2.yaml"), "--steps", "3", "--checkpoint", "ck", *common, folder=tmp_path
        )
        assert part.returncode == 0, part.stderr
        losses += json.loads(part.stdout)["losses"]
    assert losses == pytest.approx(expected["losses"], rel=1e-4)
    assert "resumed after step 3" in part.stderr


DIES_WHILE_WRITING = """
import os
from torch.distributed.checkpoint import FileSystemWriter

whole = FileSystemWriter.write_data

def write_data(self, plan, planner):
    written = whole(self, plan, planner)
    if os.environ["TORCHELASTIC_RESTART_COUNT"] == "0" and os.environ["RANK"] == "1" and "step-00000004" in str(self.path):
        os.kill(os.getpid(), 9)
    return written

FileSystemWriter.write_data = write_data
"""


def test_a_rank_that_is_killed_while_writing_leaves_the_last_checkpoint_and_the_run_goes_on_from_it(plans: Path, tmp_path: Path) -> None:
    """Rank 1 is killed in its second checkpoint, its file written and the others' too; torchrun starts both ranks again."""
    (tmp_path / "dies.py").write_text(DIES_WHILE_WRITING)
    text = str(ROOT / "src/autoplan/models/data/proverbs.txt")
    common = ("--data", text, "--lr", "3e-3", "--json", "--seed", "3")
    run = ("--max-restarts", "1", "-m", "autoplan.runtime", "--plan", str(plans / "2.yaml"), "--rules", "dies.py")
    wanted = ("--steps", "5", "--checkpoint", "ck", "--checkpoint-every", "2", "--export", "out/weights.safetensors")
    found = torchrun(2, *run, *wanted, *common, folder=tmp_path)
    assert found.returncode == 0, found.stderr
    assert "wrote ck after step 2" in found.stderr and "resumed after step 2 from ck" in found.stderr
    assert sorted(path.name for path in (tmp_path / "ck").iterdir()) == ["end", "step-00000004", "step-00000005"]

    one = ("--plan", str(plans / "1.yaml"), *common)
    whole = alone(str(ROOT / "apply.py"), *one, "--steps", "6", folder=tmp_path)
    losses = json.loads(whole.stdout)["losses"]
    assert json.loads(found.stdout)["losses"] == pytest.approx(losses[2:5], rel=1e-4)

    assert [path.name for path in (tmp_path / "out").iterdir()] == ["weights.safetensors"]
    begun = alone(str(ROOT / "apply.py"), *one, "--steps", "1", "--weights", "out/weights.safetensors", folder=tmp_path)
    gone_on = alone(str(ROOT / "apply.py"), *one, "--steps", "1", "--checkpoint", "ck", folder=tmp_path)
    assert "read out/weights.safetensors" in begun.stderr and "resumed after step 5" in gone_on.stderr
    assert json.loads(gone_on.stdout)["losses"] == pytest.approx(losses[5:], rel=1e-4)
    assert json.loads(begun.stdout)["losses"][0] < losses[0]  # on the first batch, after five steps on others


SAYS_THAT_IT_COMPILES = """
import sys
from autoplan.runtime.program.program import Program

whole = Program.compile

def compile(self, **options):
    print("compiling", file=sys.stderr)
    whole(self, backend="aot_eager", **options)

Program.compile = compile
"""


def test_a_plan_of_compiled_steps_compiles_unless_it_is_told_not_to(plans: Path, tmp_path: Path) -> None:
    (tmp_path / "says.py").write_text(SAYS_THAT_IT_COMPILES)
    plan = random_plan(BUILD, mesh_of(1), 0, target="autoplan.models.llama:build", settings=SETTINGS)
    write_plan(replace(plan, options=replace(plan.options, compile=True)), plans / "compiled.yaml")
    losses = []
    for name, flags, compiles, kind in (
        ("compiled.yaml", (), True, ""),
        ("compiled.yaml", ("--no-compile",), False, " for compiled steps"),
        ("1.yaml", ("--compile",), True, " for eager steps"),
        ("1.yaml", ("--whole",), True, " for eager steps"),
    ):
        said = ("--plan", str(plans / name), "--steps", "2", "--json", "--rules", str(tmp_path / "says.py"))
        run = alone(str(ROOT / "apply.py"), *said, *flags, folder=tmp_path)
        assert run.returncode == 0, run.stderr
        assert ("compiling" in run.stderr) == compiles
        assert f" ms on {plan.hardware.profile}{kind}\n" in run.stderr
        losses.append(json.loads(run.stdout)["losses"])
    for found in losses[1:]:
        assert found == pytest.approx(losses[0], rel=1e-5)
    both = alone(str(ROOT / "apply.py"), "--plan", str(plans / "1.yaml"), "--whole", "--no-compile", folder=tmp_path)
    assert both.returncode == 2 and "leave one out" in both.stderr and "Traceback" not in both.stderr


def test_an_inference_plan_runs_and_has_no_losses(plans: Path) -> None:
    plan = random_plan(BUILD, mesh_of(2), 0, mode="infer", target="autoplan.models.llama:build", settings=SETTINGS)
    write_plan(plan, plans / "infer.yaml")
    found = torchrun(2, str(ROOT / "apply.py"), "--plan", "infer.yaml", "--steps", "2", "--json", folder=plans)
    assert found.returncode == 0, found.stderr
    said = json.loads(found.stdout)
    assert said["losses"] == [] and said["step_ms"] > 0


def test_a_wrong_number_of_processes_is_one_message_with_the_right_line(plans: Path) -> None:
    found = alone(str(ROOT / "apply.py"), "--plan", str(plans / "2.yaml"), folder=plans)
    assert found.returncode == 2 and not found.stdout
    assert found.stderr.count("error:") == 1 and "Traceback" not in found.stderr
    assert "torchrun --nproc-per-node 2 apply.py --plan" in found.stderr


def test_under_torchrun_rank_0_alone_speaks(plans: Path) -> None:
    found = torchrun(2, str(ROOT / "apply.py"), "--plan", str(plans / "2.yaml"), "--set", "ffn_dim=64", folder=plans)
    assert found.returncode != 0
    assert found.stderr.count("error:") == 1, found.stderr
    assert "mlp.w1.weight" in found.stderr
    assert "runtime/train.py" not in found.stderr  # the traceback that follows is torchrun's own


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--plan", "none.yaml"), "cannot be read"),
        (("--plan", "1.yaml", "--data", "none.txt"), "the data cannot be read"),
        (("--plan", "1.yaml", "--data", "short.txt"), "a sequence takes 17"),
        (("--plan", "1.yaml", "--target", "none.py"), "no such file: none.py"),
        (("--plan", "1.yaml", "--weights", "none.safetensors"), "no such file: none.safetensors"),
    ],
)
def test_bad_input_is_one_message_and_exit_code_1(plans: Path, arguments: tuple[str, ...], said: str) -> None:
    (plans / "short.txt").write_text("short")
    found = alone(str(ROOT / "apply.py"), *arguments, folder=plans)
    assert found.returncode == 1 and not found.stdout
    assert said in found.stderr and found.stderr.count("error:") == 1 and "Traceback" not in found.stderr


@pytest.mark.parametrize(
    ("flag", "value", "said"),
    [
        ("--steps", "-5", "argument --steps: -5 is less than 0"),
        ("--steps", "some", "argument --steps: 'some' is no whole number"),
        ("--seed", "99999999999999999999", "argument --seed: 99999999999999999999 is not between"),
        ("--lr", "nan", "argument --lr: 'nan' is no learning rate"),
        ("--lr", "-1", "argument --lr: '-1' is no learning rate"),
        ("--lr", "fast", "argument --lr: 'fast' is no learning rate"),
    ],
)
def test_numbers_that_cannot_be_are_wrong_usage(flag: str, value: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        _parser().parse_args(["--plan", "plan.yaml", f"{flag}={value}"])
    assert ended.value.code == 2 and said in capsys.readouterr().err


@pytest.mark.parametrize("seed", [2**40 - 1, 1 - 2**40])
def test_every_seed_that_is_taken_seeds_weights_and_data(seed: int) -> None:
    assert _parser().parse_args(["--plan", "plan.yaml", f"--seed={seed}"]).seed == seed
    batch = Text(torch.zeros(64, dtype=torch.uint8), {"tokens": torch.zeros(2, 8).long()}, seed).batch(1_000_000)
    assert batch["tokens"].shape == (2, 8)
    torch.Generator().manual_seed(seed)


def test_a_text_has_no_labels_for_a_model_with_one_a_sequence(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("a text" * 10)
    example = {"input_ids": torch.zeros(2, 8).long(), "labels": torch.zeros(2).long()}
    with pytest.raises(TargetError, match=r"gives each token a label, and the model has labels of shape \[2\]"):
        open_text(str(tmp_path / "text.txt"), example, graph_of(BUILD), 0)


@pytest.mark.parametrize(
    ("flag", "said"),
    [("--export", "error: file/out.safetensors cannot be written: "), ("--checkpoint", "error: the checkpoint cannot be written: ")],
)
def test_a_place_that_cannot_be_written_is_said_before_the_first_step(plans: Path, tmp_path: Path, flag: str, said: str) -> None:
    (tmp_path / "file").touch()
    place = "file/out.safetensors" if flag == "--export" else "file"
    found = alone(str(ROOT / "apply.py"), "--plan", str(plans / "1.yaml"), flag, place, folder=tmp_path)
    assert found.returncode in (1, 2) and said in found.stderr
    assert found.stderr.count("error:") == 1 and "Traceback" not in found.stderr and "step 1" not in found.stderr
