"""A printed graph."""

from __future__ import annotations

import re

import torch
from torch import Tensor, nn

from autoplan.graph import capture


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(8, 8, bias=False) for _ in range(3))
        self.head = nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        first, second = self.head(x).unbind(-1)
        return (first * second).sum()


def test_a_graph_prints_as_a_table_with_repeated_blocks_once() -> None:
    text = str(capture(Net(), (torch.ones(4, 8),), mode="infer"))
    assert (
        re.sub(r"\S*test_show.py:\d+", "FILE", text)
        == """\
inputs      x float32[4, 8]
parameters  5 with 210 elements, 0.00 GiB
buffers     0, constants 0
ops         7

layers.{0-2}, 3 copies:
float32[4, 8]     layers.0/linear  linear(inputs/x, layers.0.weight)  FILE
float32[4, 2]   head/linear        linear(layers.2/linear, head.weight, head.bias)  FILE
2 x float32[4]  /unbind            unbind(head/linear, -1)  FILE
float32[4]      /mul               mul(/unbind[0], /unbind[1])  FILE
float32[]       /sum               sum(/mul)  FILE

returns     output = /sum"""
    )
