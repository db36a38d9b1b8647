"""Models whose forward overwrites buffers."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Block(nn.Module):
    """Norm with a cumulative average, convolution, norm, and a shortcut."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(channels)
        self.average = nn.BatchNorm2d(channels, momentum=None)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x + self.norm(self.conv(self.average(x))))


class Convnet(nn.Module):
    """A convnet with a SyncBatchNorm, batch norm between convolutions, instance norm at the end, and a count of all it saw."""

    seen: Tensor
    before: Tensor

    def __init__(self, channels: int = 8) -> None:
        super().__init__()
        self.stem = nn.Conv2d(4, channels, 3, padding=1, bias=False)
        self.synchronised = nn.SyncBatchNorm(channels)
        self.blocks = nn.ModuleList(Block(channels) for _ in range(2))
        self.last = nn.InstanceNorm2d(channels, affine=True, track_running_stats=True)
        self.head = nn.Linear(channels, 4)
        self.register_buffer("seen", torch.zeros(()))
        self.register_buffer("before", torch.ones(()))

    def forward(self, x: Tensor, target: Tensor) -> Tensor:
        if self.training:
            self.before.copy_(self.seen)
            self.seen.add_(x.detach().square().sum())
        x = self.synchronised(self.stem(x))
        for block in self.blocks:
            x = block(x)
        x = self.head(self.last(x).relu().mean((2, 3)))
        return nn.functional.cross_entropy(x, target)


def convnet(channels: int = 8) -> tuple[nn.Module, tuple[Tensor, ...]]:
    return Convnet(channels), (torch.randn(8, 4, 4, 4) + 1, torch.randint(0, 4, (8,)))
