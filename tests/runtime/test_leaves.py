"""Gradients that backward keeps by itself: what a user of autograd sees is what he sees of a plain module."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import process_jobs
import pytest
import torch
from checkpoint_jobs import one_rank_plan
from runtime_cases import TIED, TINY, Seeded, graph_of, mesh_of, odds, random_plan
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode

from autoplan.graph.segments import block_segments
from autoplan.plan.schema import Plan
from autoplan.runtime.leaves import leaf_groups
from autoplan.runtime.verify.pool import WorkerPool


class Sums(nn.Module):
    """Parameters that share gradients: two terms of a sum, parts of a whole that is a term, and one whose gradient is expanded."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Parameter(torch.randn(4, 6)), nn.Parameter(torch.randn(4, 6))
        self.top, self.bottom = nn.Parameter(torch.randn(1, 6)), nn.Parameter(torch.randn(3, 6))
        self.flat = nn.Parameter(torch.randn(24))
        self.summed = nn.Parameter(torch.randn(4, 6))
        self.one = nn.Parameter(torch.randn(1))
        self.transposed = nn.Parameter(torch.randn(6, 4))

    def forward(self, x: Tensor) -> Tensor:
        whole = torch.cat([self.top, self.bottom]) + self.flat.view(4, 6) + self.transposed.t()
        return ((self.a + self.b + x + whole) * x).sum() + self.summed.sum() + self.one.sum()


def sums() -> tuple[nn.Module, tuple[Tensor, ...]]:
    return Sums(), (torch.randn(4, 6),)


