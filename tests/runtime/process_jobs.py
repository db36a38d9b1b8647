"""What worker processes run in the tests of `parallelize`: each function is one rank's part."""

from __future__ import annotations

import gc
import os
import time
from collections import Counter
from dataclasses import dataclass
from typing import Any, cast
from unittest.mock import patch

import torch
import torch.distributed as dist
from runtime_cases import Seeded
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor

import autoplan
from autoplan.load import Built
from autoplan.plan.schema import Plan
from autoplan.runtime import optimizers
from autoplan.runtime.inputs import to_torch
from autoplan.runtime.leaves import Taken
from autoplan.runtime.parallelize import local_forward
from autoplan.runtime.program.parameters import Gather
from autoplan.runtime.storage import checkpoint
from autoplan.runtime.storage.weights import initialize
from autoplan.runtime.verify.runs import worker_mesh


def mesh_of_plan(plan: Plan) -> DeviceMesh:
    return worker_mesh(plan.mesh)


def parallel(build: Seeded, plan: Plan) -> tuple[nn.Module, Built, DeviceMesh]:
    model, mesh = build(), mesh_of_plan(plan)
    return autoplan.parallelize(model.module, model.args, model.kwargs, plan, mesh), model, mesh


def structure(build: Seeded, plan: Plan) -> dict[str, Any]:
    """What a user sees of a parallel module."""
    before = build().module
    module, _, _ = parallel(build, plan)
    parameters = dict(module.named_parameters())
    full = {name: value.full_tensor() if isinstance(value, DTensor) else value for name, value in module.state_dict().items()}
    return {
        "same_names": list(full) == list(before.state_dict())
        and [n for n, _ in module.named_modules()] == [n for n, _ in before.named_modules()],
        "same_values": all(torch.equal(full[name], value) for name, value in before.state_dict().items()),
        "class": type(module).__name__,
        "is_same_kind": isinstance(module, type(before)),
        "placements": {name: tuple(map(str, p.placements)) for name, p in parameters.items() if isinstance(p, DTensor)},
        "plain": [name for name, p in parameters.items() if not isinstance(p, DTensor)],
        "tied": [name for name, _ in module.named_parameters(remove_duplicate=False)] != list(parameters),
    }


def train(build: Seeded, plan: Plan, steps: int, as_dtensors: bool = False) -> list[float]:
    """Losses of a user's own loop."""
    module, model, mesh = parallel(build, plan)
    optimizer = torch.optim.AdamW(module.parameters(), lr=1e-2)
    args = autoplan.shard_inputs(plan, mesh, model.args)
    if as_dtensors:
        args = tuple(
            distribute_tensor(tensor, mesh, to_torch(line.place)) for tensor, line in zip(model.args, plan.inputs.values(), strict=True)
        )
    losses = []
    for _ in range(steps):
        loss = module(*args)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


def train_and_save(build: Seeded, plan: Plan, folder: str, steps: int) -> list[float]:
    """Losses of steps that go on where the checkpoint in `folder` ends, if there is one."""
    module, model, mesh = parallel(build, plan)
    optimizer = torch.optim.AdamW(module.parameters(), lr=1e-2)
    done = checkpoint.resume(folder, module, optimizer)
    args = autoplan.shard_inputs(plan, mesh, model.args)
    losses = []
    for _ in range(steps):
        loss = module(*args)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    checkpoint.save(folder, module, optimizer, done + steps)
    return losses


def evaluate(build: Seeded, plan: Plan) -> tuple[float, float, bool, float]:
    """Loss in eval mode, again in training, and whether eval recorded gradients."""
    module, model, mesh = parallel(build, plan)
    args = autoplan.shard_inputs(plan, mesh, model.args)
    module.eval()
    quiet = module(*args)
    again = module(*args)
    module.train()
    return float(quiet), float(again), quiet.requires_grad, module(*args).item()


def infer(build: Seeded, plan: Plan) -> tuple[bool, Tensor]:
    """The output of an inference plan."""
    module, model, mesh = parallel(build, plan)
    output = module(*autoplan.shard_inputs(plan, mesh, model.args))
    return isinstance(output, DTensor), output.full_tensor()


def call_with(build: Seeded, plan: Plan, batch: tuple[Tensor, ...]) -> float:
    """Calls the parallel module with tensors as they are."""
    return parallel(build, plan)[0](*batch).item()


