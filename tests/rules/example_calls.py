"""Example calls of every op that has a rule, in sizes and numbers that a source decides: fixed ones, or drawn at random."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

from autoplan.graph.ir import Ref
from autoplan.graph.routed_experts import Body, Step

Choice = TypeVar("Choice")


class Source(Protocol):
    """Who decides what the catalogue leaves open."""

    def size(self) -> int:
        """The size of a dim."""
        ...

    def choice(self, options: Sequence[Choice]) -> Choice:
        """One of several forms of a call; the first shows most."""
        ...

    def floats(self, *shape: int) -> Tensor:
        """Numbers of about 1."""
        ...


@dataclass(slots=True)
class Fixed:
    """Sizes that two ranks divide and that differ, so that no dim is taken for another; one form of each call."""

    seed: int = 0
    form: int = 0
    sizes: list[int] = field(default_factory=lambda: [4, 6, 2, 8, 10, 12, 14, 16])

    def __post_init__(self) -> None:
        torch.manual_seed(self.seed)

    def size(self) -> int:
        return self.sizes.pop(0)

    def choice(self, options: Sequence[Choice]) -> Choice:
        return options[self.form % len(options)]

    def floats(self, *shape: int) -> Tensor:
        return torch.randn(shape, dtype=torch.float64)


@dataclass(frozen=True, slots=True)
class Example:
    """A call: its op and its arguments; `frozen` operands get no gradient."""

    op: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any] = field(default_factory=dict)
    frozen: tuple[int, ...] = ()


Make = Callable[[Source], Example]
CALLS: dict[str, Make] = {}


def cases() -> dict[str, tuple[Any, ...]]:
    """The calls that other files of this folder prove, (op, arguments..): those in their tables called `..CASES`."""
    found = {}
    for path in sorted(Path(__file__).parent.glob("test_*.py")):
        for name, table in vars(import_module(path.stem)).items():
            if name.endswith("CASES"):
                found.update({f"{path.stem} {name} {key}": case for key, case in table.items() if isinstance(case[0], str)})
    return found


def redrawn(case: tuple[Any, ...], seed: int) -> Example:
    """A call with the elements of its tensors in another order, floats in fp64."""
    torch.manual_seed(seed)
    op, *args = case
    return Example(op, tuple(map(_shuffled, args)))


def trained(argument: object, frozen: Collection[int], numbers: Iterator[int]) -> object:
    """An argument whose floats need gradients, but for the operands in `frozen`; `numbers` counts operands."""
    if isinstance(argument, list | tuple):
        return [trained(item, frozen, numbers) for item in argument]
    if isinstance(argument, Tensor):
        return argument.detach().clone().requires_grad_(next(numbers) not in frozen and argument.is_floating_point())
    return argument


def _shuffled(argument: Any) -> Any:
    if isinstance(argument, list):
        return [_shuffled(item) for item in argument]
    if not isinstance(argument, Tensor):
        return argument
    mixed = argument.flatten()[torch.randperm(argument.numel())].view(argument.shape)
    return mixed.double() if mixed.is_floating_point() else mixed


def _calls(*ops: str, form: str = "") -> Callable[[Callable[[str, Source], Example]], Callable[[str, Source], Example]]:
    """Enters the decorated maker for each op, under the op's name and what is special about this form of it."""

    def enter(make: Callable[[str, Source], Example]) -> Callable[[str, Source], Example]:
        for op in ops:
            name = f"{op}, {form}" if form else op
            assert name not in CALLS, name
            CALLS[name] = lambda source, op=op: make(op, source)  # type: ignore[misc]
        return make

    return enter


def shape(source: Source, *most_first: int) -> list[int]:
    """Sizes for as many dims as the source chooses."""
    return [source.size() for _ in range(source.choice(most_first))]


def positive(source: Source, *sizes: int) -> Tensor:
    """Numbers away from zero."""
    return source.floats(*sizes).abs() + 0.5


def booleans(*sizes: int) -> Tensor:
    return torch.rand(sizes) > 0.5


def integers(high: int, *sizes: int) -> Tensor:
    return torch.randint(0, max(high, 1), sizes)


# --- pointwise ops, and what is the same for each element


@_calls(
    "aten.neg.default", "aten.negative.default", "aten.abs.default", "aten.absolute.default", "aten.relu.default", "aten.silu.default",
    "aten.gelu.default", "aten.tanh.default", "aten.exp.default", "aten.cos.default", "aten.sigmoid.default", "aten.softplus.default",
    "aten.log_sigmoid.default", "aten.leaky_relu.default", "aten.hardswish.default", "aten.special_expit.default", "aten.fix.default",
    "aten.clone.default", "aten.alias.default", "aten.contiguous.default", "aten.detach.default", "aten.lift_fresh_copy.default",
    "aten._to_copy.default", "aten.isreal.default", "aten.deg2rad.default", "aten.square.default",
)  # fmt: skip
def unary(op: str, source: Source) -> Example:
    return Example(op, (source.floats(*shape(source, 2, 3, 0)),))


@_calls("aten.rsqrt.default", "aten.log.default", "aten.reciprocal.default", "aten.special_log1p.default")
def unary_positive(op: str, source: Source) -> Example:
    return Example(op, (positive(source, *shape(source, 2, 3, 0)),))


@_calls("aten.bitwise_not.default", "aten.logical_not.default")
def unary_bool(op: str, source: Source) -> Example:
    return Example(op, (booleans(*shape(source, 2, 0)),))


def broadcast_pair(source: Source) -> tuple[list[int], list[int]]:
    """Two shapes that broadcast: equal, with a dim missing, or with dims of size 1 on either side."""
    left = shape(source, 2, 3, 1)
    right = source.choice([left, left[1:], [1, *left[1:]], [*left[:-1], 1]])
    return source.choice([(left, right), (right, left)])


@_calls(
    "aten.add.Tensor", "aten.sub.Tensor", "aten.subtract.Tensor", "aten.mul.Tensor", "aten.multiply.Tensor", "aten.maximum.default",
    "aten.rsub.Tensor", "aten.hypot.default",
)  # fmt: skip
def binary(op: str, source: Source) -> Example:
    left, right = broadcast_pair(source)
    return Example(op, (source.floats(*left), source.floats(*right)))


