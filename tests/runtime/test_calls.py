"""Calls of a parallel module and what else people do with one: what is not as planned is said, not ignored."""

from __future__ import annotations

import copy
import io
import pickle
from collections import UserDict
from collections.abc import Callable
from typing import Any

import process_jobs
import pytest
import torch
from checkpoint_jobs import one_rank_plan
from runtime_cases import Seeded, mesh_of, odds, plan_of, random_assignment, random_plan
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

import autoplan
from autoplan.errors import AutoplanError, UsageError
from autoplan.graph import capture
from autoplan.plan.schema import Plan
from autoplan.runtime.parallelize import local_forward
from autoplan.runtime.verify.pool import WorkerPool


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.drop, self.norm, self.down = nn.Linear(8, 16), nn.Dropout(0.5), nn.BatchNorm1d(16), nn.Linear(16, 4)

    def forward(self, x: Tensor, labels: Tensor, scale: float = 1.0, mean: bool = True) -> Tensor:
        loss = nn.functional.cross_entropy(self.down(self.drop(self.norm(self.up(x)))), labels, reduction="mean" if mean else "sum")
        return scale * loss


def net() -> tuple[nn.Module, tuple[Tensor, ...]]:
    return Net(), (torch.randn(8, 8), torch.arange(8) % 4)


NET = Seeded(net)


@pytest.fixture(scope="module")
def plan() -> Plan:
    return one_rank_plan(NET)


def parallel(plan: Plan) -> tuple[nn.Module, tuple[Tensor, ...]]:
    module, model, _ = process_jobs.parallel(NET, plan)
    return module, model.args


Call = Callable[[nn.Module, Tensor, Tensor], Any]


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda m, x, y: m(x, y, scale=2.0), "argument scale is 2.0; planned is 1.0"),
        (lambda m, x, y: m(x, y, 1.0, False), "argument mean is False; planned is True"),
        (
            lambda m, x, y: m(x, y, 1.0, True, 5),
            "none of forward(x: 'Tensor', labels: 'Tensor', scale: 'float' = 1.0, mean: 'bool' = True)",
        ),
        (lambda m, x, y: m(x), "missing a required argument: 'labels'"),
        (lambda m, x, y: m(x.tolist(), y), "called with tensors labels; the plan is for labels, x"),
        (lambda m, x, y: m(x.to("meta"), y), "input x is on meta"),
    ],
)
def test_arguments_that_were_not_planned_are_refused(one_rank: None, plan: Plan, call: Call, said: str) -> None:
    module, (x, labels) = parallel(plan)
    with pytest.raises(UsageError) as error:
        call(module, x, labels)
    assert said in str(error.value)


def test_arguments_as_they_were_planned_may_be_given(one_rank: None, plan: Plan) -> None:
    module, (x, labels) = parallel(plan)
    module(x, labels, scale=1.0, mean=True).backward()


def call_for_an_input_gradient(build: Seeded, plan: Plan, records: bool) -> None:
    module, model, mesh = process_jobs.parallel(build, plan)
    x, labels = autoplan.shard_inputs(plan, mesh, model.args)
    with torch.set_grad_enabled(records):
        module(x.requires_grad_(), labels)


def test_an_input_whose_gradient_would_be_that_of_one_rank_is_refused(pool: WorkerPool) -> None:
    plan = random_plan(NET, mesh_of(2, 2), 1)
    with pytest.raises(AutoplanError, match="input x requires a gradient; a plan brings gradients to parameters alone"):
        pool.run(call_for_an_input_gradient, NET, plan, True)
    pool.run(call_for_an_input_gradient, NET, plan, False)


def thaw_and_call(build: Seeded, plan: Plan, thawed: str) -> None:
    module, model, mesh = process_jobs.parallel(build, plan)
    inputs = autoplan.shard_inputs(plan, mesh, model.args)
    module.get_submodule(thawed).requires_grad_(False)
    module(*inputs).backward()
    module.get_submodule(thawed).requires_grad_(True)
    with torch.no_grad():
        module(*inputs)
    module(*inputs).backward()


