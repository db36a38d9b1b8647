"""The table of saved tensors against what torch saves, and the bytes of states and temporaries."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from cost_calls import attention, call, linear, tensor
from torch import Tensor

from autoplan.cost.memory import ParameterBytes, Saved, saved, state_bytes, transient_bytes
from autoplan.graph.ir import Ref
from autoplan.rules.row import Call, TensorSpec

aten = torch.ops.aten
FLOAT = torch.float32


def spec_of(value: Tensor) -> TensorSpec:
    return TensorSpec(tuple(value.shape), str(value.dtype).removeprefix("torch."), value.requires_grad)


def really_saved(op: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Call, Saved]:
    """The call, and what its autograd nodes keep: operands and outputs by storage, other bytes once per storage."""
    operands: list[Tensor] = []

    def reference(argument: Any) -> Any:
        if isinstance(argument, Tensor):
            operands.append(argument)
            return Ref(len(operands) - 1)
        return [reference(item) for item in argument] if isinstance(argument, list) else argument

    kept: list[Tensor] = []
    call_args, call_kwargs = tuple(map(reference, args)), {key: reference(value) for key, value in kwargs.items()}

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        result = op(*args, **kwargs)
    outputs = [result] if isinstance(result, Tensor) else list(result)
    of_operand = {t.untyped_storage().data_ptr(): k for k, t in enumerate(operands)}
    of_output = {t.untyped_storage().data_ptr(): j for j, t in enumerate(outputs)}
    extra: dict[int, int] = {}
    found_operands, found_outputs = set(), set()
    for t in kept:
        where = t.untyped_storage().data_ptr()
        if where in of_operand:
            found_operands.add(of_operand[where])
        elif where in of_output:
            found_outputs.add(of_output[where])
        else:
            extra[where] = t.untyped_storage().nbytes()
    found = Saved(frozenset(found_operands), frozenset(found_outputs), sum(extra.values()))
    return Call(str(op), call_args, call_kwargs, tuple(map(spec_of, operands)), tuple(map(spec_of, outputs)), 1), found


def t(*shape: int, grad: bool = True) -> Tensor:
    return (torch.rand(*shape) + 0.5).requires_grad_(grad)


INDEX, MASK = torch.zeros(4, dtype=torch.int64), torch.tensor([True, False, True, False])
CASES: dict[str, tuple[Any, ...]] = {
    "linear": (aten.linear.default, (t(2, 3, 8), t(4, 8), t(4)), {}),
    "linear, frozen weight": (aten.linear.default, (t(2, 3, 8), t(4, 8, grad=False)), {}),
    "linear, first layer": (aten.linear.default, (t(2, 3, 8, grad=False), t(4, 8)), {}),
    "addmm": (aten.addmm.default, (t(4), t(3, 8), t(8, 4)), {}),
    "mm": (aten.mm.default, (t(3, 8), t(8, 4)), {}),
    "bmm": (aten.bmm.default, (t(2, 3, 8), t(2, 8, 4)), {}),
    "matmul": (aten.matmul.default, (t(2, 2, 3, 8), t(2, 2, 8, 4)), {}),
    "conv2d": (aten.conv2d.default, (t(1, 2, 5, 5), t(3, 2, 2, 2), t(3)), {}),
    "add": (aten.add.Tensor, (t(2, 3), t(2, 3)), {}),
    "sub": (aten.sub.Tensor, (t(2, 3), t(2, 3)), {}),
    "mul": (aten.mul.Tensor, (t(2, 3), t(2, 3)), {}),
    "mul by a constant tensor": (aten.mul.Tensor, (t(2, 3), t(2, 3, grad=False)), {}),
    "mul by a number": (aten.mul.Tensor, (t(2, 3), 2.0), {}),
    "div": (aten.div.Tensor, (t(2, 3), t(2, 3)), {}),
    "div by a constant tensor": (aten.div.Tensor, (t(2, 3), t(2, 3, grad=False)), {}),
    "div by a number": (aten.div.Tensor, (t(2, 3), 2.0), {}),
    "pow": (aten.pow.Tensor_Scalar, (t(2, 3), 2), {}),
    "maximum": (aten.maximum.default, (t(2, 3), t(2, 3)), {}),
    "neg": (aten.neg.default, (t(2, 3),), {}),
    **{
        name: (getattr(aten, name).default, (t(2, 3),), {})
        for name in (
            "silu",
            "gelu",
            "relu",
            "tanh",
            "sigmoid",
            "exp",
            "sqrt",
            "rsqrt",
            "reciprocal",
            "log",
            "sin",
            "cos",
            "abs",
            "clone",
            "erf",
            "softplus",
        )
    },
    "softmax": (aten.softmax.int, (t(2, 8), -1), {}),
    "log_softmax": (aten.log_softmax.int, (t(2, 8), -1), {}),
    "sum": (aten.sum.default, (t(2, 3),), {}),
    "mean": (aten.mean.dim, (t(2, 3), [-1]), {}),
    "amax": (aten.amax.default, (t(2, 3), [-1]), {}),
    "cumsum": (aten.cumsum.default, (t(2, 3), 0), {}),
    "clamp": (aten.clamp.default, (t(2, 3), 0.0, 1.0), {}),
    "cast": (aten.to.dtype, (t(2, 3), torch.float64), {}),
    "cat": (aten.cat.default, ([t(2, 3), t(2, 3)],), {}),
    "where": (aten.where.self, (MASK, t(4), t(4)), {}),
    "masked_fill": (aten.masked_fill.Scalar, (t(4), MASK, 0.0), {}),
    "embedding": (aten.embedding.default, (t(9, 8), INDEX), {}),
    "index_select": (aten.index_select.default, (t(9, 8), 0, INDEX), {}),
    "index": (aten.index.Tensor, (t(9, 8), [INDEX]), {}),
    "gather": (aten.gather.default, (t(4), 0, INDEX), {}),
    "native_dropout": (aten.native_dropout.default, (t(4, 8), 0.5, True), {}),
    "layer_norm": (aten.layer_norm.default, (t(4, 8), [8], t(8), t(8)), {}),
    "group_norm": (aten.group_norm.default, (t(2, 4, 8), 2, t(4), t(4)), {}),
    "cross_entropy": (aten.cross_entropy_loss.default, (t(4, 8), INDEX), {}),
    "attention": (aten.scaled_dot_product_attention.default, (t(2, 4, 16, 8), t(2, 4, 16, 8), t(2, 4, 16, 8)), {"is_causal": True}),
    "grouped attention": (
        aten.scaled_dot_product_attention.default,
        (t(2, 4, 16, 8), t(2, 2, 16, 8), t(2, 2, 16, 8)),
        {"is_causal": True, "enable_gqa": True},
    ),
    "mse_loss": (aten.mse_loss.default, (t(4), t(4)), {}),
}
# Parameters and the like that the table counts and torch does not need, or the other way: not activations, so it does not matter.
BIASES = {"layer_norm": {2}, "group_norm": {2}}


@pytest.mark.parametrize("name", CASES)
def test_ops_save_what_the_table_says(name: str) -> None:
    made, found = really_saved(*CASES[name])
    said = saved(made)
    biases = BIASES.get(name, set())
    assert said.operands - biases == found.operands - biases
    assert said.outputs == found.outputs
    assert said.extra_bytes == pytest.approx(found.extra_bytes, abs=8)  # but for one number that a loss keeps


@pytest.mark.parametrize("op", ["view", "transpose", "expand", "unsqueeze", "detach", "slice", "split"])
def test_views_save_nothing(op: str) -> None:
    x = tensor(4, 8)
    assert saved(call(op, x, out=x)) == Saved()


def test_nothing_is_saved_where_no_gradient_flows() -> None:
    assert saved(linear(4, 4, 4, x_grad=False, w_grad=False)) == Saved()


def test_an_unknown_op_is_taken_to_save_its_operands() -> None:
    x = tensor(4)
    assert saved(call("frobnicate", x, x, out=x)) == Saved(frozenset({0, 1}))


def test_rms_norm_saves_as_the_fused_kernel_of_cuda() -> None:
    """The CPU composes it: there x / rms(x) is kept as well, and in bf16 everything once more in fp32."""
    _, on_cpu = really_saved(aten.rms_norm.default, (t(4, 8), [8], t(8), 1e-5), {})
    x = tensor(4, 8, dtype="float32")
    said = saved(call("rms_norm", x, tensor(8, dtype="float32"), out=x, args=(Ref(0), [8], Ref(1), 1e-5)))
    assert said == Saved(frozenset({0, 1}), frozenset(), 4 * 4)
    assert on_cpu.operands == {0, 1}
    assert on_cpu.extra_bytes >= 4 * 8 * 4


def test_dropout_saves_a_mask_of_bools_as_on_cuda() -> None:
    x = tensor(4, 8, dtype="float32")
    assert saved(call("dropout", x, out=x, args=(Ref(0), 0.1, True))).extra_bytes == 32
    assert saved(call("dropout", x, out=x, args=(Ref(0), 0.1, False))) == Saved()
    assert saved(call("dropout", x, out=x, args=(Ref(0), 0.0, True))) == Saved()


def test_split_queries_keep_their_mask() -> None:
    assert saved(attention(1, 2, 16, 64)).extra_bytes - saved(attention(1, 2, 16, 64, causal=False)).extra_bytes == 16 * 64


def test_temporaries_of_the_loss_are_two_more_logits() -> None:
    """Backward of log_softmax reads a gradient of the logits' size and writes another."""
    logits = tensor(8, 100, dtype="float32")
    loss = call("cross_entropy_loss", logits, tensor(8, dtype="int64", grad=False), out=tensor(dtype="float32"))
    assert transient_bytes(loss) == 2 * 8 * 100 * 4 + 4