@_calls(
    "aten.eq.Tensor", "aten.le.Tensor", "aten.not_equal.Tensor", "aten.greater.Tensor", "aten.greater_equal.Tensor", "aten.less.Tensor",
    "aten.less_equal.Tensor", "aten.isclose.default",
)  # fmt: skip
def comparison(op: str, source: Source) -> Example:
    """Small whole numbers, so that some are equal."""
    left, right = broadcast_pair(source)
    return Example(op, (source.floats(*left).round(), source.floats(*right).round()))


@_calls("aten.add.Tensor", "aten.mul.Tensor", form="stretched")
def binary_stretched(op: str, source: Source) -> Example:
    a, b, c = (source.size() for _ in range(3))
    return Example(op, (source.floats(a, 1, c), source.floats(b, 1)))


@_calls("aten.div.Tensor", "aten.divide.Tensor")
def quotient(op: str, source: Source) -> Example:
    left, right = broadcast_pair(source)
    return Example(op, (source.floats(*left), positive(source, *right)))


@_calls("aten.pow.Tensor_Tensor")
def power(op: str, source: Source) -> Example:
    left, right = broadcast_pair(source)
    return Example(op, (positive(source, *left), source.floats(*right)))


@_calls("aten.__and__.Tensor", "aten.__or__.Tensor", "aten.__xor__.Tensor")
def bitwise(op: str, source: Source) -> Example:
    left, right = broadcast_pair(source)
    make = source.choice([booleans, lambda *sizes: integers(16, *sizes)])
    return Example(op, (make(*left), make(*right)))


@_calls("aten.__lshift__.Tensor", "aten.__rshift__.Tensor", "aten.floor_divide.default")
def whole_numbers(op: str, source: Source) -> Example:
    left, right = broadcast_pair(source)
    return Example(op, (integers(99, *left) + 1, integers(4, *right) + 1))


@_calls("aten.add.Scalar", "aten.mul.Scalar", "aten.div.Scalar", "aten.rsub.Scalar", "aten.pow.Tensor_Scalar")
def with_number(op: str, source: Source) -> Example:
    return Example(op, (source.floats(*shape(source, 2, 0)), source.choice([2, 3.5])))


@_calls("aten.ne.Scalar", "aten.gt.Scalar")
def comparison_with_number(op: str, source: Source) -> Example:
    return Example(op, (source.floats(*shape(source, 2, 0)).round(), 1))


@_calls("aten.add.Scalar", form="nothing added")
def with_zero(op: str, source: Source) -> Example:
    return Example(op, (source.floats(*shape(source, 2, 0)), 0))


@_calls("aten.clamp.default")
def clamp(op: str, source: Source) -> Example:
    return Example(op, (source.floats(*shape(source, 2, 0)), -0.5, 0.5))


@_calls("aten.clamp.Tensor")
def clamp_tensor(op: str, source: Source) -> Example:
    sizes = shape(source, 2, 0)
    return Example(op, (source.floats(*sizes), source.floats(*sizes) - 1, source.floats(*sizes) + 1))


@_calls("aten.fill.Scalar")
def fill(op: str, source: Source) -> Example:
    return Example(op, (source.floats(*shape(source, 2, 3, 0)), 2.0))


@_calls("aten.lerp.Tensor", "aten.addcmul.default", "aten.addcdiv.default")
def ternary(op: str, source: Source) -> Example:
    sizes = shape(source, 2, 1, 0)
    return Example(op, (source.floats(*sizes), source.floats(*sizes), positive(source, *sizes)))


@_calls("aten.lerp.Scalar")
def lerp_scalar(op: str, source: Source) -> Example:
    sizes = shape(source, 2, 1)
    return Example(op, (source.floats(*sizes), source.floats(*sizes), 0.3))


@_calls("aten.where.self")
def where(op: str, source: Source) -> Example:
    left, right = broadcast_pair(source)
    return Example(op, (booleans(*left), source.floats(*left), source.floats(*right)))


@_calls("aten.where.ScalarOther")
def where_other(op: str, source: Source) -> Example:
    sizes = shape(source, 2, 0)
    return Example(op, (booleans(*sizes), source.floats(*sizes), source.choice([1.0, 0.0])))


@_calls("aten.where.ScalarOther", form="zero")
def where_zero(op: str, source: Source) -> Example:
    sizes = shape(source, 2, 0)
    return Example(op, (booleans(*sizes), source.floats(*sizes), 0.0))


@_calls("aten.where.ScalarSelf")
def where_self(op: str, source: Source) -> Example:
    sizes = shape(source, 2, 0)
    return Example(op, (booleans(*sizes), 1.0, source.floats(*sizes)))


@_calls("aten.where.Scalar")
def where_scalars(op: str, source: Source) -> Example:
    return Example(op, (booleans(*shape(source, 2, 0)), 1.0, 2.0))


@_calls("aten.masked_fill.Scalar")
def masked_fill(op: str, source: Source) -> Example:
    left = shape(source, 2, 3)
    return Example(op, (source.floats(*left), booleans(*source.choice([left, left[1:], [1, *left[1:]]])), source.choice([-1.0, 0.0])))


@_calls("aten.masked_fill.Scalar", form="zero")
def masked_fill_zero(op: str, source: Source) -> Example:
    sizes = shape(source, 2, 3)
    return Example(op, (source.floats(*sizes), booleans(*sizes), 0))


@_calls("aten.masked_fill.Tensor")
def masked_fill_tensor(op: str, source: Source) -> Example:
    sizes = shape(source, 2, 3)
    return Example(op, (source.floats(*sizes), booleans(*sizes), source.floats()))


@_calls("aten.to.dtype")
def cast(op: str, source: Source) -> Example:
    return Example(op, (source.floats(*shape(source, 2, 0)), source.choice([torch.float32, torch.int64, torch.bool])))


@_calls("aten.to.dtype", form="to integers")
def cast_to_integers(op: str, source: Source) -> Example:
    return Example(op, (3 * source.floats(*shape(source, 2, 0)), torch.int64))


