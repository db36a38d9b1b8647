"""A strategy as a call on local tensors: the plain op with local sizes, or the local implementation."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload

from autoplan.collectives import Collectives
from autoplan.graph.ir import map_refs
from autoplan.graph.ops import call_functional, resolve, written_arguments
from autoplan.placement import Mesh, forward_of, local_shape
from autoplan.rules.bindings import BINDINGS
from autoplan.rules.registry import LocalCall, draws_by_default_generator, local_implementation, rule_of
from autoplan.rules.row import Call, Strategy
from autoplan.rules.seeds import default_generator_of


@dataclass(frozen=True, slots=True)
class LocalOp:
    """One op as each rank runs it: `run(operands, group, seed)` gives its local output, or a tuple of them."""

    call: Call
    strategy: Strategy
    mesh: Mesh
    target: Callable[..., Any]
    args: tuple[Any, ...]  # with Ref(k) for operand k, sizes local
    kwargs: Mapping[str, Any]
    written: tuple[int, ...] = ()  # positions of arguments that the plain op writes to

    @property
    def is_plain(self) -> bool:
        """Whether the target is a plain op, to be called with `args` and `kwargs`."""
        return self.strategy.local is None

    @property
    def draws_by_default_generator(self) -> bool:
        """Whether it draws random numbers from the default generator, which `run` seeds for it."""
        return self.strategy.local is not None and draws_by_default_generator(self.strategy.local, self.call)

    def run(self, operands: Sequence[Tensor], group: Collectives, seed: int | Callable[[], int] = 0, *, seeded: bool = False) -> Any:
        """The local output of the op on this rank, differentiable; `seeded` tells that the default generator has its seed already."""
        args = map_refs(self.args, lambda ref: operands[ref.value])
        kwargs = map_refs(dict(self.kwargs), lambda ref: operands[ref.value])
        if self.is_plain:
            return call_functional(self.target, self.written, args, kwargs)
        local = LocalCall(args, kwargs, self.call, self.strategy, self.mesh, group, seed if callable(seed) else lambda: seed)
        if seeded or not self.draws_by_default_generator:
            return self.target(local)
        with default_generator_of(local.seed, local.shard, self._device_of(operands)):
            return self.target(local)

    def _device_of(self, operands: Sequence[Tensor]) -> torch.device:
        return operands[0].device if operands else torch.device(self.kwargs.get("device") or "cpu")


def localize(call: Call, strategy: Strategy, mesh: Mesh, device: torch.device | None = None) -> LocalOp:
    """`call` under `strategy`: local sizes among its arguments, `device` in place of the one that capture saw."""
    args, kwargs = call.args, dict(call.kwargs)
    if device is not None and kwargs.get("device") is not None:
        kwargs["device"] = device
    if device is not None:
        args = tuple(device if isinstance(arg, torch.device) else arg for arg in args)
    if strategy.local is not None:
        return LocalOp(call, strategy, mesh, local_implementation(strategy.local), args, kwargs)
    shapes = tuple(local_shape(spec.shape, forward_of(state), mesh) for spec, state in zip(call.outputs, strategy.makes, strict=True))
    rule = rule_of(call.op)
    if rule is not None and rule.localize is not None:
        args, kwargs = rule.localize(replace(call, args=args, kwargs=kwargs), shapes)
    name = rule and rule.runs_as or call.op
    written = _written(torch_op(name), args, kwargs)
    return LocalOp(call, strategy, mesh, torch_op(name) if written else BINDINGS.get(name) or torch_op(name), args, kwargs, written)


def run_functional(op: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    """The result of the op called `op` on whole tensors; new values of arguments that it writes to are its further outputs."""
    target = torch_op(op)
    return call_functional(target, _written(target, args, kwargs), args, kwargs)


def _written(target: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[int, ...]:
    return written_arguments(target, args, kwargs) if isinstance(target, OpOverload) else ()


def torch_op(name: str) -> Callable[..., Any]:
    """The torch operator called `aten.linear.default`, or the Python function called `_operator.mul`."""
    if name.startswith("_operator."):
        return getattr(operator, name.removeprefix("_operator."))
    return resolve(name)