def shard(plan: Plan, batch: Any) -> Any:
    return autoplan.shard_inputs(plan, mesh_of_plan(plan), batch)


def dtypes(build: Seeded, plan: Plan) -> dict[str, Any]:
    """A step in the plan's precision: dtypes of parameters and gradients, the gradients, the loss."""
    module, model, mesh = parallel(build, plan)
    loss = module(*autoplan.shard_inputs(plan, mesh, model.args))
    loss.backward()
    return {
        "parameters": {p.dtype for p in module.parameters()},
        "gradients": {p.grad.dtype for p in module.parameters() if p.grad is not None},
        "whole": {name: p.grad.full_tensor() for name, p in module.named_parameters() if isinstance(p.grad, DTensor)},
        "loss": loss.item(),
    }


def on_four(build: Seeded, plan: Plan) -> None:
    """A mesh of all processes, whatever the plan's is."""
    model = build()
    autoplan.parallelize(model.module, model.args, model.kwargs, plan, init_device_mesh("cpu", (4,)))


def disagree(build: Seeded, plan: Plan, other: Plan) -> None:
    """Rank 2 holds another plan."""
    parallel(build, other if dist.get_rank() == 2 else plan)


def from_meta(build: Seeded, plan: Plan) -> dict[str, Tensor]:
    """A module whose parameters are on meta, initialised by its shards: whole values by name."""
    model = build()
    for owner in model.module.modules():
        owner._parameters.update({name: nn.Parameter(p.to("meta")) for name, p in owner._parameters.items() if p is not None})
    module = autoplan.parallelize(model.module, model.args, model.kwargs, plan, mesh_of_plan(plan))
    initialize(module, seed=1)
    return {name: p.full_tensor() for name, p in module.named_parameters() if isinstance(p, DTensor)}


def compiled(build: Seeded, plan: Plan) -> tuple[float, float, float]:
    """Loss and the largest gradient difference, eager against compiled by dynamo and autograd (no code generation)."""
    results = []
    for use in (False, True):
        module, model, mesh = parallel(build, plan)
        if use:
            local_forward(module).compile(backend="aot_eager")
        loss = module(*autoplan.shard_inputs(plan, mesh, model.args))
        loss.backward()
        results.append((loss.item(), [p.grad.to_local() for p in module.parameters() if isinstance(p.grad, DTensor)]))
    (eager, expected), (fast, found) = results
    return eager, fast, max((a - b).abs().max().item() for a, b in zip(expected, found, strict=True))


def compiled_once(build: Seeded, plan: Plan) -> list[float]:
    """The losses of four compiled steps; compiling again after the first raises."""
    module, model, mesh = parallel(build, plan)
    local_forward(module).compile(backend="aot_eager")
    inputs = autoplan.shard_inputs(plan, mesh, model.args)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    losses = []
    for step in range(4):
        with torch._dynamo.config.patch(error_on_recompile=step > 0):
            loss = module(*inputs)
            loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


@dataclass(frozen=True)
class CompiledRun:
    """Eager against compiled (by dynamo and autograd, no code generation), and what was compiled."""

    losses: tuple[float, float]
    difference: float  # the largest of any gradient
    gathers: tuple[int, int]
    graphs: int
    breaks: int


def compiled_pieces(build: Seeded, plan: Plan, whole: bool = False) -> CompiledRun:
    """One step eager, one compiled with full graphs, and two more that must not compile again."""
    losses, gradients, gathers = [], [], []
    torch._dynamo.utils.counters.clear()
    for use in (False, True):
        module, model, mesh = parallel(build, plan)
        if use:
            local_forward(module).compile(whole=whole, backend="aot_eager", fullgraph=True)
        inputs = autoplan.shard_inputs(plan, mesh, model.args)
        with patch.object(Gather, "start", autospec=True, side_effect=Gather.start) as gather:
            loss = module(*inputs)
            loss.backward()
        losses.append(loss.item())
        gradients.append([p.grad.to_local().clone() for p in module.parameters() if isinstance(p.grad, DTensor)])
        gathers.append(gather.call_count)
    for _ in range(2):
        with torch._dynamo.config.patch(error_on_recompile=True):
            module(*inputs).backward()
    difference = max((a - b).abs().max().item() for a, b in zip(*gradients, strict=True))
    counters = torch._dynamo.utils.counters
    return CompiledRun(
        (losses[0], losses[1]),
        difference,
        (gathers[0], gathers[1]),
        counters["stats"]["unique_graphs"],
        sum(counters["graph_break"].values()),
    )


