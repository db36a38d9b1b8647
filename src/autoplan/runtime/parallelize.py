"""`parallelize`: a user's module runs as its plan says, its parameters distributed under their own names.

The module keeps its structure: every parameter becomes a DTensor parameter in its stored placement, and only forward is
another, the local program of the captured graph. Optimizer, checkpoints and the training loop stay the user's.
"""

from __future__ import annotations

import copy
import inspect
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh

from autoplan.collectives.process_group import ProcessGroupCollectives
from autoplan.errors import TargetError, UsageError
from autoplan.graph import graph_digest, input_leaves
from autoplan.placement import Mesh
from autoplan.plan.load import load_plan
from autoplan.plan.schema import Plan
from autoplan.runtime.held import Held
from autoplan.runtime.inputs import as_dtensor, local_inputs
from autoplan.runtime.leaves import Leaves
from autoplan.runtime.optimizers import run_fused_optimizers_locally
from autoplan.runtime.place import leave_norms_unremarked, notes_on, place_buffers, place_parameters
from autoplan.runtime.prepare import STORED_DTYPE, Prepared, Template, check_model, make_template, plan_digest, prepare
from autoplan.runtime.program.program import Program, build_program
from autoplan.runtime.program.replay import check_replayable
from autoplan.runtime.program.run import Run
from autoplan.runtime.ranks.agreement import check_agreement, check_device_mesh, check_hosts, check_world, launch_facts
from autoplan.runtime.shards import local_part
from autoplan.runtime.storage.differences import folded


def parallelize(
    module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any] | None, plan: Plan | str | Path, device_mesh: DeviceMesh
) -> nn.Module:
    """`module` itself, distributed over `device_mesh` and running as `plan` says.

    `args` and `kwargs` are example inputs of global shape, on any device. Real parameters are cut, each rank keeping its
    part; those on meta become uninitialised memory. Forward takes each rank's part of the inputs, or DTensors as the
    plan places them, and returns the loss, equal on all ranks (in inference DTensors). A training plan that keeps outputs
    returns all of them by name, of each the rank's own part. Raises PlanError for a plan that is not this model's, UsageError
    for a mesh that is not the plan's, or a module that is parallel already.
    """
    if isinstance(module, _Parallel):
        raise UsageError("the module is parallel already: it runs as one plan says", next_step="build it anew for another plan")
    name = str(plan) if isinstance(plan, str | Path) else plan.provenance.source
    plan = load_plan(plan) if isinstance(plan, str | Path) else plan
    check_world(plan.mesh, name)
    check_device_mesh(plan.mesh, device_mesh)
    check_agreement(launch_facts())
    _note(check_hosts(plan, int(os.environ.get("LOCAL_WORLD_SIZE", plan.mesh.size))))
    check_model(module, plan)
    template = make_template(module, args, dict(kwargs or {}), plan)
    return distribute(module, template, device_mesh, STORED_DTYPE[plan.options.precision])


def distribute(module: nn.Module, template: Template, device_mesh: DeviceMesh, dtype: torch.dtype) -> nn.Module:
    """`parallelize` of a module whose template is made: prepare, agree, place parameters and buffers, replace forward."""
    training = template.plan.options.mode == "train"
    prepared = prepare(template, training)
    check_agreement({"plan": plan_digest(template.plan), "graph": graph_digest(prepared.assignment.graph), "torch": torch.__version__})
    for note in (prepared.note, *notes_on(module, trains=training)):
        _note(note)
    local = attach(module, prepared, device_mesh, dtype)
    local.template = template
    leaves = input_leaves(template.module.forward, template.args, template.kwargs)
    local.literals = {name: leaf for name, leaf in leaves.items() if not isinstance(leaf, Tensor)}
    return module


def _note(text: str | None) -> None:
    """Prose, of rank 0 alone."""
    if text and dist.get_rank() == 0:
        print(text, file=sys.stderr)


def attach(module: nn.Module, prepared: Prepared, device_mesh: DeviceMesh, dtype: torch.dtype) -> LocalForward:
    """Place a module's parameters and buffers as the assignment says, and let its forward be the local program."""
    device = mesh_device(device_mesh)
    mesh = prepared.assignment.mesh
    signature = module.forward
    place_parameters(module, prepared.assignment, device_mesh, device, dtype)
    place_buffers(module, device)
    local = LocalForward(prepared, ProcessGroupCollectives(mesh, all_groups(mesh)), device_mesh, device, Held(module), signature)
    run_fused_optimizers_locally()
    leave_norms_unremarked()
    cls = type(module)
    module.__class__ = type(f"Parallel{cls.__name__}", (_Parallel, cls), {"__module__": cls.__module__})
    module.__dict__["_autoplan"] = local
    return local


def all_groups(mesh: Mesh) -> list[tuple[int, ...]]:
    """Every set of axes over which a collective may run."""
    return [axes for count in range(1, mesh.ndim + 1) for axes in combinations(range(mesh.ndim), count)]