@_calls("aten.to.other", "aten.type_as.default")
def cast_as(op: str, source: Source) -> Example:
    return Example(op, (source.floats(*shape(source, 2)), source.floats(*shape(source, 1))))


# --- products


@_calls("aten.linear.default")
def linear(op: str, source: Source) -> Example:
    *leading, k = shape(source, 2, 3, 1)
    n = source.size()
    bias = source.choice([(source.floats(n),), ()])
    return Example(op, (source.floats(*leading, k), source.floats(n, k), *bias))


@_calls("aten.linear.default", form="no bias")
def linear_without_bias(op: str, source: Source) -> Example:
    a, k, n = (source.size() for _ in range(3))
    return Example(op, (source.floats(a, k), source.floats(n, k)))


@_calls("aten.addmm.default")
def addmm(op: str, source: Source) -> Example:
    m, k, n = (source.size() for _ in range(3))
    bias = source.choice([(m, n), (n,), (1, n), (m, 1)])
    return Example(op, (source.floats(*bias), source.floats(m, k), source.floats(k, n)))


@_calls("aten.addmm.default", form="a row of bias")
def addmm_row(op: str, source: Source) -> Example:
    m, k, n = (source.size() for _ in range(3))
    return Example(op, (source.floats(n), source.floats(m, k), source.floats(k, n)))


@_calls("aten.baddbmm.default")
def baddbmm(op: str, source: Source) -> Example:
    b, m, k, n = (source.size() for _ in range(4))
    return Example(op, (source.floats(b, m, n), source.floats(b, m, k), source.floats(b, k, n)))


@_calls("aten.mm.default", "aten.matmul.default")
def mm(op: str, source: Source) -> Example:
    m, k, n = (source.size() for _ in range(3))
    return Example(op, (source.floats(m, k), source.floats(k, n)))


@_calls("aten.bmm.default")
def bmm(op: str, source: Source) -> Example:
    b, m, k, n = (source.size() for _ in range(4))
    return Example(op, (source.floats(b, m, k), source.floats(b, k, n)))


@_calls("aten.matmul.default", form="leading dims")
def matmul_batched(op: str, source: Source) -> Example:
    b, m, k, n, h = (source.size() for _ in range(5))
    left = source.choice([(b, m, k), (b, h, m, k), (h, 1, m, k), (m, k), (k,)])
    right = source.choice([(k, n), (b, k, n), (k,)]) if len(left) < 4 else (h, k, n)
    if left == (h, 1, m, k):
        right = (b, k, n)
    return Example(op, (source.floats(*left), source.floats(*right)))


@_calls("aten.matmul.default", form="both stretched")
def matmul_stretched(op: str, source: Source) -> Example:
    a, b, m, k, n = (source.size() for _ in range(5))
    return Example(op, (source.floats(a, 1, m, k), source.floats(b, k, n)))


@_calls("aten.mv.default", "aten.matmul.default", form="a vector")
def mv(op: str, source: Source) -> Example:
    m, k = source.size(), source.size()
    return Example(op, (source.floats(m, k), source.floats(k)))


@_calls("aten.dot.default")
def dot(op: str, source: Source) -> Example:
    k = source.size()
    return Example(op, (source.floats(k), source.floats(k)))


@_calls("aten.outer.default")
def outer(op: str, source: Source) -> Example:
    return Example(op, (source.floats(source.size()), source.floats(source.size())))


@_calls("aten.einsum.default")
def einsum(op: str, source: Source) -> Example:
    sizes = dict(zip("bthd", (source.size() for _ in range(4)), strict=True))
    equation = source.choice(["bth,hd->btd", "bth,bhd->btd", "bt,bt", "bth->tb", "ij,jk"])
    sizes |= {"i": sizes["b"], "j": sizes["t"], "k": sizes["h"]}
    sides = equation.split("->")[0].split(",")
    return Example(op, (equation, [source.floats(*(sizes[label] for label in side)) for side in sides]))


@_calls("aten.einsum.default", form="three operands")
def einsum_of_three(op: str, source: Source) -> Example:
    sizes = dict(zip("bedf", (source.size() for _ in range(4)), strict=True))
    equation = source.choice(["be,ed,edf->bf", "be,bd,edf->bf", "bd,bed,be->bed"])
    sides = equation.split("->")[0].split(",")
    return Example(op, (equation, [source.floats(*(sizes[label] for label in side)) for side in sides]))


# --- attention


@_calls("aten.scaled_dot_product_attention.default")
def attention(op: str, source: Source) -> Example:
    b, h, t, e, s, f = (source.size() for _ in range(6))
    mask = source.choice([None, "bool", "float"])
    masks = {None: None, "bool": booleans(t, s).index_fill(1, torch.tensor([0]), True) if s else None, "float": source.floats(b, 1, t, s)}
    return Example(op, (source.floats(b, h, t, e), source.floats(b, h, s, e), source.floats(b, h, s, f), masks[mask]))


@_calls("aten.scaled_dot_product_attention.default", form="a mask")
def attention_masked(op: str, source: Source) -> Example:
    b, h, t, e, s, f = (source.size() for _ in range(6))
    return Example(op, (source.floats(b, h, t, e), source.floats(b, h, s, e), source.floats(b, h, s, f), source.floats(b, 1, t, s)))


@_calls("aten.scaled_dot_product_attention.default", form="causal")
def attention_causal(op: str, source: Source) -> Example:
    b, h, t, e = (source.size() for _ in range(4))
    ratio = source.choice([1, 2])
    q, k = (b, h * ratio, t, e), (b, h, t, e)
    return Example(op, (source.floats(*q), source.floats(*k), source.floats(*k), None, 0.0, True), {"enable_gqa": ratio > 1})


# --- mixtures of experts

HAS_TRANSFORMERS = find_spec("transformers") is not None
EXPERTS = Body(
    2,
    1,
    (
        Step("autoplan.grouped_mm.default", (Ref(0), Ref(2), Ref(4)), {}, 1),
        Step("aten.unsqueeze.default", (Ref(1), -1), {}, 1),
        Step("aten.relu.default", (Ref(5),), {}, 1),
        Step("aten.mul.Tensor", (Ref(7), Ref(6)), {}, 1),
    ),
)
"""Tokens times the matrix of their expert, what is positive of it, times their score."""