def test_temporaries_of_a_linear_are_its_gradients() -> None:
    # bf16: dy [4, 16], dx [4, 8], dw [16, 8]
    assert transient_bytes(linear(4, 8, 16)) == 2 * (4 * 16 + 4 * 8 + 16 * 8)
    # inference: x, w and y
    assert transient_bytes(linear(4, 8, 16, x_grad=False, w_grad=False)) == 2 * (4 * 8 + 16 * 8 + 4 * 16)


@pytest.mark.parametrize(
    ("precision", "optimizer", "expected"),
    [
        ("fp32", "adamw", ParameterBytes(40, 40, 80)),
        ("bf16", "adamw", ParameterBytes(20, 20, 40)),
        ("bf16-master", "adamw", ParameterBytes(40, 40, 80)),
        ("bf16", "sgd", ParameterBytes(20, 20, 0)),
        ("fp32", "none", ParameterBytes(40, 40, 0)),
    ],
)
def test_states_of_ten_elements(precision: str, optimizer: str, expected: ParameterBytes) -> None:
    assert state_bytes(10, precision, optimizer) == expected


def test_frozen_parameters_have_no_gradient_and_no_states() -> None:
    assert state_bytes(10, "bf16-master", "adamw", trainable=False) == ParameterBytes(20, 0, 0)