def mesh_device(device_mesh: DeviceMesh) -> torch.device:
    """The device of this rank."""
    if device_mesh.device_type == "cuda":
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device(device_mesh.device_type)


def local_forward(module: nn.Module) -> LocalForward:
    """What runs in place of a parallel module's forward; raises UsageError for a module that is not parallel."""
    if not isinstance(module, _Parallel):
        raise UsageError(f"this {type(module).__name__} is not parallel", next_step="give what autoplan.parallelize returned")
    return module.__dict__["_autoplan"]


class _Parallel(nn.Module):
    """Mixed into the class of a parallel module. Copies of it (averaged weights) run as it does; processes cannot be pickled."""

    def __copy__(self) -> _Parallel:
        copied = type(self).__new__(type(self))
        copied.__dict__.update(self.__dict__)
        return copied

    def __deepcopy__(self, memo: dict[int, Any]) -> _Parallel:
        copied = memo[id(self)] = type(self).__new__(type(self))
        copied.__dict__.update(copy.deepcopy(self.__dict__, memo))
        return copied

    def __reduce_ex__(self, protocol: Any) -> Any:
        raise UsageError(
            "a parallel module belongs to its processes and cannot be pickled",
            next_step="write it with autoplan.save_checkpoint or autoplan.export_weights, or torch.save what state_dict() returns",
        )

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.__dict__["_autoplan"](self, args, kwargs)


class LocalForward:
    """Binds a call of the module to the local program of its mode: inputs, parameters and buffers in, outputs out.

    `seed` and the count of training steps seed random ops.
    """

    def __init__(
        self,
        prepared: Prepared,
        collectives: ProcessGroupCollectives,
        device_mesh: DeviceMesh,
        device: torch.device,
        held: Held,
        signature: Callable[..., Any],
    ) -> None:
        self.collectives = collectives
        self.device_mesh = device_mesh
        self.device = device
        self.template: Template | None = None
        self.literals: Mapping[str, Any] = {}  # the arguments that are no tensors, as they were captured
        self.seed = 0
        self.step = 0
        self.signature = signature
        self.trains = prepared.assignment.graph.loss is not None
        self._frozen = tuple(p.fqn for p in prepared.assignment.graph.parameters if not p.trainable)
        self._prepared = prepared
        self._programs = {self.trains: self._bind(prepared)}
        self._held = held
        self._replays = False
        self._checked: bool | None = None if self.trains else False  # the mode in which all parts of the module were seen to be

    def __deepcopy__(self, memo: dict[int, Any]) -> LocalForward:
        """For a copy of the module: the same programs and processes, seeds of its own."""
        copied = copy.copy(self)
        copied._programs = dict(self._programs)
        return copied

    @property
    def program(self) -> Program:
        """The program of the plan's own mode."""
        return self._programs[self.trains].program

    def loss_of(self, returned: Any) -> Tensor:
        """The loss in what a training call returned: that itself, or one of the outputs that the plan keeps."""
        graph = self.program.graph
        assert graph.loss is not None
        return returned[graph.output_names[graph.outputs.index(graph.loss)]] if isinstance(returned, Mapping) else returned

    def compile(self, *, whole: bool = False, cuda_graphs: bool = False, **options: Any) -> None:
        """Run the pieces of the plan's own mode through torch.compile, those that compute the same as one function.

        With `whole` all of it is one piece: calling one function takes the host less than calling one for each block, but every block
        is compiled anew, and parameters are gathered before the first block and reduced behind the last. With `cuda_graphs` what is
        compiled is recorded once and then replayed (torch's mode "reduce-overhead"). Both are for models so small that the device
        waits for the host. Raises UsageError where blocks recompute (`whole`) or where replaying would not do the same (`cuda_graphs`).
        """
        if whole:
            if self._prepared.recomputed:
                raise UsageError("a plan that recomputes blocks is compiled block by block", next_step="leave out --whole")
            self._programs[self.trains] = self._bind(self._prepared, whole=True)
        bound = self._programs[self.trains]
        if cuda_graphs:
            check_replayable(bound.program, self._held.now(), self.device)
            options = {"mode": "reduce-overhead"} | options
            bound.leaves.taken.borrowed = self._replays = True
        bound.program.compile(**options)

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        try:
            leaves = input_leaves(self.signature, args, kwargs)
        except TargetError as error:
            raise UsageError(f"a call that is none of forward{inspect.signature(self.signature)}: {error.__context__}") from None
        return self.call_by_name(module, leaves)

    def call_by_name(self, module: nn.Module, leaves: Mapping[str, Any]) -> Any:
        """The call whose arguments have these leaves."""
        bound = self._bound(module)
        graph = bound.program.graph
        assignment = bound.program.assignment
        tensors = local_inputs(graph, assignment.sources, assignment.mesh, leaves, self.device)
        self._check_literals(leaves)
        held = self._held_by(module)
        coordinate = self.collectives.coordinate
        for fqn, value in graph.buffers.items():
            tensors[value] = local_part(held[fqn], assignment.sources[value], assignment.mesh, coordinate)
        tensors.update(bound.constants)
        self.step += module.training
        with torch.set_grad_enabled(torch.is_grad_enabled() and graph.loss is not None):
            self._check_frozen(held)
            tensors.update(bound.leaves.local(held))
            outputs = bound.program(Run(self.collectives, self.seed + self.step), tensors)
            if self._replays:  # the next step overwrites what a graph gave
                outputs = tuple(output.clone() for output in outputs)
        _overwrite(held, dict(zip(bound.program.mutated, outputs[len(graph.outputs) :], strict=True)))
        return self._returned(bound.program, outputs[: len(graph.outputs)])

    def _held_by(self, module: nn.Module) -> Held:
        """What the module holds, which may be a copy of the one that was placed."""
        if self._held.module is not module:
            self._held = Held(module)
        return self._held.now()

    def _check_literals(self, leaves: Mapping[str, Any]) -> None:
        """Raises UsageError for an argument that is no tensor and has another value than the one that was captured."""
        for name, given in leaves.items():
            if isinstance(given, Tensor):
                continue
            planned = self.literals[name] if name in self.literals else self._default(name)
            if given is not planned and given != planned:
                raise UsageError(f"argument {name} is {given!r}; planned is {planned!r}", next_step="plan again for another value")

    def _check_frozen(self, parameters: Held) -> None:
        """Raises UsageError for a parameter that was frozen when it was planned: the plan brings no gradient of it together."""
        if not torch.is_grad_enabled() or self.device_mesh.size() == 1:
            return
        if thawed := [fqn for fqn in self._frozen if parameters[fqn].requires_grad]:
            raise UsageError(
                f"trained now, and frozen when it was planned: {', '.join(folded(thawed))}",
                next_step="plan with requires_grad=True; what is planned so may be frozen at any time",
            )

    def _default(self, name: str) -> Any:
        """What forward takes for an argument that is not given, as when it was captured; None where it names none."""
        parameter = inspect.signature(self.signature).parameters.get(name)
        return None if parameter is None or parameter.default is inspect.Parameter.empty else parameter.default

    def _bound(self, module: nn.Module) -> _Bound:
        """The program of the module's present mode, captured when it is first needed."""
        mode = self.trains and module.training
        if mode != self._checked:
            _check_mode(module)
            self._checked = mode
        if mode not in self._programs:
            assert self.template is not None, "made from an assignment of one mode"
            self._programs[mode] = self._bind(prepare(self.template, training=False))
        return self._programs[mode]

    def _bind(self, prepared: Prepared, *, whole: bool = False) -> _Bound:
        assignment = prepared.assignment
        segments = () if whole else prepared.segments
        program = build_program(assignment, prepared.groups, self.device, segments=segments, recomputed=prepared.recomputed)
        constants = {
            value: local_part(tensor, assignment.sources[value], assignment.mesh, self.collectives.coordinate).to(self.device)
            for value, tensor in program.graph.constants.items()
        }
        return _Bound(program, Leaves(program.graph, prepared.segments), constants)

    def _returned(self, program: Program, outputs: tuple[Tensor, ...]) -> Any:
        graph = program.graph
        if self.trains:
            named = dict(zip(graph.output_names, outputs, strict=True))
            return outputs[0] if len(outputs) == 1 else named
        placed = [
            as_dtensor(tensor, graph.values[value].shape, state, self.device_mesh)
            for value, tensor, state in zip(graph.outputs, outputs, program.assignment.outputs, strict=True)
        ]
        return placed[0] if len(placed) == 1 else dict(zip(graph.output_names, placed, strict=True))