def ends(experts: int, rows: int) -> Tensor:
    """Where the rows of each expert end."""
    return torch.cat((integers(rows + 1, experts - 1).sort().values, torch.tensor([rows]))).int()


@_calls("autoplan.grouped_mm.default", *(["transformers.grouped_mm_fallback.default"] if HAS_TRANSFORMERS else []))
def grouped_product(op: str, source: Source) -> Example:
    if op.startswith("transformers"):
        import_module("transformers.integrations.moe")  # which registers it
    n, experts, k, m = source.size(), max(source.size(), 1), source.size(), source.size()
    return Example(op, (source.floats(n, k), source.floats(experts, k, m), ends(experts, n)))


@_calls("aten._grouped_mm.default")
def grouped_product_of_torch(op: str, source: Source) -> Example:
    """Sizes of which a quarter and a sixth are multiples of 16 bytes, which torch insists on."""
    n, experts, k, m = source.size(), max(source.size(), 1), source.choice([96, 192]), 96
    return Example(op, (source.floats(n, k), source.floats(experts, k, m), ends(experts, n)))


@_calls("autoplan.routed_experts.default")
def mixture(op: str, source: Source) -> Example:
    tokens, experts, k, m = source.size(), max(source.size(), 1), source.size(), source.size()
    repeat = source.choice([2, 1])
    rows = (source.floats(tokens, k), source.floats(tokens * repeat))
    ids = integers(experts, tokens * repeat)
    return Example(op, (rows, ids, (source.floats(experts, k, m),), (repeat, 1), experts, EXPERTS.text()))


# --- normalisations

EPSILON = 0.1  # a group of one number has no variance: its gradient would be a difference of large numbers


@_calls("aten.layer_norm.default", "aten.native_layer_norm.default")
def layer_norm(op: str, source: Source) -> Example:
    sizes = shape(source, 3, 2)
    normalised = sizes[source.choice([-1, -2]) :]
    return Example(op, (source.floats(*sizes), normalised, source.floats(*normalised), source.floats(*normalised), EPSILON))


@_calls("aten.rms_norm.default", "aten._fused_rms_norm.default")
def rms_norm(op: str, source: Source) -> Example:
    sizes = shape(source, 3, 2)
    return Example(op, (source.floats(*sizes), sizes[-1:], source.floats(*sizes[-1:]), EPSILON))


@_calls("aten.group_norm.default")
def group_norm(op: str, source: Source) -> Example:
    n, groups, c, t = (source.size() for _ in range(4))
    return Example(op, (source.floats(n, groups * c, t), groups, source.floats(groups * c), source.floats(groups * c), EPSILON))


@_calls(
    "aten.batch_norm.default", "aten.native_batch_norm.default", "aten._native_batch_norm_legit.default",
    "aten._native_batch_norm_legit_functional.default", "aten.instance_norm.default",
)  # fmt: skip
def norm_with_statistics(op: str, source: Source) -> Example:
    least = 1 if "native" in op else 0  # of nothing, their kernels end the process
    n, c, t = (max(source.size(), least) for _ in range(3))
    learned, running = (source.floats(c), source.floats(c)), (source.floats(c), positive(source, c))
    rest = () if "native" in op else (False,)
    return Example(op, (source.floats(n, c, t), *learned, *running, source.choice([True, False]), 0.1, EPSILON, *rest), frozen=(3, 4))


# --- convolutions and pooling: `n` spatial dims


@_calls("aten.conv1d.default", "aten.conv2d.default", "aten.conv3d.default")
def convolution(op: str, source: Source) -> Example:
    n = int(op.split("conv")[1][0])
    batch, c, d = (source.size() for _ in range(3))
    positions = [4] * n
    bias = source.choice([(source.floats(d),), (), (source.floats(d),)])
    return Example(op, (source.floats(batch, c, *positions), source.floats(d, c, *[3] * n), *bias))


@_calls("aten.conv_transpose3d.input")
def convolution_transposed(op: str, source: Source) -> Example:
    batch, c, d = (source.size() for _ in range(3))
    bias = source.choice([(source.floats(d),), ()])
    return Example(op, (source.floats(batch, c, 2, 2, 2), source.floats(c, d, 2, 2, 2), *bias))


@_calls("aten.conv2d.default", form="in groups")
def depthwise(op: str, source: Source) -> Example:
    batch, c = source.size(), source.size()
    return Example(op, (source.floats(batch, c, 4, 4), source.floats(c, 1, 3, 3), None, [1, 1], [1, 1], [1, 1], c))


@_calls(
    *(f"aten.{kind}_pool{n}d.default" for kind in ("max", "avg", "adaptive_avg", "adaptive_max") for n in (1, 2, 3)),
    "aten.max_pool2d_with_indices.default",
)
def pooling(op: str, source: Source) -> Example:
    n = int(op.split("pool")[1][0])
    return Example(op, (source.floats(source.size(), source.size(), *[4] * n), [2] * n))


# --- images


@_calls(
    "aten._upsample_nearest_exact1d.vec", "aten._upsample_nearest_exact2d.vec", "aten._upsample_nearest_exact3d.vec",
    "aten.upsample_nearest3d.vec",
)  # fmt: skip
def upsampled(op: str, source: Source) -> Example:
    n = int(op[-6])
    return Example(op, (source.floats(source.size(), source.size(), *[2] * n), None, [source.choice([1.5, 2.0])] * n))


@_calls("aten._upsample_bicubic2d_aa.vec")
def upsampled_antialiased(op: str, source: Source) -> Example:
    return Example(op, (source.floats(source.size(), source.size(), 4, 4), source.choice([[3, 2], [7, 7]]), False, None))


@_calls(
    "aten.reflection_pad1d.default", "aten.reflection_pad3d.default", "aten.replication_pad2d.default", "aten.replication_pad3d.default"
)
def padded_by_copies(op: str, source: Source) -> Example:
    n = int(op.split("pad")[1][0])
    return Example(op, (source.floats(source.size(), source.size(), *[4] * n), source.choice([[1, 2] * n, [0, 1] * n])))


