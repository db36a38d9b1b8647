"""Every rule on drawn calls: sizes that divide and that do not, empty and of size 1, dtypes, forms of the call, meshes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import count

import pytest
import torch
from example_calls import CALLS, HAS_TRANSFORMERS, Choice, Example, cases, trained
from hypothesis import HealthCheck, given, reject, settings
from hypothesis import strategies as st
from torch import Tensor

from autoplan.rules import all_rules
from autoplan.rules.execute import torch_op

SIZES = (6, 1, 2, 12, 3, 4, 5, 0)
MESHES = ((2,), (3,), (2, 2), (2, 3), (3, 2))
DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
STRATEGIES = 8  # of each drawn call, drawn at random where there are more


@dataclass(frozen=True, slots=True)
class Drawn:
    """A source that hypothesis decides."""

    data: st.DataObject
    dtype: torch.dtype

    def size(self) -> int:
        return self.choice(SIZES)

    def choice(self, options: Sequence[Choice]) -> Choice:
        return options[self.data.draw(st.integers(0, len(options) - 1))]

    def floats(self, *shape: int) -> Tensor:
        return torch.randn(shape, dtype=torch.float64).to(self.dtype)


@pytest.mark.parametrize("name", CALLS)
@settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.filter_too_much, HealthCheck.too_slow])
@given(st.data())
def test_every_rule_on_drawn_calls(prove_op: Callable[..., int], name: str, data: st.DataObject) -> None:
    torch.manual_seed(data.draw(st.integers(0, 999)))
    dtype = data.draw(st.sampled_from(DTYPES))
    example = CALLS[name](Drawn(data, dtype))
    if not runs(example):
        reject()  # torch itself refuses the call: an empty maximum, a dtype without kernel, sizes that do not go together
    mesh = data.draw(st.sampled_from(MESHES))
    prove_op(
        example.op,
        *example.args,
        **example.kwargs,
        frozen=example.frozen,
        meshes=(mesh,),
        limit=STRATEGIES,
        in_double=dtype == torch.float64,
    )


def test_every_rule_is_in_a_case() -> None:
    ops = {*(name.partition(",")[0] for name in CALLS), *(case[0] for case in cases().values())}
    proved = {name for op in ops for name in (op, op.rpartition(".")[0])}
    own = [rule.op for rule in all_rules() if rule.is_own and (HAS_TRANSFORMERS or not rule.op.startswith("transformers."))]
    assert not [op for op in own if op not in proved], "add these to CALLS (example_calls.py) or to a CASES"


def runs(example: Example) -> bool:
    """Whether torch runs the call on one device, forward and backward."""
    try:
        numbers = count()
        args = [trained(arg, example.frozen, numbers) for arg in example.args]
        result = torch_op(example.op)(*args, **example.kwargs)
        outputs = [result] if isinstance(result, Tensor) else [item for item in result if isinstance(item, Tensor)]
        flowing = [output for output in outputs if output.requires_grad]
        if flowing:
            torch.autograd.backward(flowing, [torch.ones_like(output, memory_format=torch.contiguous_format) for output in flowing])
        return True
    except (RuntimeError, IndexError, ValueError):
        return False
