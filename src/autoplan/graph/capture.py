"""Capture: a module and example inputs become a `Graph`, without weights and without a GPU.

`torch.export` runs the user's forward once on fake tensors: shapes without storage, on a fixed device (the CPU), whatever
device the module is on. So plan time and run time see the same graph, an 8B model needs no memory, and tensors that
forward makes from literals are real and keep their values.
"""

from __future__ import annotations

import io
import logging
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext, redirect_stderr, redirect_stdout, suppress
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.utils._pytree as pytree
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.export import ExportedProgram

from autoplan.errors import AutoplanError, TargetError
from autoplan.graph.batchnorm import capturable_batch_norms
from autoplan.graph.convert import convert
from autoplan.graph.grouped_mm import grouped_products_in_all_dtypes
from autoplan.graph.ir import Graph
from autoplan.graph.repeats import Repeats
from autoplan.graph.source import source_of_exception
from autoplan.graph.trees import bound_arguments, input_leaves

Mode = Literal["train", "infer"]
CAPTURE_DEVICE = "cpu"


def capture(
    module: nn.Module,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any] | None = None,
    *,
    mode: Mode,
    keep_outputs: bool = False,
    every_copy: bool = False,
) -> Graph:
    """The graph of one forward of `module`; parameters, buffers and inputs may be real or on meta, and are not touched.

    In training the loss is the first scalar float of the output or its `.loss`, and the only output unless
    `keep_outputs`. Dropped are ops that no output needs, also random ones: the numbers that dropout draws are not a
    promise. Raises TargetError, naming the op or the user's line, for a model that cannot be captured.

    Of repeated blocks only two copies are exported, where it can be told that the others are the same; the graph is the one
    that exporting `every_copy` gives.
    """
    kwargs = dict(kwargs or {})
    inputs = input_leaves(module.forward, args, kwargs)

    def captured(repeats: Repeats | None) -> Graph:
        fake = _Faker(FakeTensorMode(allow_non_fake_inputs=True))
        with _in_mode(module, mode), _without_storage(module, fake), capturable_batch_norms():
            call = fake.arguments(module.forward, args, kwargs)
            with repeats.recorded() if repeats else nullcontext():
                exported = _export(module, *call)
            calls = repeats.calls if repeats else ()
            return convert(exported, module, inputs, mode=mode, keep_outputs=keep_outputs, blocks=calls)

    repeats = Repeats(module)
    if repeats.possible and not every_copy:
        with suppress(Exception):  # Unlike, or an op that cannot take what stands for a layer's number: a model's own error comes again
            return captured(repeats)
    return captured(None)


