"""What the host is busy with where a GPU waits for it: starting ops, and collectives of redistributions."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from autoplan.calibrate.shapes import WAYS
from autoplan.calibrate.works import EagerStep, Start
from autoplan.collectives.process_group import ProcessGroupCollectives
from autoplan.collectives.redistribute import redistribute_by
from autoplan.graph import capture
from autoplan.load import Built, build_on, load_target
from autoplan.placement import P, R, Shard, parse_mesh
from autoplan.redistribution import Step

LAYERS = (4, 12)
WARM_UP, STEPS, CHAIN = 5, 20, 20
S = Shard(0)
ALL_TO_ALL = Step("all-to-all", (0,), S, Shard(1), 1), Step("all-to-all", (0,), Shard(1), S, 1)
GATHER, SCATTER, REDUCE = Step("all-gather", (0,), S, R, 1), Step("reduce-scatter", (0,), P, S, 1), Step("all-reduce", (0,), P, R, 1)
PAIRS: tuple[tuple[Step | None, Step | None], ...] = ((GATHER, SCATTER), (SCATTER, GATHER), (REDUCE, None), (None, REDUCE), ALL_TO_ALL)
"""Steps forward and those that undo them backward."""


def eager_steps(device: torch.device) -> Iterator[tuple[EagerStep, list[float]]]:
    """Steps of small models, eager, forward, backward and fused AdamW, each waited for."""
    for layers in LAYERS:
        sizes = {"n_layers": layers, "dim": 256, "n_heads": 4, "n_kv_heads": 4, "ffn_dim": 512, "vocab_size": 512, "batch": 1, "seq": 64}
        built = build_on(load_target("autoplan.models.llama:build", sizes, mode="train"), "cpu", 0)
        ops = len(capture(built.module, built.args, built.kwargs, mode="train").nodes)
        yield EagerStep(ops), _steps(built, device)


def _steps(built: Built, device: torch.device) -> list[float]:
    module = built.module.to(device, torch.bfloat16)
    inputs = [leaf.to(device) for leaf in built.args]
    optimizer = torch.optim.AdamW(module.parameters(), 1e-4, fused=True)

    def step() -> None:
        module(*inputs).backward()
        optimizer.step()
        module.zero_grad(set_to_none=True)
        _settle()

    for _ in range(WARM_UP):
        step()
    return [_seconds(step) for _ in range(STEPS)]


def starts(ranks: int, device: torch.device) -> Iterator[tuple[Start, list[float]]]:
    """Seconds of the host for each collective, in chains that it runs ahead of the device."""
    group = ProcessGroupCollectives(parse_mesh(str(ranks)), [(0,)])
    size = ranks * -(-256 // ranks)
    for forward, backward in PAIRS:
        tensor = torch.randn(size, size, device=device, dtype=torch.bfloat16).requires_grad_()
        there, back = (() if step is None else (step,) for step in (forward, backward))
        taken = [_chain(tensor, there, back, group) for _ in range(WARM_UP + STEPS)][WARM_UP:]
        for step, way, seconds in zip((forward, backward), WAYS, zip(*taken, strict=True), strict=True):
            if step is not None:
                yield Start(step.kind, way), list(seconds)


def _chain(tensor: Tensor, forward: tuple[Step, ...], backward: tuple[Step, ...], group: ProcessGroupCollectives) -> tuple[float, float]:
    """Seconds for each link, forward and backward."""
    outs: list[Tensor] = []
    _settle()
    forward_s = _seconds(lambda: outs.extend(redistribute_by(tensor, forward, backward, group) for _ in range(CHAIN)))
    gradients = [torch.ones_like(out) for out in outs]
    _settle()
    return forward_s / CHAIN, _seconds(lambda: torch.autograd.grad(outs, tensor, gradients)) / CHAIN


def _settle() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _seconds(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start