@_calls("aten.grid_sampler_2d.default", "aten.grid_sampler_3d.default")
def grid_sample(op: str, source: Source) -> Example:
    n = int(op.split("_")[2][0])
    batch, c, t = (source.size() for _ in range(3))
    grid = source.floats(batch, t, *[2] * (n - 1), n).tanh()
    return Example(op, (source.floats(batch, c, *[4] * n), grid, 0, source.choice([0, 1]), False))


# --- reductions and scans


def reduced(source: Source) -> tuple[list[int], int]:
    sizes = shape(source, 3, 2)
    return sizes, source.choice(range(len(sizes)))


@_calls(
    "aten.sum.default", "aten.mean.default", "aten.amax.default", "aten.amin.default", "aten.prod.default", "aten.max.default",
    "aten.min.default", "aten.median.default", "aten.std.default", "aten.var.default", "aten.argmax.default", "aten.argmin.default",
    "aten.linalg_vector_norm.default", "aten.norm.Scalar",
)  # fmt: skip
def reduction_of_all(op: str, source: Source) -> Example:
    return Example(op, (source.floats(*shape(source, 2, 1, 0)),))


@_calls("aten.count_nonzero.default")
def count_of_all(op: str, source: Source) -> Example:
    return Example(op, (source.floats(*shape(source, 2, 1, 0)).round(),))


@_calls("aten.all.default", "aten.any.default")
def decision_of_all(op: str, source: Source) -> Example:
    """Numbers of which about one in thirty is the one that decides."""
    return Example(op, ((torch.rand(shape(source, 2, 3)) < 0.03) == op.startswith("aten.any"),))


@_calls("aten.all.dim", "aten.any.dim")
def decision_of_a_dim(op: str, source: Source) -> Example:
    sizes, dim = reduced(source)
    return Example(op, ((torch.rand(sizes) < 0.2) == op.startswith("aten.any"), dim, source.choice([False, True])))


@_calls("aten.sum.dim_IntList", "aten.mean.dim", "aten.amax.default", "aten.amin.default", "aten.logsumexp.default", form="a dim")
def reduction_of_dims(op: str, source: Source) -> Example:
    sizes, dim = reduced(source)
    dims = source.choice([[dim], [dim - 1, dim]])
    return Example(op, (source.floats(*sizes), dims, source.choice([False, True])))


@_calls("aten.var.correction", "aten.std.correction", "aten.var_mean.correction", "aten.std_mean.correction", form="a dim")
def variance(op: str, source: Source) -> Example:
    sizes, dim = reduced(source)
    return Example(op, (source.floats(*sizes), [dim]), {"correction": 0, "keepdim": source.choice([False, True])})


@_calls(
    "aten.max.dim", "aten.min.dim", "aten.prod.dim_int", "aten.median.dim", "aten.argmax.default", "aten.argmin.default", form="of a dim"
)  # fmt: skip
def reduction_of_a_dim(op: str, source: Source) -> Example:
    sizes, dim = reduced(source)
    return Example(op, (source.floats(*sizes), dim, source.choice([False, True])))


@_calls("aten.count_nonzero.dim_IntList")
def count(op: str, source: Source) -> Example:
    sizes, dim = reduced(source)
    return Example(op, (source.floats(*sizes).round(), [dim]))


@_calls("aten.linalg_vector_norm.default", "aten.norm.ScalarOpt_dim", form="of a dim")
def norm_of_a_dim(op: str, source: Source) -> Example:
    sizes, dim = reduced(source)
    return Example(op, (source.floats(*sizes), source.choice([2, 3, 1]), [dim], source.choice([False, True])))


@_calls(
    "aten.softmax.int", "aten.log_softmax.int", "aten.cumsum.default", "aten.cumprod.default", "aten.logcumsumexp.default",
    "aten.cummax.default", "aten.cummin.default", "aten.sort.default", "aten.argsort.default",
)  # fmt: skip
def along(op: str, source: Source) -> Example:
    sizes, dim = reduced(source)
    return Example(op, (source.floats(*sizes), source.choice([dim, dim - len(sizes)])))


@_calls("aten._softmax.default", "aten._log_softmax.default")
def along_half_to_float(op: str, source: Source) -> Example:
    sizes, dim = reduced(source)
    return Example(op, (source.floats(*sizes), dim, False))


@_calls("aten.glu.default")
def glu(op: str, source: Source) -> Example:
    a, b = source.size(), source.size()
    dim = source.choice([0, 1])
    return Example(op, (source.floats(*((2 * a, b) if dim == 0 else (a, 2 * b))), dim))


@_calls("aten.sort.stable")
def sort_stable(op: str, source: Source) -> Example:
    sizes, dim = reduced(source)
    return Example(op, (source.floats(*sizes),), {"stable": True, "dim": dim})


