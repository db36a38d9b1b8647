"""A binding in Python does what its op does: the same values and gradients, to the last bit."""

from __future__ import annotations

from collections.abc import Callable
from itertools import count
from typing import Any

import pytest
import torch
from example_calls import CALLS, Example, Fixed, cases, redrawn, trained
from torch import Tensor

from autoplan.graph.ops import resolve
from autoplan.rules.bindings import BINDINGS

FORMS = 4  # of each call in the catalogue, which leaves the others to chance


def examples() -> dict[str, list[Example]]:
    """By op, the calls of it by which rows are proved."""
    found: dict[str, list[Example]] = {op: [] for op in BINDINGS}
    made = [redrawn(case, number) for number, case in enumerate(cases().values())]
    made += [make(Fixed(form=form)) for make in CALLS.values() for form in range(FORMS)]
    for example in made:
        found.setdefault(example.op, []).append(example)
    return found


EXAMPLES = examples()


@pytest.mark.parametrize("op", BINDINGS)
def test_a_binding_gives_what_its_op_gives(op: str) -> None:
    assert EXAMPLES[op], "add a call of it to CALLS (example_calls.py) or to a CASES"
    for example in EXAMPLES[op]:
        for ours, torchs in zip(outcome(BINDINGS[op], example), outcome(resolve(op), example), strict=True):
            assert torch.equal(ours, torchs)


def outcome(call: Callable[..., Any], example: Example) -> list[Tensor]:
    """Outputs, then the gradients of their sum; what is random draws the same each time."""
    torch.manual_seed(0)
    numbers = count()
    args = [trained(arg, example.frozen, numbers) for arg in example.args]
    result = call(*args, **example.kwargs)
    outputs = [result] if isinstance(result, Tensor) else list(result)
    leaves = [leaf for arg in args for leaf in (arg if isinstance(arg, list) else [arg]) if isinstance(leaf, Tensor) and leaf.requires_grad]
    if not any(output.requires_grad for output in outputs):
        return outputs
    total = torch.stack([output.sum() for output in outputs if output.requires_grad]).sum()
    return outputs + [gradient for gradient in torch.autograd.grad(total, leaves, allow_unused=True) if gradient is not None]
