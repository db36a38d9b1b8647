"""What a checkpoint holds of a training run: tensors by name, and everything else in one small object.

Tensors are called `model.FQN` and `optimizer.state.FQN.KEY`; tied parameters are there once, under their first name. They are the
run's own memory, so that reading writes them in place.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.utils._pytree as pytree
from torch import Tensor, nn
from torch.optim import Optimizer

from autoplan.errors import UsageError
from autoplan.runtime.parallelize import local_forward

MODEL = "model."
OPTIMIZER = "optimizer.state."
# How an optimizer computes, not what: a checkpoint does not decide this for the machine that reads it.
_IMPLEMENTATION = {"params", "foreach", "fused", "capturable", "differentiable"}


class Stateful(Protocol):
    """What learning rate schedulers, data loaders and gradient scalers are."""

    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state_dict: dict[str, Any]) -> Any: ...


def run_state(module: nn.Module, optimizer: Optimizer | None, step: int, also: Mapping[str, Stateful]) -> dict[str, Any]:
    """Everything but tensors of the model and the optimizer: steps done, what seeds random ops, hyperparameters, `also`."""
    local = local_forward(module)
    state = {
        "step": step,
        "seed": local.seed,
        "forwards": local.step,
        "groups": [{"names": names, "values": _hyperparameters(group)} for group, names in _groups(module, optimizer)],
        "values": {place.name: place.value for place in _places(module, optimizer) if not isinstance(place.value, Tensor)},
        "also": {name: one.state_dict() for name, one in also.items()},
    }
    return pytree.tree_map_only(Tensor, lambda tensor: tensor.detach().cpu(), state)


def run_problems(state: Mapping[str, Any], module: nn.Module, optimizer: Optimizer | None, also: Mapping[str, Stateful]) -> list[str]:
    """Why `restore_run` cannot take a state: each is a line of a message."""
    problems = [f"it has no state of {name}" for name in also if name not in state["also"]]
    own = [sorted(names) for _, names in _groups(module, optimizer)]
    saved = [sorted(group["names"]) for group in state["groups"]]
    if own and not saved:
        problems.append("it has no optimizer")
    elif own and own != saved:
        problems.append(f"its optimizer has {_counted(saved)}, this one {_counted(own)}, of which some differ")
    return problems


def restore_run(state: Mapping[str, Any], module: nn.Module, optimizer: Optimizer | None, also: Mapping[str, Stateful]) -> int:
    """What `run_state` returned, put back; the steps done."""
    local = local_forward(module)
    local.seed, local.step = state["seed"], state["forwards"]
    for (group, _), saved in zip(_groups(module, optimizer), state["groups"], strict=False):
        for key, value in saved["values"].items():
            group[key] = group[key].copy_(value) if isinstance(group.get(key), Tensor) else value
    for place in _places(module, optimizer):
        if place.name in state["values"]:
            place.owner[place.key] = state["values"][place.name]
    for name, one in also.items():
        one.load_state_dict(state["also"][name])
    return int(state["step"])


def model_tensors(module: nn.Module) -> dict[str, Tensor]:
    """Parameters, and those buffers whose values the factory does not make again: persistent ones and what steps overwrite."""
    buffers = dict(module.named_buffers(remove_duplicate=False))
    kept = {id(buffer) for buffer in persistent_buffers(module).values()} | {
        id(buffers[name]) for name in local_forward(module).program.mutated
    }
    found = dict(module.named_parameters()) | {name: buffer for name, buffer in module.named_buffers() if id(buffer) in kept}
    return {MODEL + name: tensor.detach() for name, tensor in found.items()}


def persistent_buffers(module: nn.Module) -> dict[str, Tensor]:
    """The buffers of a module's state dict, by the name each has first."""
    passed_over = {
        f"{prefix}.{name}" if prefix else name for prefix, owner in module.named_modules() for name in owner._non_persistent_buffers_set
    }
    return {name: buffer for name, buffer in module.named_buffers() if name not in passed_over}


def optimizer_tensors(module: nn.Module, optimizer: Optimizer | None) -> dict[str, Tensor]:
    """The tensors among the optimizer's states."""
    return {place.name: place.value for place in _places(module, optimizer) if isinstance(place.value, Tensor)}


@torch.no_grad()
def make_states(module: nn.Module, optimizer: Optimizer, saved: Collection[str]) -> None:
    """Let the optimizer make states for the parameters that have `saved` ones, and for no others.

    It makes them in a step with gradients of nought at a learning rate of nought, the one way that all optimizers have. A
    parameter that no gradient reached has none, so torch's own `get_optimizer_state_dict`, which makes them for all, cannot be used.
    """
    stateful = {name.removeprefix(OPTIMIZER).rpartition(".")[0] for name in saved if name.startswith(OPTIMIZER)}
    groups = _groups(module, optimizer)
    rates = [group.get("lr") for group, _ in groups]
    for group, names in groups:
        for parameter, name in zip(group["params"], names, strict=True):
            if name not in stateful:
                optimizer.state.pop(parameter, None)
            parameter.grad = torch.zeros_like(parameter) if name in stateful and parameter not in optimizer.state else None
        if "lr" in group:
            group["lr"] = torch.zeros_like(group["lr"]) if isinstance(group["lr"], Tensor) else 0.0
    optimizer.step()
    for (group, _), rate in zip(groups, rates, strict=True):
        if "lr" in group:
            group["lr"] = rate
    optimizer.zero_grad(set_to_none=True)


@dataclass(frozen=True, slots=True)
class _Place:
    """One value of an optimizer's states: `owner[key]`."""

    name: str
    owner: dict[str, Any]
    key: str

    @property
    def value(self) -> Any:
        return self.owner[self.key]


def _places(module: nn.Module, optimizer: Optimizer | None) -> list[_Place]:
    if optimizer is None:
        return []
    named = [item for group, names in _groups(module, optimizer) for item in zip(group["params"], names, strict=True)]
    states = [(name, optimizer.state[parameter]) for parameter, name in named if parameter in optimizer.state]
    return [_Place(f"{OPTIMIZER}{name}.{key}", state, key) for name, state in states for key in state]


def _groups(module: nn.Module, optimizer: Optimizer | None) -> list[tuple[dict[str, Any], list[str]]]:
    """The optimizer's groups with the names of their parameters."""
    if optimizer is None:
        return []
    name_of = {id(parameter): name for name, parameter in module.named_parameters()}
    if any(id(parameter) not in name_of for group in optimizer.param_groups for parameter in group["params"]):
        raise UsageError(
            "the optimizer has parameters that are not the module's", next_step="make it from module.parameters(), after parallelize"
        )
    return [(group, [name_of[id(parameter)] for parameter in group["params"]]) for group in optimizer.param_groups]


def _hyperparameters(group: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in group.items() if key not in _IMPLEMENTATION}


def _counted(groups: list[list[str]]) -> str:
    return f"{len(groups)} group{'s' * (len(groups) != 1)} of {' and '.join(str(len(names)) for names in groups)} parameters"
