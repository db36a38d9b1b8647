"""Batch norm modules as capture must see them: what they do on one device, without a look at a tensor's value."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

_eager = _BatchNorm.forward


@contextmanager
def capturable_batch_norms() -> Iterator[None]:
    """Within it, SyncBatchNorm is batch norm over the global batch, and a cumulative average is computed by tensors alone.

    Where processes are joined SyncBatchNorm would talk to them itself; and torch takes a cumulative average's factor, one over
    the number of batches, out of its tensor.
    """
    synchronised = nn.SyncBatchNorm.forward
    _BatchNorm.forward = _forward  # type: ignore[method-assign, assignment]
    nn.SyncBatchNorm.forward = _forward  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        _BatchNorm.forward = _eager  # type: ignore[method-assign, assignment]
        nn.SyncBatchNorm.forward = synchronised  # type: ignore[method-assign, assignment]


def _forward(norm: Any, x: Tensor) -> Tensor:
    if norm.momentum is not None or not norm.training or not norm.track_running_stats:
        return _eager(norm, x)
    norm._check_input_dim(x)
    norm.num_batches_tracked.add_(1)
    mean, variance = norm.running_mean.clone(), norm.running_var.clone()
    y = F.batch_norm(x, mean, variance, norm.weight, norm.bias, True, 1.0, norm.eps)  # with momentum 1 they become the batch's
    share = 1 / norm.num_batches_tracked.to(mean.dtype)
    norm.running_mean.lerp_(mean, share)
    norm.running_var.lerp_(variance, share)
    return y
