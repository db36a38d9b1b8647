"""Parameters and buffers of a module as they are when they are asked for, found without walking through it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from autoplan.errors import UsageError
from autoplan.runtime.held import Held


def model() -> Any:
    return nn.Sequential(nn.Linear(2, 3), nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 2)))


def test_every_parameter_and_buffer_is_held_under_its_name() -> None:
    module = model()
    module[1][1].weight = nn.Parameter(module[0].weight.detach().T)
    tied = nn.ModuleDict({"a": module, "b": module})
    held = Held(tied).now()
    named = [*tied.named_parameters(remove_duplicate=False), *tied.named_buffers(remove_duplicate=False)]
    assert len(named) == 18
    assert all(held[name] is tensor for name, tensor in named)


def test_what_is_replaced_is_seen() -> None:
    module = model()
    held = Held(module).now()
    module[0].weight = nn.Parameter(torch.zeros(3, 2))
    assert held.now()["0.weight"] is module[0].weight
    module[1][0] = nn.BatchNorm1d(3)
    assert held.now()["1.0.running_mean"] is module[1][0].running_mean
    assert held.now()["1.1.bias"] is module[1][1].bias


def test_what_was_taken_out_is_named() -> None:
    module = model()
    held = Held(module).now()
    del module[1]
    with pytest.raises(UsageError, match=r"1\.1\.bias is no longer in the module"):
        held.now()["1.1.bias"]
