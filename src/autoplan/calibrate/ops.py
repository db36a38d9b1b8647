"""Single ops as training runs them, on the device of this process."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from autoplan.calibrate.clock import Run
from autoplan.calibrate.works import DROPPED, Attention, Drop, Multiply, Product, Update, Work
from autoplan.rules.seeds import dropped

AMONG = {"cuda": ((16384, 4096), (14336, 4096)), "cpu": ((128, 256), (512, 256))}
"""Rows and weights of the products that run before what steps have behind products."""


def prepared(work: Work, device: torch.device) -> tuple[Run, Run | None]:
    """What to time, and what runs before each time.

    Attention's backward and the optimizer run among products, as they do in steps: these keep a GPU's clock low, and caches full of
    other things. A launch waits for the device to be idle.
    """
    match work:
        case Multiply():
            x, y = (_random((work.count,), work.dtype, device) for _ in range(2))
            return lambda: x * y, torch.cuda.synchronize if work.family == "launch" and device.type == "cuda" else None
        case Product():
            return _product(work, device), None
        case Attention():
            return _attention(work, device), among_products(work.dtype, device) if work.way == "backward" else None
        case Drop():
            numbers = _random((work.count,), work.dtype, device)
            return lambda: dropped(numbers, DROPPED, 0, 0), None
        case Update():
            return _update(work, device), among_products(work.dtype, device)
    raise AssertionError(work)


def among_products(dtype: str, device: torch.device) -> Run:
    """Three products of a large layer."""
    tensors = [_random(shape, dtype, device) for shape in AMONG[device.type]]
    return lambda: [F.linear(*tensors) for _ in range(3)]


def _product(work: Product, device: torch.device) -> Run:
    tensors = [_random(spec.shape, work.dtype, device).requires_grad_() for spec in work.call.operands]
    return _one_way(lambda: F.linear(*tensors), tensors, backward=work.way == "backward")


def _attention(work: Attention, device: torch.device) -> Run:
    """Views [batch, heads, length, size] of [batch, length, heads, size], as models have them."""
    shapes = [(work.batch, work.length, count, work.size) for count in (work.heads, work.key_heads, work.key_heads)]
    q, k, v = tensors = [_random(shape, work.dtype, device).transpose(1, 2).requires_grad_() for shape in shapes]
    return _one_way(lambda: F.scaled_dot_product_attention(q, k, v, **work.keywords), tensors, backward=work.way == "backward")


def _one_way(forward: Run, tensors: list[Tensor], *, backward: bool) -> Run:
    if not backward:
        return forward
    out = forward()
    gradient = torch.randn_like(out)
    return lambda: torch.autograd.grad(out, tensors, gradient, retain_graph=True)


def _update(work: Update, device: torch.device) -> Run:
    parameters = [nn.Parameter(_random((work.count // work.tensors,), work.dtype, device)) for _ in range(work.tensors)]
    for parameter in parameters:
        parameter.grad = torch.randn_like(parameter)
    return torch.optim.AdamW(parameters, fused=True).step


def _random(shape: tuple[int, ...], dtype: str, device: torch.device) -> Tensor:
    return torch.randn(shape, dtype=getattr(torch, dtype), device=device)