@dataclass(frozen=True)
class _Bound:
    """A program with the parameters that it reads, and its constants on the device."""

    program: Program
    leaves: Leaves
    constants: Mapping[int, Tensor]


def _check_mode(module: nn.Module) -> None:
    """Raises UsageError where parts are in another mode than capture put them in, by the module's own `train`."""
    flags = [(name, part, part.training) for name, part in module.named_modules()]
    module.train(module.training)
    unlike = [name for name, part, flag in flags if part.training != flag]
    for _, part, flag in flags:
        part.training = flag
    if unlike:
        one, other = ("training", "eval") if module.training else ("eval", "training")
        shown = ", ".join(unlike[:4]) + (f" and {len(unlike) - 4} more" if len(unlike) > 4 else "")
        raise UsageError(
            f"the module is in {one} mode, and of its parts {shown} in {other} mode; a plan runs all of it in one",
            next_step=f"call {'train' if module.training else 'eval'}() on the whole module, or plan a class whose train() leaves these parts as they are",
        )


@torch.no_grad()
def _overwrite(buffers: Held, new: Mapping[str, Tensor]) -> None:
    """Copy new values into buffers; one that is memory of a buffer, which may be overwritten first, is copied before."""
    held = {buffers[fqn].untyped_storage().data_ptr() for fqn in new}
    safe = {fqn: tensor.clone() if tensor.untyped_storage().data_ptr() in held else tensor for fqn, tensor in new.items()}
    for fqn, tensor in safe.items():
        buffers[fqn].copy_(tensor)
