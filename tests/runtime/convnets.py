"""Convolutional models of the kinds people have, small: what they export must have rules."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Double(nn.Module):
    """Two convolutions with group norm."""

    def __init__(self, inner: int, outer: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(inner, outer, 3, padding=1, padding_mode="reflect")
        self.norm = nn.GroupNorm(4, outer)
        self.second = nn.Conv2d(outer, outer, 3, padding=1)
        self.act = nn.PReLU(outer)

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.second(F.silu(self.norm(self.first(x)))))


class UNet(nn.Module):
    """Down by pooling and pixel unshuffle, up by interpolation, transposed convolution and pixel shuffle; a mean squared error."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.enter, self.down = Double(4, width), Double(4 * width, 2 * width)
        self.middle = Double(2 * width, 4 * width)
        self.transposed = nn.ConvTranspose2d(4 * width, 2 * width, 2, 2)
        self.up = Double(4 * width, 4 * width)
        self.leave = Double(2 * width, width)
        self.head = nn.Conv2d(width, 4, 1)

    def forward(self, x: Tensor, target: Tensor) -> Tensor:
        first = self.enter(x)
        second = self.down(F.pixel_unshuffle(first, 2))
        low = self.middle(F.max_pool2d(second, 2))
        low = F.interpolate(low, scale_factor=0.5, mode="bilinear", align_corners=False)
        low = F.interpolate(low, scale_factor=2, mode="nearest")
        joined = torch.cat([self.transposed(low), second], 1)
        high = F.pixel_shuffle(self.up(F.pad(joined, (1, 1, 1, 1), mode="replicate")[:, :, 1:-1, 1:-1]), 2)
        return F.mse_loss(self.head(self.leave(torch.cat([high, first], 1))), target)


def unet(width: int = 8) -> tuple[nn.Module, tuple[Tensor, ...]]:
    return UNet(width), (torch.randn(4, 4, 16, 16), torch.randn(4, 4, 16, 16))


class Separable(nn.Module):
    """Depthwise and pointwise convolution with batch norm, squeeze and excitation."""

    def __init__(self, width: int, stride: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(width, width, 3, stride, padding=1, groups=width, bias=False)
        self.norm = nn.BatchNorm2d(width)
        self.squeeze, self.excite = nn.Conv2d(width, width // 2, 1), nn.Conv2d(width // 2, width, 1)
        self.pointwise = nn.Conv2d(width, width, 1, bias=False)
        self.out = nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        x = F.hardswish(self.norm(self.depthwise(x)))
        x = x * F.hardsigmoid(self.excite(F.relu(self.squeeze(F.adaptive_avg_pool2d(x, 1)))))
        return self.out(self.pointwise(x))


class Depthwise(nn.Module):
    """Convolutions in groups with channel shuffle, instance norm, an LSTM over positions, negative log-likelihood."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(4, width, 3, 2, 1, bias=False), nn.BatchNorm2d(width, affine=False), nn.ReLU6())
        self.blocks = nn.ModuleList(Separable(width, 1) for _ in range(2))
        self.grouped = nn.Conv2d(width, 2 * width, 1, groups=4)
        self.norm = nn.InstanceNorm2d(2 * width, affine=True)
        self.reader = nn.LSTM(2 * width, width, batch_first=True)
        self.head = nn.Linear(width, 8)

    def forward(self, x: Tensor, target: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = x + block(x)
        x = self.norm(F.channel_shuffle(self.grouped(x.roll((1, -1), (2, 3)).flip(3)), 4))
        x, _ = self.reader(F.avg_pool2d(x, 2).flatten(2).transpose(1, 2))
        return F.nll_loss(F.log_softmax(self.head(x.logsumexp(1)), -1), target)


def depthwise(width: int = 16) -> tuple[nn.Module, tuple[Tensor, ...]]:
    return Depthwise(width), (torch.randn(8, 4, 16, 16), torch.randint(0, 8, (8,)))
