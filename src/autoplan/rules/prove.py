"""The prover: a strategy on random tensors cut by hand, all ranks in lock-step in one process, against the unsharded op.

It knows nothing of how rules are written. Placements are cut and joined here by their definition, not by the runtime's
redistribution, so that an error in one is not hidden by the same error in the other.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from autoplan.collectives import SimulatedCollectives, run_simulated
from autoplan.graph.ir import Ref, map_refs
from autoplan.placement import Mesh, Partial, Placements, Shard, forward_of, gradient_of, local_shape
from autoplan.rules.combine import strategies_of
from autoplan.rules.execute import localize, run_functional
from autoplan.rules.row import Call, Strategy, TensorSpec

MakeOperand = Callable[[int], Tensor]
_TOLERANCE = 1e-9  # in fp64, on numbers of about 1
# With narrower floats in a call, relative to the largest number: some tens of roundings (2^-24, 2^-11, 2^-8) of the random
# terms of partial sums, which are larger than their sums.
_ROUGH = {"float32": 1e-5, "float16": 3e-2, "bfloat16": 2e-1}
_HALVES = {torch.float32, torch.float16, torch.bfloat16}


def prove(call: Call, strategy: Strategy, mesh: Mesh, make_operand: MakeOperand | None = None, *, in_double: bool = True) -> None:
    """Run `strategy` on local tensors and compare with the global op: outputs, gradients, and the collectives inside.

    `make_operand(k)` gives the global tensor of operand k (random by default: floats normal, integers 0 or 1). All floats
    are taken in fp64, or `in_double=False` in their own dtype: that proves the dtypes, and the numbers as far as they go.
    Raises AssertionError that shows the strategy and what differs.
    """
    call = _in_double(call) if in_double else call
    make = make_operand or (lambda k: random_operand(call, k))
    operands = [_double(make(k)) if in_double else make(k) for k in range(len(call.operands))]
    where = f"{call.op} {[list(spec.shape) for spec in call.operands]} on {mesh}: {strategy.describe(mesh)}"
    try:
        _check(call, strategy, mesh, operands)
    except AssertionError as error:
        raise AssertionError(f"{where}\n  needs {strategy.needs} makes {strategy.makes}\n  {error}") from None
    except Exception as error:
        raise AssertionError(f"{where}\n  needs {strategy.needs} makes {strategy.makes}\n  {type(error).__name__}: {error}") from error


def prove_rule(op: str, *args: Any, meshes: Sequence[tuple[int, ...]] = ((2,), (3,), (2, 2), (2, 3)), **kwargs: Any) -> int:
    """Prove every strategy of a call of `op` on real tensors, on each mesh; how many of them split the work."""
    call, operands = example_call(op, *args, **kwargs)
    splitting = 0
    for shape in meshes:
        mesh = Mesh(tuple("xyzuvw"[: len(shape)]), shape)
        for strategy in strategies_of(call, mesh):
            prove(call, strategy, mesh, lambda k: operands[k])
            splitting += not all(row.is_replicated for row in strategy.rows)
    return splitting


def random_operand(call: Call, k: int) -> Tensor:
    """A random global tensor for operand k."""
    spec = call.operands[k]
    dtype = getattr(torch, spec.dtype)
    if dtype.is_floating_point:
        return torch.randn(spec.shape, dtype=torch.float64)
    return torch.randint(0, 2, spec.shape).to(dtype)


def example_call(op: str, *args: Any, frozen: Collection[int] = (), **kwargs: Any) -> tuple[Call, list[Tensor]]:
    """A call of `op` on real tensors, and its operands in order; float operands need gradients unless `frozen`."""
    operands: list[Tensor] = []

    def number(structure: Any) -> Any:
        if isinstance(structure, Tensor):
            operands.append(structure)
            return Ref(len(operands) - 1)
        if isinstance(structure, tuple | list):
            return tuple(map(number, structure))
        return structure

    refs = number(args), {key: number(value) for key, value in kwargs.items()}
    inputs = [x.detach().requires_grad_(x.is_floating_point() and k not in frozen) for k, x in enumerate(operands)]
    result = run_functional(op, *map_refs(refs, lambda ref: inputs[ref.value]))
    outputs = [result] if isinstance(result, Tensor) else [item for item in result if isinstance(item, Tensor)]
    specs = [TensorSpec(tuple(x.shape), str(x.dtype).removeprefix("torch."), x.requires_grad) for x in (*inputs, *outputs)]
    call = Call(op, *refs, tuple(specs[: len(inputs)]), tuple(specs[len(inputs) :]), 1, tuple(tuple(x.shape) for x in inputs))
    return call, operands


def _check(call: Call, strategy: Strategy, mesh: Mesh, operands: Sequence[Tensor]) -> None:
    outputs, expected = _run_global(call, operands)
    output_gradients = [torch.randn_like(y) if spec.needs_grad else None for y, spec in zip(outputs, call.outputs, strict=True)]
    wanted = _gradients(outputs, output_gradients, expected)

    local_operands = [_cut_operand(x, state, mesh) for x, state in zip(operands, strategy.needs, strict=True)]
    local_gradients = [
        None if g is None else cut_global(g, gradient_of(state), mesh) for g, state in zip(output_gradients, strategy.makes, strict=True)
    ]
    op = localize(call, strategy, mesh)

    def rank_main(group: Any) -> tuple[list[Tensor], list[Tensor | None], Counter[Any]]:
        here = group.coordinate
        inputs = [
            values[here].clone().requires_grad_(spec.needs_grad and state is not None)
            for values, spec, state in zip(local_operands, call.operands, strategy.needs, strict=True)
        ]
        made = _as_list(op.run(inputs, group, seed=7), len(call.outputs))
        gradients = _gradients(made, [None if g is None else g[here] for g in local_gradients], inputs)
        return [y.detach() for y in made], gradients, group.counts

    results = run_simulated(mesh, rank_main) if strategy.inside() else [rank_main(_alone(mesh, here)) for here in mesh.coordinates()]
    ranks = dict(zip(mesh.coordinates(), results, strict=True))
    rough = max((_ROUGH.get(spec.dtype, 0.0) for spec in (*call.operands, *call.outputs)), default=0.0)
    for j, (spec, state) in enumerate(zip(call.outputs, strategy.makes, strict=True)):
        parts = {here: made[j] for here, (made, _, _) in ranks.items()}
        shape = local_shape(spec.shape, forward_of(state), mesh)
        assert all(tuple(part.shape) == shape for part in parts.values()), (
            f"output {j} has shape {[tuple(p.shape) for p in parts.values()]}, not {shape}"
        )
        _compare(f"output {j}", _joined(f"output {j}", parts, forward_of(state), mesh, rough), outputs[j].detach(), rough)
    for k, (spec, operand_state) in enumerate(zip(call.operands, strategy.needs, strict=True)):
        if not spec.needs_grad or operand_state is None:
            continue
        zero = torch.zeros(local_shape(spec.shape, forward_of(operand_state), mesh), dtype=operands[k].dtype)
        found = {here: _or(gradients[k], zero) for here, (_, gradients, _) in ranks.items()}
        target = _or(wanted[k], torch.zeros_like(operands[k]))
        name = f"gradient of operand {k}"
        _compare(name, _joined(name, found, gradient_of(operand_state), mesh, rough), target, rough)
    inside = Counter(strategy.inside())
    for here, (_, _, counts) in ranks.items():
        counts = Counter({key: n for key, n in counts.items() if mesh.group_size(key[1]) > 1})
        assert counts == inside, f"rank {here} ran {dict(counts)}, the rows say {dict(inside)}"


def _alone(mesh: Mesh, coordinate: tuple[int, ...]) -> SimulatedCollectives:
    """A rank that needs nobody: without collectives there is nothing to run in lock-step for, and no threads to start."""

    def refuse(_: tuple[int, ...], axes: tuple[int, ...]) -> Any:
        raise AssertionError(f"a collective over axes {axes} that the rows do not list")

    return SimulatedCollectives(mesh, coordinate, refuse)


def _run_global(call: Call, operands: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    inputs = [x.clone().requires_grad_(spec.needs_grad) for x, spec in zip(operands, call.operands, strict=True)]
    args, kwargs = map_refs((call.args, dict(call.kwargs)), lambda ref: inputs[ref.value])
    return _as_list(run_functional(call.op, args, kwargs), len(call.outputs)), inputs


def _or(gradient: Tensor | None, zero: Tensor) -> Tensor:
    return zero if gradient is None else gradient


def _as_list(result: Any, count: int) -> list[Tensor]:
    made = [result] if isinstance(result, Tensor) else [item for item in result if isinstance(item, Tensor)]
    assert len(made) == count, f"{len(made)} outputs, not {count}"
    return made


def _gradients(outputs: Sequence[Tensor], gradients: Sequence[Tensor | None], inputs: Sequence[Tensor]) -> list[Tensor | None]:
    pairs = [(y, g) for y, g in zip(outputs, gradients, strict=True) if g is not None and y.requires_grad]
    wanted = [x for x in inputs if x.requires_grad]
    if not pairs or not wanted:
        return [None] * len(inputs)
    found = iter(torch.autograd.grad([y for y, _ in pairs], wanted, [g for _, g in pairs], allow_unused=True))
    return [next(found) if x.requires_grad else None for x in inputs]


def _cut_operand(x: Tensor, state: Placements | None, mesh: Mesh) -> dict[tuple[int, ...], Tensor]:
    """Local tensors of an operand; one whose values are not read comes in a shape that nobody can rely on."""
    if state is None:
        return dict.fromkeys(mesh.coordinates(), x.new_zeros((1,) * x.ndim))
    return cut_global(x, forward_of(state), mesh)


def cut_global(x: Tensor, placements: Placements, mesh: Mesh) -> dict[tuple[int, ...], Tensor]:
    """What each rank holds of a global tensor; a partial sum is cut into random terms."""
    parts: dict[tuple[int, ...], Tensor] = {(): x}
    for placement, n in zip(placements, mesh.shape, strict=True):
        following = {}
        for here, part in parts.items():
            for index, piece in enumerate(_cut(part, placement, n)):
                following[*here, index] = piece
        parts = following
    return parts


def _cut(x: Tensor, placement: Any, n: int) -> list[Tensor]:
    if isinstance(placement, Shard):
        split = x.unflatten(placement.dim, (placement.groups, n, -1))
        return [split.select(placement.dim + 1, i).flatten(placement.dim, placement.dim + 1).contiguous() for i in range(n)]
    if isinstance(placement, Partial):
        assert x.is_floating_point() or x.is_complex(), "only floats can be partial sums"
        terms = [torch.randn_like(x) for _ in range(n - 1)]
        return [*terms, x - sum(terms, torch.zeros_like(x))]
    return [x] * n


def join_local(parts: dict[tuple[int, ...], Tensor], placements: Placements, mesh: Mesh, rough: float = 0.0) -> Tensor:
    """The global tensor of local ones: the inverse of `cut_global`; replicas must agree, but for `rough` of the largest number."""
    for axis in reversed(range(mesh.ndim)):
        prefixes = sorted({here[:axis] for here in parts})
        parts = {prefix: _join([parts[*prefix, i] for i in range(mesh.shape[axis])], placements[axis], rough) for prefix in prefixes}
    return parts[()]


def _joined(what: str, parts: dict[tuple[int, ...], Tensor], placements: Placements, mesh: Mesh, rough: float) -> Tensor:
    try:
        return join_local(parts, placements, mesh, rough)
    except AssertionError as error:
        raise AssertionError(f"{what}: {error}") from None


def _join(parts: list[Tensor], placement: Any, rough: float) -> Tensor:
    if isinstance(placement, Shard):
        split = [part.unflatten(placement.dim, (placement.groups, -1)) for part in parts]
        return torch.stack(split, placement.dim + 1).flatten(placement.dim, placement.dim + 2)
    if isinstance(placement, Partial):
        return torch.stack(parts).sum(0)
    for part in parts[1:]:
        _compare("a replica", part, parts[0], rough)
    return parts[0]


def _compare(what: str, found: Tensor, wanted: Tensor, rough: float) -> None:
    assert found.shape == wanted.shape, f"{what} has shape {tuple(found.shape)}, not {tuple(wanted.shape)}"
    assert found.dtype == wanted.dtype, f"{what} is {found.dtype}, not {wanted.dtype}"
    if not (wanted.is_floating_point() or wanted.is_complex()):
        assert torch.equal(found, wanted), f"{what} differs"
        return
    finite = wanted[wanted.isfinite()].abs()
    allowed = rough * max(float(finite.max()), 1.0) if rough and finite.numel() else _TOLERANCE
    close = torch.isclose(found, wanted, rtol=_TOLERANCE, atol=allowed, equal_nan=True)
    assert bool(close.all()), f"{what} is off by {float((found - wanted).abs().max()):.3g}"


def _in_double(call: Call) -> Call:
    """The call with every float in fp64, also where an argument names a dtype."""
    args, kwargs = _double_dtypes((call.args, dict(call.kwargs)))
    operands = tuple(replace(spec, dtype=_double_name(spec.dtype)) for spec in call.operands)
    outputs = tuple(replace(spec, dtype=_double_name(spec.dtype)) for spec in call.outputs)
    return replace(call, args=args, kwargs=kwargs, operands=operands, outputs=outputs)


def _double_dtypes(structure: Any) -> Any:
    if isinstance(structure, tuple | list):
        return type(structure)(map(_double_dtypes, structure))
    if isinstance(structure, dict):
        return {key: _double_dtypes(value) for key, value in structure.items()}
    return torch.float64 if isinstance(structure, torch.dtype) and structure in _HALVES else structure


def _double_name(dtype: str) -> str:
    return {"float32": "float64", "float16": "float64", "bfloat16": "float64", "complex64": "complex128"}.get(dtype, dtype)


def _double(x: Tensor) -> Tensor:
    return x.double() if x.is_floating_point() else x.to(torch.complex128) if x.is_complex() else x