def test_a_parameter_that_was_planned_frozen_is_not_trained_without_its_gradient_being_brought_together(pool: WorkerPool) -> None:
    """Gradual unfreezing: what was planned to train may be frozen for a while, not the other way round."""
    build = Seeded(odds)
    plan = random_plan(build, mesh_of(2, 2), 1)
    pool.run(thaw_and_call, build, plan, "head")
    with pytest.raises(AutoplanError, match="trained now, and frozen when it was planned: frozen.bias, frozen.weight"):
        pool.run(thaw_and_call, build, plan, "frozen")


@pytest.mark.parametrize("trains", [True, False])
def test_a_part_in_another_mode_than_the_module_is_refused(one_rank: None, plan: Plan, trains: bool) -> None:
    module, args = parallel(plan)
    module.train(trains)
    module.get_submodule("norm").train(not trains)
    with pytest.raises(UsageError, match=r"of its parts norm in (eval|training) mode"):
        module(*args)
    module.train(trains)
    module(*args)
    module.train(not trains)
    module.get_submodule("drop").train(trains)
    with pytest.raises(UsageError, match="of its parts drop in"):
        module(*args)


class Still(Net):
    """Its batch statistics stay as they are."""

    def train(self, mode: bool = True) -> Still:
        super().train(mode)
        self.norm.eval()
        return self


def test_a_module_whose_train_leaves_a_part_in_eval_mode_runs_so(one_rank: None) -> None:
    build = Seeded(lambda: (Still(), net()[1]))
    module, model, _ = process_jobs.parallel(build, one_rank_plan(build))
    module.train()(*model.args).backward()
    assert torch.equal(module.get_buffer("norm.running_mean"), torch.zeros(16))


def test_a_batch_is_cut_in_whatever_mapping_and_beside_what_is_no_tensor(one_rank: None, plan: Plan) -> None:
    _, (x, labels) = parallel(plan)
    mesh = process_jobs.mesh_of_plan(plan)
    assert list(autoplan.shard_inputs(plan, mesh, UserDict(x=x, labels=labels))) == ["x", "labels"]
    assert autoplan.shard_inputs(plan, mesh, (x, labels, 1.0))[2] == 1.0
    assert autoplan.shard_inputs(plan, mesh, {"x": x, "labels": labels, "mean": True})["mean"] is True
    for batch, said in (
        ((x.numpy(), labels), "a batch of 1 tensors, beside ndarray; the plan has 2 inputs: x, labels"),
        ({"x": x.numpy(), "labels": labels}, "input x is of type ndarray"),
        ({"z": x, "labels": labels}, "no input called z"),
    ):
        with pytest.raises(UsageError, match=said):
            autoplan.shard_inputs(plan, mesh, batch)


def test_a_copy_of_a_parallel_module_runs_by_itself(one_rank: None, plan: Plan) -> None:
    """As averaged weights are kept and evaluated."""
    module, args = parallel(plan)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    averaged = torch.optim.swa_utils.AveragedModel(module, avg_fn=lambda old, new, count: new)
    module.eval(), averaged.eval()
    before = module(*args).item()
    assert averaged(*args).item() == before
    module.train()(*args).backward()
    optimizer.step()
    after = module.eval()(*args).item()
    assert after != before == averaged(*args).item()
    averaged.update_parameters(module)
    averaged.module.load_state_dict(module.state_dict())  # buffers too
    assert averaged(*args).item() == after
    local_forward(averaged.module).seed = 7
    assert local_forward(module).seed == 0
    assert copy.copy(module)(*args).item() == after


def test_a_parallel_module_is_not_pickled_nor_made_parallel_again(one_rank: None, plan: Plan) -> None:
    module, args = parallel(plan)
    for write in (pickle.dumps, lambda it: torch.save(it, io.BytesIO())):
        with pytest.raises(UsageError, match="cannot be pickled"):
            write(module)
    with pytest.raises(UsageError, match="parallel already"):
        autoplan.parallelize(module, args, {}, plan, process_jobs.mesh_of_plan(plan))
    with pytest.raises(UsageError, match="this Net is not parallel"):
        autoplan.save_checkpoint("nowhere", Net(), None, 1)


