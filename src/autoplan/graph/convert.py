"""An `ExportedProgram` as our `Graph`: one list of functional ops with addresses, and nothing that only torch needs.

What the exported graph starts from is declared, its calls are walked (`walk`), then what no output needs is dropped and
ops are named: ordinals count the ops that any of forward's outputs needs, whichever outputs are kept.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, fx, nn
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind, OutputKind

from autoplan.errors import TargetError
from autoplan.graph.copies import Copies
from autoplan.graph.draft import Draft, Place, describe
from autoplan.graph.ir import Graph, Parameter, Ref
from autoplan.graph.repeats import BlockCall
from autoplan.graph.routing import fuse_routed_experts
from autoplan.graph.trees import leaf_paths
from autoplan.graph.walk import Walk


def convert(
    exported: ExportedProgram,
    module: nn.Module,
    inputs: Mapping[str, Any],
    *,
    mode: str,
    keep_outputs: bool,
    blocks: Sequence[BlockCall] = (),
) -> Graph:
    """The graph of an exported forward; `inputs` are the leaves of the call by name, in the order of its placeholders.

    `blocks` are the calls that the marks in it refer to; raises Unlike where these do not hold what they claim.
    """
    draft = Draft()
    placeholders, state = _declare(draft, exported, module, inputs, trains=mode == "train")
    walk = Walk(draft, placeholders, Copies(draft, blocks, state))
    results = walk.run(exported.graph_module, grad=True, place=Place("", "forward"))
    outputs, mutations = _results(exported, walk, results)
    if not outputs:
        raise TargetError("forward returns no tensor", next_step="return the loss, or the tensors wanted")
    walk.check_blocks([*(value for _, value in outputs), *mutations.values()])
    loss = _loss(draft, outputs) if mode == "train" else None
    draft.keep([*(value for _, value in outputs), *mutations.values()])
    fuse_routed_experts(draft)
    draft.keep([*(value for _, value in outputs), *mutations.values()])
    draft.name_calls()
    if loss is not None and not keep_outputs:
        outputs = [("loss", loss)]
    draft.keep([*(value for _, value in outputs), *mutations.values()])
    return draft.freeze(outputs, loss, mutations)


def _declare(
    draft: Draft, exported: ExportedProgram, module: nn.Module, inputs: Mapping[str, Any], *, trains: bool
) -> tuple[dict[fx.Node, Any], dict[str, int]]:
    """Declare inputs, parameters and buffers, also unused ones.

    What every placeholder stands for, a `Ref` or a literal; and the values of parameters and buffers by all their names.
    """
    leaves: list[Any] = []
    for name, leaf in inputs.items():
        if isinstance(leaf, Tensor):
            draft.inputs.append(draft.declare("input", f"inputs/{name}", leaf))
        leaves.append(Ref(draft.inputs[-1]) if isinstance(leaf, Tensor) else leaf)
    parameters = _declare_parameters(draft, module, trains)
    owners: dict[int, int] = {}
    for fqn, buffer in module.named_buffers(remove_duplicate=False):
        if id(buffer) not in owners:
            owners[id(buffer)] = draft.declare("buffer", fqn, buffer)
        draft.buffers[fqn] = owners[id(buffer)]

    stands_for: dict[fx.Node, Any] = {}
    user_inputs = iter(leaves)
    nodes = [node for node in exported.graph.nodes if node.op == "placeholder"]
    for node, spec in zip(nodes, exported.graph_signature.input_specs, strict=True):
        if spec.kind is InputKind.USER_INPUT:
            stands_for[node] = leaf = next(user_inputs)
            if isinstance(leaf, Ref):
                draft.values[leaf.value].example = node.meta["val"]
        elif spec.kind is InputKind.PARAMETER:
            stands_for[node] = Ref(parameters[spec.target])
        elif spec.kind is InputKind.BUFFER:
            stands_for[node] = Ref(draft.buffers[spec.target])
        elif spec.kind is InputKind.CONSTANT_TENSOR:
            stands_for[node] = Ref(draft.declare_constant(spec.target, exported.constants[spec.target], node.meta["val"]))
        else:
            raise TargetError(
                f"the model takes {spec.target}, a {spec.kind.name.lower()}", next_step="autoplan plans models whose inputs are tensors"
            )
    assert next(user_inputs, None) is None, "export has fewer inputs than the call"
    return stands_for, parameters | draft.buffers


def _declare_parameters(draft: Draft, module: nn.Module, trains: bool) -> dict[str, int]:
    """One value per entry of `named_parameters()`; every name, tied ones too, with the value it stands for."""
    names: dict[int, list[str]] = defaultdict(list)
    for fqn, parameter in module.named_parameters(remove_duplicate=False):
        names[id(parameter)].append(fqn)
    by_name: dict[str, int] = {}
    for fqn, parameter in module.named_parameters():
        value = draft.declare("parameter", fqn, parameter, needs_grad=trains and parameter.requires_grad)
        tied = names[id(parameter)]
        draft.parameters.append(Parameter(fqn, value, tuple(name for name in tied if name != fqn), parameter.requires_grad))
        by_name.update(dict.fromkeys(tied, value))
    return by_name


def _results(exported: ExportedProgram, walk: Walk, results: list[Any]) -> tuple[list[tuple[str, int]], dict[str, int]]:
    """(name, value) of every tensor that forward returns, and the buffers that forward overwrote."""
    specs = exported.graph_signature.output_specs
    names = iter([".".join(path) or "output" for path in leaf_paths(exported.call_spec.out_spec)])
    outputs, mutations = [], walk.overwritten_buffers()
    for spec, result in zip(specs, results, strict=True):
        value = walk.value(result)
        if spec.kind is OutputKind.USER_OUTPUT:
            name = next(names)
            if isinstance(value, Ref):
                outputs.append((f"output.{name}" if name[0].isdigit() else name, value.value))
        elif spec.kind is OutputKind.BUFFER_MUTATION and value.value not in mutations.values():
            mutations[spec.target] = value.value
    return outputs, mutations


def _loss(draft: Draft, outputs: list[tuple[str, int]]) -> int:
    """The value to differentiate: `.loss`, else the first scalar float."""
    scalars = [
        (name, value)
        for name, value in outputs
        if draft.values[value].example.dtype.is_floating_point and draft.values[value].example.dim() == 0
    ]
    if not scalars:
        listed = ", ".join(f"{name} {describe(draft.values[value].example)}" for name, value in outputs)
        raise TargetError(
            f"training needs a scalar loss, and forward returns none: {listed}",
            next_step="return the loss first or as .loss, or plan with --mode infer",
        )
    name, loss = next((scalar for scalar in scalars if scalar[0] == "loss"), scalars[0])
    if not draft.values[loss].needs_grad:
        raise TargetError(
            f"the loss ({name}) needs no gradient: no trainable parameter reaches it",
            next_step="look for requires_grad=False, no_grad or detach, or plan with --mode infer",
        )
    return loss