class Products(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.unused = (nn.Parameter(torch.randn(6, 6)) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x @ self.a @ self.b).square().sum()


def products() -> tuple[nn.Module, tuple[Tensor, ...]]:
    return Products(), (torch.randn(4, 6),)


class Block(nn.Module):
    """A weight, and one that is read but gets no gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.w, self.still = (nn.Parameter(torch.randn(6, 6)) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x @ self.w) + x @ self.still.detach()


class Blocks(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Block() for _ in range(2))
        self.added = nn.Parameter(torch.randn(4, 6))

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.tanh(self.added + x)
        for layer in self.layers:
            hidden = layer(hidden)
        return hidden.square().sum()


def blocks() -> tuple[nn.Module, tuple[Tensor, ...]]:
    return Blocks(), (torch.randn(4, 6),)


BLOCKS = Seeded(blocks)
SUMS, PRODUCTS, ODDS = Seeded(sums), Seeded(products), Seeded(odds, {"p": 0.0})


def both(build: Seeded) -> tuple[Any, Any, tuple[Tensor, ...]]:
    """The module on a mesh of one process, the plain one, and its inputs.

    The plain one copies its gradients: torch lets those share memory that are views of one tensor, and adds to it for each.
    """
    module, model, _ = process_jobs.parallel(build, one_rank_plan(build))
    plain = build().module
    for parameter in plain.parameters():
        if parameter.requires_grad:
            parameter.register_hook(torch.clone)
    return module, plain, model.args


def gradients(module: nn.Module) -> dict[str, Tensor]:
    return {name: local(p.grad) for name, p in module.named_parameters() if p.grad is not None}


def local(tensor: Tensor) -> Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def assert_alike(parallel: nn.Module, plain: nn.Module) -> None:
    found, expected = gradients(parallel), gradients(plain)
    assert found.keys() == expected.keys()
    for name in expected:
        torch.testing.assert_close(found[name], expected[name])
        assert found[name].stride() == expected[name].stride()
    for parameter in parallel.parameters():
        if parameter.grad is not None:
            assert isinstance(parameter, DTensor) and isinstance(parameter.grad, DTensor)
            assert parameter.grad.placements == parameter.placements and not parameter.grad.requires_grad


@pytest.mark.parametrize("build", [TINY, TIED, SUMS, BLOCKS, ODDS], ids=["llama", "tied", "sums", "blocks", "odds"])
def test_gradients_of_micro_batches_add_up_as_those_of_a_plain_module(one_rank: None, build: Seeded) -> None:
    """Gradients that share memory would be clipped, and added to, twice."""
    pair = both(build)
    for module in pair[:2]:
        for _ in range(2):
            module(*pair[2]).backward()
        (module(*pair[2]) + 2 * module(*pair[2])).backward()
        torch.nn.utils.clip_grad_norm_(module.parameters(), 1e-2)
        module.zero_grad(set_to_none=False)
        module(*pair[2]).backward()
        loss = module(*pair[2])
        loss.backward(retain_graph=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)
    assert_alike(*pair[:2])


def test_no_two_gradients_share_memory(one_rank: None) -> None:
    module, _, args = both(SUMS)
    module(*args).backward()
    ranges = sorted((g.data_ptr(), g.data_ptr() + g.nbytes) for g in gradients(module).values())
    assert all(end <= start for (_, end), (start, _) in zip(ranges, ranges[1:], strict=False))


def test_a_gradient_that_is_kept_is_not_added_to_while_others_wait_for_it(one_rank: None) -> None:
    """What `x` is made from comes first, so that its gradient waits until both forwards have gone back."""
    found = []
    for module in both(BLOCKS)[:2]:
        z = torch.ones(4, 6, requires_grad=True)
        first, second = z * 2, z * 3
        (module(first) + module(second)).backward()
        found.append(z.grad)
    torch.testing.assert_close(found[0], found[1])


@contextmanager
def dtensor_ops() -> Iterator[list[str]]:
    """The ops that DTensors are given meanwhile."""
    seen: list[str] = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]
            if any(issubclass(kind, DTensor) for kind in types):
                seen.append(str(func))
            return func(*args, **(kwargs or {}))

    with Watch():
        yield seen


def test_a_step_gives_dtensors_no_op(one_rank: None) -> None:
    module, _, args = both(TINY)
    with dtensor_ops() as seen:
        for _ in range(2):
            module(*args).backward()
        assert not seen
        next(module.parameters()).add(1)
    assert seen


def test_hooks_on_parameters_run(one_rank: None) -> None:
    """Those that are there when backward comes to the parameter."""
    pair = both(PRODUCTS)
    calls = []
    for module in pair[:2]:
        own: list[Any] = []
        module.a.register_hook(lambda gradient: gradient * 3)
        module.b.register_post_accumulate_grad_hook(lambda p, own=own: own.append(local(p.grad).clone()))
        module(*pair[2]).backward()
        loss = module(*pair[2])
        module.a.register_hook(lambda gradient: gradient + 1)
        loss.backward()
        calls.append(own)
    assert_alike(*pair[:2])
    assert len(calls[0]) == len(calls[1]) == 2
    assert all(torch.equal(a, b) for a, b in zip(*calls, strict=True))


def double(parameter: Any) -> None:
    local(parameter.grad).mul_(2)


def test_a_gradient_goes_to_a_hook_and_to_a_parameter_without_sharing(one_rank: None) -> None:
    pair = both(SUMS)
    for module in pair[:2]:
        module.a.register_post_accumulate_grad_hook(double)
        for _ in range(2):
            module(*pair[2]).backward()
    assert_alike(*pair[:2])


def test_autograd_grad_returns_gradients_and_keeps_none(one_rank: None) -> None:
    module, plain, args = both(PRODUCTS)
    found, expected = (torch.autograd.grad(m(*args), [m.b, m.unused], allow_unused=True) for m in (module, plain))
    assert isinstance(found[0], DTensor) and found[0].placements == module.b.placements
    assert torch.equal(found[0].to_local(), expected[0]) and found[1] is None
    assert not gradients(module)


def test_backward_with_inputs_keeps_only_theirs(one_rank: None) -> None:
    pair = both(TINY)
    for module in pair[:2]:
        module(*pair[2]).backward(inputs=[module.layers[0].mlp.w1.weight])
    assert set(gradients(pair[0])) == {"layers.0.mlp.w1.weight"}
    assert_alike(*pair[:2])


def test_gradients_of_gradients_are_those_of_a_plain_module(one_rank: None) -> None:
    pair = both(PRODUCTS)
    for module in pair[:2]:
        made = torch.autograd.grad(module(*pair[2]), [module.a, module.b], create_graph=True)
        torch.stack([local(gradient).square().sum() for gradient in made]).sum().backward()
    assert_alike(*pair[:2])
    for module in pair[:2]:
        module.zero_grad()
        module(*pair[2]).backward(create_graph=True)
        kept = module.a.grad
        module.zero_grad()
        local(kept).square().sum().backward()
    assert_alike(*pair[:2])


def test_a_gradient_with_a_history_is_added_to_by_autograd(one_rank: None) -> None:
    """It knows who has kept the value from before."""
    for module, args in ((module, args) for *pair, args in [both(PRODUCTS)] for module in pair):
        module(*args).backward(create_graph=True)
        reads = module.a.grad.square().sum()
        module(*args).backward()
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            reads.backward()


def test_a_frozen_parameter_may_be_thawed_and_frozen_again(one_rank: None) -> None:
    pair = both(PRODUCTS)
    for module in pair[:2]:
        module.a.requires_grad_(False)
        module(*pair[2]).backward()
        assert module.a.grad is None
        module.a.requires_grad_(True)
        loss = module(*pair[2])
        module.b.requires_grad_(False)
        loss.backward()
    assert_alike(*pair[:2])


def test_the_gradients_of_a_block_are_kept_before_backward_comes_to_the_block_before(one_rank: None) -> None:
    module, _, args = both(TINY)
    kept: list[set[str]] = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]
            if "attention" in str(func) and "backward" in str(func):
                kept.append({name.rpartition(".")[0] for name in gradients(module)})
            return func(*args, **(kwargs or {}))

    with Watch():
        module(*args).backward()
    assert len(kept) == 2
    assert not any(name.startswith("layers") for name in kept[0])
    assert {name for name in kept[1] if name.startswith("layers")} == {
        name.rpartition(".")[0] for name, _ in module.named_parameters() if name.startswith("layers.1.")
    }


def test_a_block_is_one_group_and_what_several_pieces_read_is_alone() -> None:
    for build in (TINY, TIED):
        graph = graph_of(build)
        groups = [{p.fqn for p in group} for group in leaf_groups(graph, block_segments(graph))]
        for layer in range(2):
            names = {p.fqn for p in graph.parameters if p.fqn.startswith(f"layers.{layer}.")}
            assert len(names) == 9 and names in groups
        assert all(len(group) == 1 for group in groups if not any(name.startswith("layers.") for name in group))


def overlapping(plan: Plan) -> Plan:
    return replace(plan, gather={key: replace(line, prefetch=1) for key, line in plan.gather.items()})


@pytest.mark.parametrize("ahead", [False, True], ids=["plain", "prefetch"])
@pytest.mark.parametrize("build", [TINY, TIED, ODDS], ids=["llama", "tied", "odds"])
def test_gathered_parameters_get_the_same_gradients_in_every_way(pool: WorkerPool, build: Seeded, ahead: bool) -> None:
    """And no gradient is copied, be it a part of a bucket."""
    plan = random_plan(build, mesh_of(2, 2), 3)
    for found in pool.run(process_jobs.gradients, build, overlapping(plan) if ahead else plan):
        assert found.kept.keys() == found.hooked.keys() == found.returned.keys()
        assert all(torch.equal(gradient, found.hooked[name]) for name, gradient in found.kept.items())
        assert all(torch.equal(gradient, found.returned[name]) for name, gradient in found.kept.items())
        assert not found.copied