def compiled_collectives(build: Seeded, plan: Plan) -> tuple[int, int]:
    """How many functional collectives a step calls, eager and compiled with full graphs."""
    counts = []
    for use in (False, True):
        module, model, mesh = parallel(build, plan)
        if use:
            local_forward(module).compile(backend="aot_eager", fullgraph=True)
        inputs = autoplan.shard_inputs(plan, mesh, model.args)
        module(*inputs).backward()
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiler:
            module(*inputs).backward()
        called = Counter({event.key: event.count for event in profiler.key_averages() if event.key.startswith("_c10d_functional::")})
        counts.append(called.total() - called["_c10d_functional::wait_tensor"])
    return counts[0], counts[1]


def compiled_draws(build: Seeded, plan: Plan) -> tuple[list[list[float]], float, int]:
    """The losses of three steps eager and compiled with full graphs, the largest difference of any gradient, and graph breaks.

    The second step may compile again, since seeds have changed; the third must not. The default generator is left as it was.
    """
    losses: list[list[float]] = []
    gradients = []
    torch._dynamo.utils.counters.clear()
    before = torch.get_rng_state()
    for use in (False, True):
        module, model, mesh = parallel(build, plan)
        if use:
            local_forward(module).compile(backend="aot_eager", fullgraph=True)
        inputs = autoplan.shard_inputs(plan, mesh, model.args)
        losses.append([])
        for step in range(3):
            module.zero_grad()
            with torch._dynamo.config.patch(error_on_recompile=step > 1):
                loss = module(*inputs)
                loss.backward()
            losses[-1].append(loss.item())
        gradients.append([p.grad.to_local().clone() for p in module.parameters() if isinstance(p.grad, DTensor)])
    assert torch.equal(before, torch.get_rng_state())
    difference = max((a - b).abs().max().item() for a, b in zip(*gradients, strict=True))
    return losses, difference, sum(torch._dynamo.utils.counters["graph_break"].values())


def compiled_by_its_user(build: Seeded, plan: Plan) -> tuple[float, float]:
    """The loss of a parallel module, eager and as `torch.compile` of the whole module makes them."""
    losses = []
    for use in (False, True):
        module, model, mesh = parallel(build, plan)
        run = torch.compile(module, backend="aot_eager") if use else module
        inputs = autoplan.shard_inputs(plan, mesh, model.args)
        losses.append(float(run(*inputs)))
    return losses[0], losses[1]


def accumulated(build: Seeded, plan: Plan) -> list[Tensor]:
    """Gradients of two forwards whose losses go back together, and of a third on top."""
    module, model, mesh = parallel(build, plan)
    inputs = autoplan.shard_inputs(plan, mesh, model.args)
    (module(*inputs) + 2 * module(*inputs)).backward()
    module(*inputs).backward()
    return [p.grad.to_local() for p in module.parameters() if isinstance(p.grad, DTensor)]


def growth(build: Seeded, plan: Plan) -> int:
    """How many bytes of tensors more there are after further steps, while nothing collects garbage.

    gloo's thread lets go of a tensor only after it has told the waiting one that the collective is done (7 % of 3,000 all-reduces of
    two busy processes had it a moment longer, none 50 ms later): what is there is the least of ten counts within half a second. What
    a cycle holds is in all of them: no time makes it go without the collector.
    """
    module, model, mesh = parallel(build, plan)
    inputs = autoplan.shard_inputs(plan, mesh, model.args)

    def steps(times: int) -> None:
        for _ in range(times):
            module(*inputs).backward()
            module.zero_grad()

    def held() -> int:
        counts = []
        for _ in range(10):
            counts.append(sum(_storages().values()))
            time.sleep(0.05)
        return min(counts)

    steps(2)
    gc.collect()
    gc.disable()
    try:
        before = held()
        steps(3)
        return held() - before
    finally:
        gc.enable()


def _storages() -> dict[int, int]:
    """Bytes of what tensors there are in this process, by address."""
    tensors = [found for found in gc.get_objects() if type(found) in (Tensor, nn.Parameter)]
    return {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors if tensor.device.type == "cpu"}