class Several(nn.Module):
    """Batch statistics, a loss that is not the first scalar, and another for the user to weigh."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.norm, self.down = nn.Linear(8, 16), nn.BatchNorm1d(16), nn.Linear(16, 4)

    def forward(self, x: Tensor, labels: Tensor) -> dict[str, Tensor]:
        logits = self.down(self.norm(self.up(x)))
        return {"aux": logits.square().mean(), "logits": logits, "loss": nn.functional.cross_entropy(logits, labels)}


def several() -> tuple[nn.Module, tuple[Tensor, ...]]:
    return Several(), net()[1]


SEVERAL = Seeded(several)


def several_kept(seed: int) -> Plan:
    model = SEVERAL()
    graph = capture(model.module, model.args, {}, mode="train", keep_outputs=True)
    return plan_of(random_assignment(graph, mesh_of(2, 2), seed), model.module, keep_outputs=True)


def step_and_evaluate(build: Seeded, plan: Plan) -> tuple[list[Tensor], list[str], float, float]:
    """Whole gradients of both losses, the names of what eval mode returns, its loss, and the loss as apply.py finds it."""
    module, model, mesh = process_jobs.parallel(build, plan)
    inputs = autoplan.shard_inputs(plan, mesh, model.args)
    returned = module(*inputs)
    (returned["loss"] + returned["aux"] / 2).backward()
    gradients = [p.grad.full_tensor() for p in module.parameters() if isinstance(p.grad, DTensor)]
    found = local_forward(module).loss_of(module(*inputs)).item()
    quiet = module.eval()(*inputs)
    return gradients, list(quiet), quiet["loss"].item(), found


@pytest.mark.parametrize("seed", [1, 2])
def test_a_plan_that_keeps_outputs_returns_them_in_both_modes_and_takes_gradients_of_all(pool: WorkerPool, seed: int) -> None:
    model = SEVERAL()
    returned = model.module(*model.args)
    (returned["loss"] + returned["aux"] / 2).backward()
    loss = returned["loss"].item()
    model.module(*model.args)
    quiet = model.module.eval()(*model.args)["loss"].item()
    gradients, names, evaluated, found = pool.run(step_and_evaluate, SEVERAL, several_kept(seed))[0]
    assert names == ["aux", "logits", "loss"]
    assert (evaluated, found) == pytest.approx((quiet, loss), rel=1e-5)
    for parameter, gradient in zip(model.module.parameters(), gradients, strict=True):
        assert parameter.grad is not None
        torch.testing.assert_close(gradient, parameter.grad, rtol=1e-4, atol=1e-6)


def test_an_optimizer_of_the_parameters_before_is_refused_at_its_first_step(one_rank: None, plan: Plan) -> None:
    model = NET()
    before = torch.optim.AdamW(model.module.parameters())
    mesh = process_jobs.mesh_of_plan(plan)
    module = autoplan.parallelize(model.module, model.args, model.kwargs, plan, mesh)
    module(*model.args).backward()
    with pytest.raises(UsageError, match=r"AdamW trains up\.weight and 5 more as they were before parallelize"):
        before.step()
    after = torch.optim.AdamW(module.parameters())
    value = module.get_parameter("up.weight").detach().clone()
    after.step()
    assert not torch.equal(module.get_parameter("up.weight").to_local(), value.to_local())


def test_what_would_be_waited_for_in_vain_is_noted(one_rank: None, plan: Plan, capsys: pytest.CaptureFixture[str]) -> None:
    for hooks, trains, said in (
        ((), True, ""),
        (("up", "norm"), True, "note: hooks of up and 1 more do not run"),
        ((), False, "note: the module is in eval mode"),
    ):
        model = NET()
        for name in hooks:
            model.module.get_submodule(name).register_forward_hook(lambda *_: None)
        model.module.train(trains)
        autoplan.parallelize(model.module, model.args, model.kwargs, plan, process_jobs.mesh_of_plan(plan))
        noted = capsys.readouterr().err
        assert noted.count("note:") == bool(said) and said in noted
