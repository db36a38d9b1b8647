"""Targets with one mistake each, and a way to run commands in this process."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from autoplan.cli import main


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    code: int
    out: str
    err: str


Run = Callable[..., Ended]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Run:
    """Runs `autoplan ARGUMENTS` in this process, in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("AUTOPLAN_DEBUG", raising=False)

    def run(*arguments: object) -> Ended:
        capsys.readouterr()
        code = main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return Ended(code, captured.out, captured.err)

    return run


@pytest.fixture
def golden() -> Path:
    """A plan that has something in every section."""
    return Path(__file__).parent.parent / "plan" / "golden.yaml"


MODEL = """\
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self, dim):
        super().__init__()
        self.up = nn.Linear(dim, 4 * dim)
        self.mid = nn.ModuleList(nn.Linear(4 * dim, 4 * dim) for _ in range(2))
        self.down = nn.Linear(4 * dim, dim)

    def hidden(self, x):
        for layer in self.mid:
            x = layer(x).relu()
        return x

    def forward(self, x):
        return self.down(self.hidden(self.up(x))).square().mean()


class NoLoss(Net):
    def forward(self, x):
        return self.down(self.up(x))


class Decides(Net):
    def forward(self, x):
        if x.sum() > 0:
            x = -x
        return super().forward(x)


class Unknown(Net):
    def forward(self, x):
        return torch.linalg.inv(x[:, :8] @ x[:, :8].T).mean() + super().forward(x)


def build(dim: int = 16, batch: int = 8):
    return Net(dim), (torch.randn(batch, dim),)


def renamed():
    net = Net(16)
    net.middle = net.up
    del net.up
    net.forward = lambda x: net.down(net.hidden(net.middle(x))).square().mean()
    return net, (torch.randn(8, 16),)


def raises():
    raise RuntimeError("the tokenizer is missing")


def bare():
    return Net(16)


def no_tensor_tuple():
    return Net(16), torch.randn(8, 16)


def no_loss():
    return NoLoss(16), (torch.randn(8, 16),)


def decides():
    return Decides(16), (torch.randn(8, 16),)


def unknown():
    return Unknown(16), (torch.randn(8, 16),)
"""


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """`model.py` in the folder of the test: `build`, and factories that are wrong in one way each."""
    path = tmp_path / "model.py"
    path.write_text(MODEL)
    return path


@pytest.fixture(scope="session")
def planned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `model.py` and `plan.yaml`, its plan on 2x2; not to be written to."""
    folder = tmp_path_factory.mktemp("planned")
    (folder / "model.py").write_text(MODEL)
    code = main(["plan", str(folder / "model.py"), "--mesh", "2x2", "--hardware", "test-free-links", "-o", str(folder / "plan.yaml")])
    assert code == 0
    return folder


@pytest.fixture
def plan(planned: Path, tmp_path: Path) -> Path:
    """`plan.yaml` beside its `model.py` in the folder of the test."""
    for name in ("model.py", "plan.yaml"):
        (tmp_path / name).write_text((planned / name).read_text())
    return tmp_path / "plan.yaml"