@dataclass(frozen=True)
class Gradients:
    """Local gradients of one loss: kept by backward, through hooks on all parameters, and as autograd.grad returns them.

    `copied` are the parameters whose kept gradient is a copy of what backward made.
    """

    kept: dict[str, Tensor]
    hooked: dict[str, Tensor]
    returned: dict[str, Tensor]
    copied: set[str]


def gradients(build: Seeded, plan: Plan) -> Gradients:
    module, model, mesh = parallel(build, plan)
    inputs = autoplan.shard_inputs(plan, mesh, model.args)
    named = {name: p for name, p in module.named_parameters() if p.requires_grad}
    made: dict[int, bool] = {}

    def own(self: Taken, gradient: Tensor, local: Tensor) -> Tensor:
        result = whole(self, gradient, local)
        made[result.data_ptr()] = result is not gradient
        return result

    whole = Taken.own
    with patch.object(Taken, "own", own):
        module(*inputs).backward()
    kept = {name: p.grad.to_local() for name, p in named.items() if isinstance(p.grad, DTensor)}
    returned = torch.autograd.grad(module(*inputs), list(named.values()), allow_unused=True)
    module.zero_grad()
    hooks = [p.register_hook(lambda gradient: gradient.clone()) for p in named.values()]
    module(*inputs).backward()
    for hook in hooks:
        hook.remove()
    return Gradients(
        kept,
        {name: p.grad.to_local() for name, p in named.items() if isinstance(p.grad, DTensor)},
        {name: gradient.to_local() for name, gradient in zip(named, returned, strict=True) if isinstance(gradient, DTensor)},
        {name for name, gradient in kept.items() if made[gradient.data_ptr()]},
    )


def die() -> None:
    if dist.get_rank() == 1:
        print("about to go", flush=True)
        os._exit(9)
    dist.barrier()


def fail() -> None:
    if dist.get_rank() == 1:
        raise ValueError("rank one does not like this")


def process() -> int:
    return os.getpid()


def rank_and(number: int) -> tuple[int, int]:
    total = torch.tensor(number)
    dist.all_reduce(total)
    return dist.get_rank(), int(total)


def buffers_after(build: Seeded, plan: Plan, steps: int) -> tuple[dict[str, Tensor], float]:
    """The buffers after some steps of plain gradient descent, and the loss in eval mode."""
    module, model, mesh = parallel(build, plan)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    args = autoplan.shard_inputs(plan, mesh, model.args)
    for _ in range(steps):
        optimizer.zero_grad()
        module(*args).backward()
        optimizer.step()
    buffers = {name: buffer.clone() for name, buffer in module.named_buffers()}
    module.eval()
    return buffers, float(module(*args))


def fused_steps() -> list[tuple[str, float]]:
    """Fused optimizers over two DTensors beside plain ones: by kind and layout of the gradients, the largest difference after three steps."""
    optimizers.run_fused_optimizers_locally()
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    places = [(Replicate(),), (Shard(0),)]
    found = []
    for kind, options in (("AdamW", {}), ("AdamW", {"amsgrad": True}), ("Adam", {"lr": torch.tensor(1e-2)}), ("SGD", {"momentum": 0.9})):
        for gradients in (places, [(Replicate(),), (Replicate(),)])[: 1 if kind == "SGD" else 2]:  # DTensor has no rule for fused SGD
            torch.manual_seed(0)
            values = [torch.randn(8, 4) for _ in places]
            plain = [nn.Parameter(value.clone()) for value in values]
            cut = [nn.Parameter(distribute_tensor(value, mesh, place)) for value, place in zip(values, places, strict=True)]
            both = [getattr(torch.optim, kind)(given, **{"lr": 1e-2, "fused": True} | options) for given in (plain, cut)]
            with patch.object(optimizers, "_cut_alike", side_effect=optimizers._cut_alike) as alike:
                for _ in range(3):
                    for p, d, place in zip(plain, cut, gradients, strict=True):
                        p.grad = torch.randn_like(p)
                        d.grad = distribute_tensor(p.grad, mesh, place)
                    for stepping in both:
                        stepping.step()
            assert alike.called
            difference = max((p - cast(Any, d).full_tensor()).abs().max().item() for p, d in zip(plain, cut, strict=True))
            found.append((f"{kind}, gradients {'like parameters' if gradients is places else 'whole'}", difference))
    return found