@_calls("aten.topk.default")
def topk(op: str, source: Source) -> Example:
    sizes, dim = reduced(source)
    return Example(op, (source.floats(*sizes), max(sizes[dim] // 2, 1), dim))


@_calls("aten.aminmax.default")
def extremes(op: str, source: Source) -> Example:
    sizes, dim = reduced(source)
    return Example(op, (source.floats(*sizes),), {"dim": dim, "keepdim": source.choice([False, True])})


@_calls("aten.nansum.default", "aten.nanmean.default")
def reduction_of_numbers(op: str, source: Source) -> Example:
    """One number in ten is none."""
    sizes, dim = reduced(source)
    x = source.floats(*sizes)
    return Example(op, (x.masked_fill(torch.rand(sizes) < 0.1, float("nan")), [dim], source.choice([False, True])))


@_calls(
    "aten.fft_ifft.default", "aten.fft_irfft.default", "aten.fft_hfft.default", "aten.fft_ihfft.default", "aten.fft_ifft2.default",
    "aten.fft_irfft2.default", "aten.fft_rfft2.default", "aten.fft_hfft2.default", "aten.fft_ihfft2.default", "aten.fft_ifftn.default",
    "aten.fft_irfftn.default", "aten.fft_rfftn.default", "aten.fft_hfftn.default", "aten.fft_ihfftn.default",
)  # fmt: skip
def fourier(op: str, source: Source) -> Example:
    sizes = shape(source, 3)
    several = op.split(".")[1][-1] in "2n"
    return Example(op, (source.floats(*sizes), None, source.choice([[-2, -1], [0, 2]] if several else [-1, 0])))


@_calls("aten.fft_fftshift.default", "aten.fft_ifftshift.default")
def fourier_shift(op: str, source: Source) -> Example:
    return Example(op, (source.floats(*shape(source, 3)), source.choice([[1], [0, 2]])))


@_calls("aten._cdist_forward.default")
def distances(op: str, source: Source) -> Example:
    m, n, c, b = (source.size() for _ in range(4))
    batch = source.choice([(b,), ()])
    return Example(op, (source.floats(*batch, m, c), source.floats(*batch, n, c), source.choice([2.0, 1.0]), None))


@_calls("aten.diff.default")
def diff(op: str, source: Source) -> Example:
    sizes, dim = reduced(source)
    ends = source.choice([(source.floats(*sizes),), ()])
    return Example(op, (source.floats(*sizes), 1, dim, *ends))


# --- views and pieces


@_calls("aten.view.default", "aten.reshape.default", "aten._unsafe_view.default", form="split and merged")
def reshape(op: str, source: Source) -> Example:
    a, b, c = (source.size() for _ in range(3))
    x = source.floats(a, b, c)
    target = source.choice([[a * b, c], [a, b * c], [a, b, c], [b, a, c], [1, a, b, 1, c], [a * b * c]])
    return Example(op, (x, target))


@_calls("aten.view.default", form="split into heads")
def heads(op: str, source: Source) -> Example:
    a, b, c = (source.size() for _ in range(3))
    return Example(op, (source.floats(a, b * c), [a, b, c]))


@_calls("aten._reshape_alias.default")
def reshape_alias(op: str, source: Source) -> Example:
    a, b = source.size(), source.size()
    return Example(op, (source.floats(a, b), [a * b], [1]))


@_calls("aten.flatten.using_ints")
def flatten(op: str, source: Source) -> Example:
    return Example(op, (source.floats(*shape(source, 3)), source.choice([0, 1]), source.choice([1, 2])))


@_calls("aten.unflatten.int")
def unflatten(op: str, source: Source) -> Example:
    a, b, c = (source.size() for _ in range(3))
    return Example(op, (source.floats(a, b * c), 1, [b, c]))


@_calls("aten.squeeze.default", "aten.ravel.default", "aten.atleast_1d.default", "aten.atleast_2d.default")
def squeezed(op: str, source: Source) -> Example:
    sizes = shape(source, 2, 1)
    return Example(op, (source.floats(*source.choice([[sizes[0], 1, *sizes[1:]], sizes])),))


@_calls("aten.squeeze.dim", "aten.squeeze.dims")
def squeezed_dim(op: str, source: Source) -> Example:
    a, b = source.size(), source.size()
    return Example(op, (source.floats(a, 1, b), [1] if op.endswith("dims") else source.choice([1, 0])))


@_calls("aten.unsqueeze.default")
def unsqueeze(op: str, source: Source) -> Example:
    return Example(op, (source.floats(*shape(source, 2, 1)), source.choice([1, 0, -1])))


@_calls("aten.view_as.default", "aten.reshape_as.default")
def view_as(op: str, source: Source) -> Example:
    a, b = source.size(), source.size()
    return Example(op, (source.floats(a * b), source.floats(a, b)))


@_calls("aten.view.dtype")
def view_bytes(op: str, source: Source) -> Example:
    return Example(op, (integers(99, *shape(source, 2)), source.choice([torch.int32, torch.uint8])))


@_calls("aten.transpose.int", "aten.swapaxes.default", "aten.swapdims.default")
def transpose(op: str, source: Source) -> Example:
    return Example(op, (source.floats(*shape(source, 3)), source.choice([0, 1]), source.choice([1, -1])))


@_calls("aten.permute.default")
def permute(op: str, source: Source) -> Example:
    return Example(op, (source.floats(*shape(source, 3)), source.choice([[2, 0, 1], [0, 2, 1], [-1, -2, -3]])))


@_calls("aten.movedim.int")
def movedim(op: str, source: Source) -> Example:
    return Example(op, (source.floats(*shape(source, 3)), source.choice([0, -1]), source.choice([2, 1])))


@_calls("aten.movedim.intlist")
def movedims(op: str, source: Source) -> Example:
    return Example(op, (source.floats(*shape(source, 3)), [0, 2], source.choice([[2, 1], [1, 0]])))


@_calls("aten.t.default", "aten.numpy_T.default", "aten.mT.default", "aten.adjoint.default")
def turned(op: str, source: Source) -> Example:
    return Example(op, (source.floats(*shape(source, 2)),))


@_calls("aten.expand.default", "aten.broadcast_to.default")
def expand(op: str, source: Source) -> Example:
    a, b, c = (source.size() for _ in range(3))
    own, target = source.choice([((a, 1), [b, a, c]), ((a,), [b, a]), ((1, b), [a, b]), ((), [a])])
    return Example(op, (source.floats(*own), target))


@_calls("aten.expand_as.default")
def expand_as(op: str, source: Source) -> Example:
    a, b = source.size(), source.size()
    return Example(op, (source.floats(a, 1), source.floats(a, b)))


@_calls("aten.split.Tensor", "aten.unsafe_split.Tensor")
def split(op: str, source: Source) -> Example:
    a, b = source.size(), source.size()
    return Example(op, (source.floats(a, source.choice([2, 3]) * b), b, source.choice([1, -1])))


@_calls("aten.split_with_sizes.default", "aten.unsafe_split_with_sizes.default")
def split_with_sizes(op: str, source: Source) -> Example:
    a, b = source.size(), source.size()
    sizes = source.choice([[2 * b, b], [b, 2 * b, b], [b, a]])
    return Example(op, (source.floats(a, sum(sizes)), sizes, 1))


@_calls("aten.chunk.default", "aten.unsafe_chunk.default", "aten.tensor_split.sections")
def chunk(op: str, source: Source) -> Example:
    a, b = source.size(), source.size()
    return Example(op, (source.floats(a, 2 * b), 2, source.choice([1, 0])))


@_calls("aten.cat.default", "aten.concat.default", "aten.concatenate.default")
def cat(op: str, source: Source) -> Example:
    a, b, c = (source.size() for _ in range(3))
    pieces = source.choice([[(a, b), (a, 2 * b)], [(a, b), (a, b), (a, 2 * b)], [(a, b), (a, c)], [(a, 0), (a, b)]])
    return Example(op, ([source.floats(*piece) for piece in pieces], 1))


@_calls("aten.cat.default", form="three operands")
def cat_of_three(op: str, source: Source) -> Example:
    a, b = source.size(), source.size()
    return Example(op, ([source.floats(a, b), source.floats(a, 2 * b), source.floats(a, b)], 1))


@_calls("aten.stack.default")
def stack(op: str, source: Source) -> Example:
    sizes = shape(source, 2, 1)
    return Example(op, ([source.floats(*sizes) for _ in range(source.choice([2, 3]))], source.choice([1, 0, -1])))


@_calls("aten.stack.default", form="three operands")
def stack_of_three(op: str, source: Source) -> Example:
    sizes = shape(source, 2)
    return Example(op, ([source.floats(*sizes) for _ in range(3)], 0))


@_calls("aten.select.int")
def select(op: str, source: Source) -> Example:
    return Example(op, (source.floats(*shape(source, 3)), source.choice([1, 0, -1]), source.choice([0, -1])))


@_calls("aten.unbind.int")
def unbind(op: str, source: Source) -> Example:
    a, b = source.size(), source.size()
    return Example(op, (source.floats(a, 3, b), 1))


@_calls("aten.slice.Tensor")
def slice_of(op: str, source: Source) -> Example:
    a, b = source.size(), source.size()
    start, end, step = source.choice([(b, 2 * b, 1), (0, b, 1), (-b, 2**63 - 1, 1), (1, 2 * b, 2), (1, b + 1, 1), (b, b, 1)])
    return Example(op, (source.floats(a, 3 * b), 1, start, end, step))


@_calls("aten.slice.Tensor", form="of all")
def slice_of_all(op: str, source: Source) -> Example:
    return Example(op, (source.floats(*shape(source, 2)), 1, 0, 2**63 - 1))


@_calls("aten.slice.Tensor", form="with steps")
def slice_with_steps(op: str, source: Source) -> Example:
    return Example(op, (source.floats(*shape(source, 2)), 1, 0, 2**63 - 1, 2))


@_calls("aten.narrow.default")
def narrow(op: str, source: Source) -> Example:
    a, b = source.size(), source.size()
    return Example(op, (source.floats(a, 2 * b), 1, source.choice([b, 0]), b))


@_calls("aten.pad.default")
def pad(op: str, source: Source) -> Example:
    mode = source.choice([("constant",), ("constant", 0.5), ("reflect",)])
    return Example(op, (source.floats(*shape(source, 3)), [1, 1], *mode))


@_calls("aten.constant_pad_nd.default")
def constant_pad(op: str, source: Source) -> Example:
    return Example(op, (source.floats(*shape(source, 3)), [0, 0, 1, 2], source.choice([0, 0.5])))


@_calls("aten.roll.default")
def roll(op: str, source: Source) -> Example:
    return Example(op, (source.floats(*shape(source, 3)), *source.choice([([1], [1]), ([1, 1], [0, 2]), ([5],)])))


@_calls("aten.flip.default")
def flip(op: str, source: Source) -> Example:
    return Example(op, (source.floats(*shape(source, 3)), source.choice([[1], [0, -1]])))


@_calls("aten.repeat.default")
def repeat(op: str, source: Source) -> Example:
    return Example(op, (source.floats(*shape(source, 2)), source.choice([[3, 1], [2, 1, 3], [1, 0]])))


@_calls("aten.repeat_interleave.self_int")
def repeat_interleave(op: str, source: Source) -> Example:
    return Example(op, (source.floats(*shape(source, 2)), 3, *source.choice([(1,), (0,), ()])))


@_calls("aten.repeat_interleave.self_int", form="flattened")
def repeat_interleave_flat(op: str, source: Source) -> Example:
    return Example(op, (source.floats(*shape(source, 2)), 3))


@_calls("aten.tril.default", "aten.triu.default")
def triangle(op: str, source: Source) -> Example:
    return Example(op, (source.floats(*shape(source, 3, 2)), source.choice([0, 1, -1])))


@_calls("aten.slice_scatter.default")
def slice_scatter(op: str, source: Source) -> Example:
    a, b = source.size(), source.size()
    return Example(op, (source.floats(a, 2 * b), source.floats(a, b), 1, b, 2 * b))


@_calls("aten.select_scatter.default")
def select_scatter(op: str, source: Source) -> Example:
    a, b, c = (source.size() for _ in range(3))
    return Example(op, (source.floats(a, b, c), source.floats(a, c), 1, source.choice([0, -1])))


@_calls("aten.meshgrid.indexing")
def meshgrid(op: str, source: Source) -> Example:
    return Example(op, ([source.floats(source.size()) for _ in range(source.choice([2, 3]))],), {"indexing": source.choice(["ij", "xy"])})


# --- tables and indices


@_calls("aten.embedding.default")
def embedding(op: str, source: Source) -> Example:
    v, d = source.size(), source.size()
    rest = source.choice([(), (1,), (-1, True)])
    return Example(op, (source.floats(v, d), integers(v, *shape(source, 2, 1, 0)), *rest))


@_calls("aten.index.Tensor")
def index(op: str, source: Source) -> Example:
    a, b, c, n = (source.size() for _ in range(4))
    forms = [
        [None, integers(b, n)],
        [integers(a, n)],
        [integers(a, n, 1), integers(b, c)],
        [integers(a, n), None, integers(c, n)],
        [None, integers(b, n), integers(c)],
    ]
    return Example(op, (source.floats(a, b, c), source.choice(forms)))


@_calls("aten.index.Tensor", form="two dims")
def index_of_two(op: str, source: Source) -> Example:
    a, b, n, m = (source.size() for _ in range(4))
    return Example(op, (source.floats(a, b), [integers(a, n, 1), integers(b, m)]))


@_calls("aten.index_select.default")
def index_select(op: str, source: Source) -> Example:
    a, b, n = (source.size() for _ in range(3))
    return Example(op, (source.floats(a, b), 1, integers(b, n)))


@_calls("aten.gather.default")
def gather(op: str, source: Source) -> Example:
    a, b, n = (source.size() for _ in range(3))
    return Example(op, (source.floats(a, b), 1, integers(b, source.choice([a, max(a - 1, 1)]), n)))


@_calls("aten.take_along_dim.default")
def take_along_dim(op: str, source: Source) -> Example:
    a, b, n = (source.size() for _ in range(3))
    return Example(op, (source.floats(a, b), integers(b, a, n), 1))


@_calls("aten._unsafe_index_put.default")
def index_put(op: str, source: Source) -> Example:
    a, b, n = (source.size() for _ in range(3))
    return Example(op, (source.floats(a, b), [None, integers(b, n)], source.floats(a, n), True))


@_calls("aten.one_hot.default")
def one_hot(op: str, source: Source) -> Example:
    classes = source.size()
    return Example(op, (integers(classes, *shape(source, 2, 1)), max(classes, 1)))


# --- losses


@_calls("aten.cross_entropy_loss.default")
def cross_entropy(op: str, source: Source) -> Example:
    n, c = source.size(), source.size()
    form = source.choice(["plain", "positions", "probabilities", "smoothing"])
    reduction = source.choice([2, 1, 0])
    if form == "probabilities":
        return Example(op, (source.floats(n, c), source.floats(n, c).softmax(1), None, reduction), frozen=(1,))
    where = (source.size(),) if form == "positions" else ()
    return Example(op, (source.floats(n, c, *where), integers(c, n, *where), None, reduction, -100, 0.1 if form == "smoothing" else 0.0))


@_calls("aten.cross_entropy_loss.default", form="each for itself")
def cross_entropy_of_each(op: str, source: Source) -> Example:
    n, c, t = (source.size() for _ in range(3))
    return Example(op, (source.floats(n, c, t), integers(c, n, t), None, 0))


@_calls(
    "aten.mse_loss.default", "aten.l1_loss.default", "aten.smooth_l1_loss.default", "aten.huber_loss.default", "aten.kl_div.default",
    "aten.binary_cross_entropy_with_logits.default", "aten.binary_cross_entropy.default",
)  # fmt: skip
def elementwise_loss(op: str, source: Source) -> Example:
    sizes = shape(source, 2, 1, 3)
    x, target = source.floats(*sizes).sigmoid(), source.floats(*sizes).sigmoid()
    reduction = source.choice([2, 1, 0])
    weights = {"binary_cross_entropy": (None,), "binary_cross_entropy_with_logits": (None, None)}.get(op.split(".")[1], ())
    return Example(op, (x, target, *weights, reduction), frozen=(1,))


@_calls("aten.soft_margin_loss.default")
def loss_of_signs(op: str, source: Source) -> Example:
    sizes = shape(source, 2, 1, 3)
    return Example(op, (source.floats(*sizes), source.floats(*sizes).sign(), source.choice([2, 1, 0])), frozen=(1,))


@_calls("aten.mse_loss.default", "aten.kl_div.default", form="each for itself")
def elementwise_loss_of_each(op: str, source: Source) -> Example:
    sizes = shape(source, 2)
    return Example(op, (source.floats(*sizes).sigmoid(), source.floats(*sizes).sigmoid(), 0), frozen=(1,))


# --- tensors made from nothing


@_calls("aten.zeros.default", "aten.ones.default")
def constant(op: str, source: Source) -> Example:
    return Example(op, (shape(source, 2, 1, 0),), {"dtype": source.choice([torch.float64, torch.int64, torch.bool, torch.bfloat16])})


@_calls("aten.full.default")
def full(op: str, source: Source) -> Example:
    return Example(op, (shape(source, 2, 1, 0), source.choice([3, True])))


@_calls("aten.full.default", form="of floats")
def full_of_floats(op: str, source: Source) -> Example:
    return Example(op, (shape(source, 2, 1, 0), 3.5), {"dtype": torch.float64})


@_calls("aten.scalar_tensor.default")
def scalar_tensor(op: str, source: Source) -> Example:
    return Example(op, (source.choice([2.0, 3]),))


@_calls("aten.zeros_like.default", "aten.ones_like.default")
def constant_like(op: str, source: Source) -> Example:
    return Example(op, (source.floats(*shape(source, 2, 3, 0)),))


@_calls("aten.full_like.default")
def full_like(op: str, source: Source) -> Example:
    return Example(op, (source.floats(*shape(source, 2, 3, 0)), 2.5))


@_calls("aten.new_zeros.default", "aten.new_ones.default")
def new_constant(op: str, source: Source) -> Example:
    return Example(op, (source.floats(*shape(source, 1)), shape(source, 2)))


@_calls("aten.new_full.default")
def new_full(op: str, source: Source) -> Example:
    return Example(op, (source.floats(*shape(source, 1)), shape(source, 2), 2.5))


@_calls("aten.arange.default")
def arange(op: str, source: Source) -> Example:
    return Example(op, (source.size(),))


@_calls("aten.arange.start_step")
def arange_step(op: str, source: Source) -> Example:
    return Example(op, (3, 3 + 2 * source.size(), 2))


@_calls("aten.linspace.default")
def linspace(op: str, source: Source) -> Example:
    return Example(op, (0.0, 1.0, source.size()), {"dtype": torch.float64})


@_calls("aten.eye.default")
def eye(op: str, source: Source) -> Example:
    return Example(op, (source.size(),), {"dtype": torch.float64})


@_calls("aten.tril_indices.default", "aten.triu_indices.default")
def triangle_indices(op: str, source: Source) -> Example:
    return Example(op, (source.size(), source.size()))


# --- random ops where they are none


@_calls("aten.dropout.default", "aten.native_dropout.default")
def dropout_that_drops_nothing(op: str, source: Source) -> Example:
    return Example(op, (source.floats(*shape(source, 2, 3)), 0.5, False))
