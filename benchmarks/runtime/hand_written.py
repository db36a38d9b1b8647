"""Parallel training of our Llama as one writes it by hand, from the recipes that PyTorch documents: DDP, FSDP2, tensor parallel, both.

Layers are compiled one by one; with `compile_head`, final norm, head and loss as one function too. Shapes: B batch, T sequence,
V vocabulary.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed._functional_collectives import AsyncCollectiveTensor
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Replicate, Shard
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    PrepareModuleInput,
    RowwiseParallel,
    SequenceParallel,
    loss_parallel,
    parallelize_module,
)
from torch.nn.parallel import DistributedDataParallel

from autoplan.models.llama import Llama
from autoplan.runtime.storage.weights import initialize


@dataclass(frozen=True)
class Recipe:
    """`kind` is "alone", "ddp", "fsdp", "tp" or "fsdp+tp"; `recompute` runs every layer again in backward."""

    kind: str
    compile_layers: bool
    compile_head: bool
    recompute: bool


class HandWritten(nn.Module):
    """The parts of `Llama` called in order, with a head that parallel styles know: tokens, labels[B, T] -> the mean loss."""

    def __init__(self, model: Llama) -> None:
        super().__init__()
        self.embed = model.embed
        self.rope = model.rope
        self.layers = model.layers
        self.norm = model.norm
        vocabulary, dim = model.head.weight.shape
        self.output = nn.Linear(dim, vocabulary, bias=False, device="meta")
        self.output.weight = model.head.weight
        self.compiled_loss: Callable[..., Tensor] | None = None

    def forward(self, tokens: Tensor, labels: Tensor) -> Tensor:
        x = arrived(self.embed(tokens))
        cos, sin = self.rope(x.dtype)
        for layer in self.layers:
            x = layer(x, cos, sin)
        if self.compiled_loss is not None:
            return self.compiled_loss(self.norm.weight, self.norm.eps, self.output.weight, x, labels)
        return F.cross_entropy(self.output(self.norm(x)).flatten(0, 1).float(), labels.flatten())


def arrived(x: Tensor) -> Tensor:
    """A plain tensor: torch 2.13 loses the type of the gradient of one that is under way into a compiled layer."""
    return x.clone() if isinstance(x, AsyncCollectiveTensor) else x


def norm_head_loss(norm: Tensor, eps: float, head: Tensor, x: Tensor, labels: Tensor) -> Tensor:
    """The end of the model as one function, so that the logits[B, T, V] in fp32 need not be materialised."""
    logits = F.linear(F.rms_norm(x, norm.shape, norm, eps), head)
    return F.cross_entropy(logits.flatten(0, 1).float(), labels.flatten())


def hand_written(model: Llama, recipe: Recipe, mesh: DeviceMesh, device: torch.device) -> nn.Module:
    """`model`, whose parameters are on meta, distributed over `mesh` (axes "dp" and "tp") with weights on `device`."""
    module = HandWritten(model)
    splits_tensors = mesh["tp"].size() > 1
    if splits_tensors:
        split_tensors(module, mesh["tp"])
    for name, layer in list(module.layers.named_children()):
        if recipe.recompute:
            layer = checkpoint_wrapper(layer, preserve_rng_state=False)
        if recipe.compile_layers:
            layer.compile(dynamic=False)
        module.layers.register_module(name, layer)
    if recipe.compile_head:
        module.compiled_loss = torch.compile(norm_head_loss, dynamic=False)
    if recipe.kind.startswith("fsdp"):
        for layer in module.layers:
            fully_shard(layer, mesh=mesh["dp"])
        fully_shard(module, mesh=mesh["dp"])
    with_memory(module, device)
    if recipe.kind == "ddp":
        return DistributedDataParallel(module, process_group=mesh["dp"].get_group(), gradient_as_bucket_view=True)
    return module


def split_tensors(module: HandWritten, mesh: DeviceMesh) -> None:
    """Megatron's layout with sequence parallelism between the matrices, as PyTorch's tensor-parallel tutorial writes it."""
    ends = {
        "embed": RowwiseParallel(input_layouts=Replicate(), output_layouts=Shard(1)),
        "norm": SequenceParallel(),
        "output": ColwiseParallel(input_layouts=Shard(1), output_layouts=Shard(-1), use_local_output=False),
    }
    layer = {
        "attn_norm": SequenceParallel(),
        "attn": PrepareModuleInput(input_layouts=(Shard(1), None, None), desired_input_layouts=(Replicate(), None, None)),
        "ffn_norm": SequenceParallel(),
        "mlp": PrepareModuleInput(input_layouts=(Shard(1),), desired_input_layouts=(Replicate(),)),
        **{name: ColwiseParallel() for name in ("attn.wq", "attn.wk", "attn.wv", "mlp.w1", "mlp.w3")},
        **{name: RowwiseParallel(output_layouts=Shard(1)) for name in ("attn.wo", "mlp.w2")},
    }
    parallelize_module(module, mesh, ends)
    for block in module.layers:
        parallelize_module(block, mesh, layer)


def with_memory(module: nn.Module, device: torch.device) -> None:
    """Parameters get memory and values, buffers, which have values, move: `to_empty` would lose those."""
    buffers = {name: buffer.to(device) for name, buffer in module.named_buffers()}
    module.to_empty(device=device)
    for name, buffer in buffers.items():
        owner, _, last = name.rpartition(".")
        module.get_submodule(owner)._buffers[last] = buffer
    initialize(module, 0)


def backward_context(mesh: DeviceMesh) -> contextlib.AbstractContextManager[object]:
    """What the loss and its backward run in: where the vocabulary is split, cross-entropy works on the parts."""
    return loss_parallel() if mesh["tp"].size() > 1 else contextlib.nullcontext()


def local_value(loss: Tensor) -> Tensor:
    """The loss as a plain tensor."""
    return loss.full_tensor() if isinstance(loss, DTensor) else loss
