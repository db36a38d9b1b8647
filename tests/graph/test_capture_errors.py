"""Models that cannot be captured: one message with the line and what next, no traceback."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from autoplan.errors import TargetError
from autoplan.graph import capture


class Model(nn.Module):
    def __init__(self, then: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.then = then

    def forward(self, x: Tensor) -> Any:
        return self.then(self.linear(x))


def message(module: nn.Module, *args: Any, mode: Any = "train", **kwargs: Any) -> str:
    with pytest.raises(TargetError) as caught:
        capture(module, args, kwargs, mode=mode)
    assert caught.value.__cause__ is None
    return str(caught.value)


@pytest.mark.parametrize(
    ("then", "words"),
    [
        (lambda y: y.sum() if y.sum() > 0 else y.mean(), "values of a tensor"),
        (lambda y: y.sum() * y.max().item(), "values of a tensor"),
        (lambda y: y[y > 0].sum(), "dynamic shape"),
        (lambda y: y.nonzero().float().sum(), "dynamic shape"),
        (lambda y: (y @ torch.ones(3, 3)).sum(), "cannot capture the model: "),
        (lambda y: {}["loss"], "KeyError"),
    ],
)
def test_a_failure_of_export_names_the_users_line(then: Callable[[Tensor], Any], words: str, capfd: pytest.CaptureFixture[str]) -> None:
    text = message(Model(then), torch.ones(2, 4))
    assert capfd.readouterr() == ("", ""), "torch prints its graph and logs"
    assert words in text and "test_capture_errors.py:" in text, text
    assert "Traceback" not in text and len(text.splitlines()) <= 4, text


def test_no_scalar_loss_lists_the_outputs_and_names_inference() -> None:
    text = message(Model(lambda y: {"logits": y, "ids": y.argmax(-1)}), torch.ones(2, 4))
    assert "logits float32[2, 4], ids int64[2]" in text and "--mode infer" in text


def test_a_loss_without_gradient_is_an_error() -> None:
    text = message(Model(lambda y: y.detach().sum()), torch.ones(2, 4))
    assert "needs no gradient" in text and "requires_grad" in text


def test_a_frozen_model_cannot_train() -> None:
    assert "needs no gradient" in message(Model(lambda y: y.sum()).requires_grad_(False), torch.ones(2, 4))


def test_no_tensor_returned_is_an_error() -> None:
    assert "returns no tensor" in message(Model(lambda y: None), torch.ones(2, 4), mode="infer")


def test_inputs_that_forward_does_not_take_are_named() -> None:
    text = message(Model(lambda y: y.sum()), torch.ones(2, 4), labels=torch.ones(2))
    assert "labels" in text and "(module, args, kwargs)" in text


def test_control_flow_operators_are_named() -> None:
    text = message(Model(lambda y: torch.cond(y.sum() > 0, lambda z: z.sin(), lambda z: z.cos(), (y,)).sum()), torch.ones(2, 4))
    assert "cond" in text


def test_outputs_of_an_unknown_type_are_named() -> None:
    class Unknown:
        pass

    assert "a type torch.export does not know" in message(Model(lambda y: (Unknown(), y.sum())), torch.ones(2, 4))


def test_what_forward_prints_is_not_data(capsys: pytest.CaptureFixture[str]) -> None:
    capture(Model(lambda y: (print("hello"), y.sum())[1]), (torch.ones(2, 4),), mode="train")
    assert capsys.readouterr() == ("", "hello\n")
