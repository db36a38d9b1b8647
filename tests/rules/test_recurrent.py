"""Recurrent layers."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

randn = torch.randn
LAYERS = 2


def parameters(gates: int, size: int = 4, hidden: int = 3) -> list[torch.Tensor]:
    """Of each layer the weights of input and state, and their biases."""
    found = []
    for layer in range(LAYERS):
        width = size if layer == 0 else hidden
        found += [randn(gates * hidden, width), randn(gates * hidden, hidden), randn(gates * hidden), randn(gates * hidden)]
    return found


def states() -> torch.Tensor:
    return randn(LAYERS, 6, 3)


CASES = {
    "lstm": ("aten.lstm.input", randn(5, 6, 4), [states(), states()], parameters(4), True, LAYERS, 0.0, True, False, False),
    "lstm, batch first": ("aten.lstm.input", randn(6, 5, 4), [states(), states()], parameters(4), True, LAYERS, 0.0, True, False, True),
    "gru": ("aten.gru.input", randn(5, 6, 4), states(), parameters(3), True, LAYERS, 0.0, True, False, False),
    "rnn, rectified": ("aten.rnn_relu.input", randn(5, 6, 4), states(), parameters(1), True, LAYERS, 0.0, False, False, False),
    "rnn": ("aten.rnn_tanh.input", randn(6, 5, 4), states(), parameters(1), True, LAYERS, 0.0, False, False, True),
}


@pytest.mark.parametrize("case", CASES)
def test_samples_are_split(prove_op: Callable[..., int], case: str) -> None:
    assert prove_op(*CASES[case], limit=20) > 0


def test_dropout_between_layers_is_not_split(prove_op: Callable[..., int]) -> None:
    call = CASES["gru"]
    assert prove_op(*call[:6], 0.5, False, *call[8:], meshes=((2,),)) > 0, "no dropout in eval mode"