class _Faker:
    """Fake twins of tensors, one per tensor, so that ties stay ties."""

    def __init__(self, mode: FakeTensorMode) -> None:
        self.mode = mode
        self._twins: dict[int, tuple[Tensor, Tensor]] = {}  # keeps the original too: its id must not be used again

    def __call__(self, tensor: Tensor) -> Tensor:
        if id(tensor) not in self._twins:
            with self.mode:
                twin = torch.empty_strided(tensor.size(), tensor.stride(), dtype=tensor.dtype, device=CAPTURE_DEVICE)
            if isinstance(tensor, nn.Parameter):
                twin = nn.Parameter(twin, requires_grad=tensor.requires_grad)
            self._twins[id(tensor)] = (tensor, twin)
        return self._twins[id(tensor)][1]

    def arguments(
        self, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The call's arguments with fake tensors, keywords in the order of the signature."""
        order = {name: i for i, (name, _) in enumerate(bound_arguments(forward, args, kwargs))}
        kwargs = dict(sorted(kwargs.items(), key=lambda item: order[item[0]]))
        return pytree.tree_map_only(Tensor, self, (args, kwargs))


@contextmanager
def _in_mode(module: nn.Module, mode: Mode) -> Iterator[None]:
    """`module.train()` or `.eval()`, each submodule's own flag restored afterwards; gradients recorded in both."""
    flags = [(m, m.training) for m in module.modules()]
    module.train(mode == "train")
    try:
        with torch.enable_grad():
            yield
    finally:
        for m, flag in flags:
            m.training = flag


@contextmanager
def _without_storage(module: nn.Module, fake: _Faker) -> Iterator[None]:
    """The module with fake parameters and buffers, its own put back afterwards.

    Plain tensor attributes become constants and keep their values; one on meta has none and is faked as well, so that
    forward runs, and is refused only where the graph reads it. Attributes that forward sets do not stay either: they
    would be fakes.
    """
    saved: list[tuple[dict[str, Any], dict[str, Any]]] = []
    for m in list(module.modules()):
        tables: tuple[dict[str, Any], ...] = (m._parameters, m._buffers, vars(m))
        saved += [(table, dict(table)) for table in tables]
        for table in tables[:2]:
            table.update({name: fake(tensor) for name, tensor in table.items() if tensor is not None})
        elsewhere = {name: value for name, value in vars(m).items() if isinstance(value, Tensor) and value.device.type != CAPTURE_DEVICE}
        vars(m).update({name: fake(value) if value.is_meta else value.to(CAPTURE_DEVICE) for name, value in elsewhere.items()})
    try:
        yield
    finally:
        for table, original in saved:
            table.clear()
            table.update(original)


def _export(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> ExportedProgram:
    try:
        with _one_message_on_failure(), grouped_products_in_all_dtypes():
            return torch.export.export(module, args, kwargs, strict=False)
    except AutoplanError:
        raise
    except Exception as error:
        raise _explained(error) from None


@contextmanager
def _one_message_on_failure() -> Iterator[None]:
    """What forward and torch print goes to stderr, and to nowhere if export fails: torch then prints its whole graph."""
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    printed = io.StringIO()
    try:
        with redirect_stdout(printed), redirect_stderr(printed):
            yield
        sys.stderr.write(printed.getvalue())
    finally:
        logging.disable(disabled)


@dataclass(frozen=True)
class _Cause:
    """Words that an export failure's messages contain, and what they mean to the user."""

    words: tuple[str, ...]
    what: str
    next_step: str


_CAUSES = (
    _Cause(
        ("DataDependentOutput", "data-dependent", "data dependent", "_local_scalar_dense", "GuardOnDataDependent", "unbacked"),
        "forward depends on the values of a tensor (.item(), or an if or a loop on a tensor)",
        "decide it from shapes or from the configuration, or use torch.where",
    ),
    _Cause(
        ("DynamicOutputShape", "dynamic shape operator"),
        "an op gives a tensor whose shape depends on values",
        "use a form of fixed shape: a mask with torch.where in place of boolean indexing or nonzero",
    ),
    _Cause(("two different devices",), "forward mixes tensors of two devices", "make tensors inside forward on the device of an input, e.g. device=x.device"),
    _Cause(("Unsupported input type", "not a known type", "register_pytree_node"), "an input or output of a type torch.export does not know", "use tensors in tuples, lists, dicts and dataclasses registered as pytrees"),
)  # fmt: skip


def _explained(error: Exception) -> TargetError:
    """The failure in the user's terms: what, at which line, what next."""
    text = f"{type(error).__name__}: {error}"
    where = source_of_exception(error)
    cause = next((cause for cause in _CAUSES if any(word in text for word in cause.words)), None)
    said = _first_line(text)
    if cause is None:
        return TargetError(
            f"torch.export cannot capture the model: {said}",
            where=where,
            next_step="the model must run under torch.export.export(strict=False)",
        )
    return TargetError(f"torch.export cannot capture the model: {cause.what}\n  {said}", where=where, next_step=cause.next_step)


def _first_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    line = lines[0] if lines else "no reason given"
    return line if len(line) <= 160 else f"{line[:160]} ..."
