"""Batches to train on: bytes of a text as tokens, or the model's own example again and again."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from autoplan.errors import TargetError
from autoplan.graph.ir import Graph, Ref

Batch = Mapping[str, Any]
"""A global batch: every leaf of the call by its name."""

# Labels of the first are the next tokens; models with the second (Hugging Face's) shift labels themselves.
_TOKENS = ("tokens", "input_ids")
_LABELS = ("labels", "targets")


@dataclass(frozen=True)
class Text:
    """Random windows of a text, one byte a token; every rank draws the same windows."""

    text: Tensor  # uint8
    example: Batch
    seed: int

    def batch(self, step: int) -> Batch:
        """The global batch of a step."""
        name = next(name for name in _TOKENS if name in self.example)
        rows, length = self.example[name].shape
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + step)
        starts = torch.randint(0, len(self.text) - length, (rows,), generator=generator)
        windows = torch.stack([self.text[start : start + length + 1] for start in starts.tolist()]).long()
        tokens = windows[:, :-1]
        labels = windows[:, 1:] if name == "tokens" else tokens
        drawn = {name: tokens, **{label: labels for label in _LABELS if label in self.example}}
        return {**self.example, **{key: value.contiguous().to(self.example[key].dtype) for key, value in drawn.items()}}


def open_text(path: str, example: Batch, graph: Graph, seed: int) -> Callable[[int], Batch]:
    """Batches of the text at `path`, by step; raises TargetError for a model that cannot read it."""
    name = next((name for name in _TOKENS if isinstance(example.get(name), Tensor) and example[name].dim() == 2), None)
    if name is None:
        raise TargetError(
            f"--data needs an input called {' or '.join(_TOKENS)} of shape [batch, seq]", where=f"the model's inputs: {', '.join(example)}"
        )
    labels = {label: example[label] for label in _LABELS if isinstance(example.get(label), Tensor)}
    if other := [f"{label} of shape {list(tensor.shape)}" for label, tensor in labels.items() if tensor.shape != example[name].shape]:
        raise TargetError(
            f"--data gives each token a label, and the model has {', '.join(other)}", where=f"{name} {list(example[name].shape)}"
        )
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise TargetError(f"the data cannot be read: {error.strerror}", where=path) from None
    length = example[name].shape[1]
    if len(content) <= length + 1:
        raise TargetError(f"{path} has {len(content)} bytes, a sequence takes {length + 1}", next_step="give a longer text")
    vocabulary = _vocabulary(graph, name)
    if vocabulary is not None and vocabulary <= max(content):
        raise TargetError(
            f"{path} has byte {max(content)}, and the model's vocabulary {vocabulary} tokens",
            next_step="build it with at least 256, e.g. --set vocab_size=256",
        )
    text = torch.frombuffer(bytearray(content), dtype=torch.uint8)
    return Text(text, example, seed).batch


def _vocabulary(graph: Graph, name: str) -> int | None:
    """How many tokens the embedding that reads an input knows."""
    value = next(value for value in graph.inputs if graph.values[value].address == f"inputs/{name}")
    for node, position in graph.consumers[value]:
        if node.name == "aten.embedding" and position == 1 and isinstance(node.args[0], Ref):
            return graph.values[node.args[0].value].shape[0]
    return None
