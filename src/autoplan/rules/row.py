"""What a rule says: rows `inputs -> outputs` for one mesh axis, and a strategy, which is one row for each axis."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from autoplan.graph.ir import Graph, Node, Ref, map_refs
from autoplan.graph.once import once
from autoplan.placement import R_PARTIAL, Mesh, Placement, Placements, R, Replicate, cut


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """A tensor operand or output as a rule sees it. `hints[d]` are the group counts worth trying for shards of dim d."""

    shape: tuple[int, ...]
    dtype: str
    needs_grad: bool
    hints: tuple[frozenset[int], ...] = ()

    @property
    def ndim(self) -> int:
        """The number of dims."""
        return len(self.shape)

    @property
    def is_float(self) -> bool:
        """Whether it can be a partial sum."""
        return "float" in self.dtype or "complex" in self.dtype

    def groups(self, dim: int) -> tuple[int, ...]:
        """Group counts worth trying for `S(dim, groups)`: 1, and those that a neighbour in the graph can use."""
        found = self.hints[dim] if self.hints else frozenset()
        return (1, *sorted(found - {1}))

    def cut(self, placement: Placement, axis_size: int) -> TensorSpec:
        """The spec of one rank's part; raises PlacementError where it cannot be cut so."""
        return TensorSpec(cut(self.shape, placement, axis_size), self.dtype, self.needs_grad, self.hints)


@dataclass(frozen=True, slots=True)
class Call:
    """One op call as ONE mesh axis sees it: sizes are those the earlier axes have left.

    `args` and `kwargs` are the call's, with `Ref(k)` for the k-th tensor operand (`operands[k]`; a tensor passed twice is
    two operands). Sizes among them (of views and factories) are still the global ones: read `outputs` instead.
    """

    op: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    operands: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    axis_size: int
    uncut: tuple[tuple[int, ...], ...] = ()  # the operands' shapes before any axis cut them; empty: as they are

    def uncut_shape(self, operand: int) -> tuple[int, ...]:
        """The global shape of an operand, of which sizes among the arguments speak."""
        return self.uncut[operand] if self.uncut else self.operands[operand].shape

    def arg(self, position: int, name: str, default: Any = None) -> Any:
        """The argument at `position`, or by `name`, or its default."""
        if position < len(self.args):
            return self.args[position]
        return self.kwargs.get(name, default)

    def operand(self, position: int, name: str = "") -> int | None:
        """Which operand the argument at `position` (or called `name`) is; None where it is not a tensor."""
        value = self.arg(position, name)
        return value.value if isinstance(value, Ref) else None


@dataclass(frozen=True, slots=True)
class Row:
    """Placements on one axis under which running the op on local tensors gives the local tensors of the global result.

    `ins` has one placement per operand, None for one whose values are not read (it lends shape, dtype or device).
    `local` names the local implementation where the plain op is not enough; `inside` lists the collectives it runs on
    this axis, forward and then backward the last `inside_backward` of them. Operands in `whole` are replicated and get
    whole gradients though the row splits the work (a collective inside adds them up).
    """

    ins: tuple[Placement | None, ...]
    outs: tuple[Placement, ...]
    local: str | None = None
    inside: tuple[str, ...] = ()
    whole: frozenset[int] = frozenset()
    inside_backward: int = 0

    @property
    def is_replicated(self) -> bool:
        """Whether every rank of the axis does all of the work."""
        return all(p is None or isinstance(p, Replicate) for p in self.ins) and all(isinstance(p, Replicate) for p in self.outs)

    def __str__(self) -> str:
        left = " ".join("-" if p is None else str(p) for p in self.ins)
        return f"{left} -> {' '.join(map(str, self.outs))}".lstrip()


@dataclass(frozen=True, slots=True)
class Strategy:
    """One row per mesh axis; `partial[a]` says that an all-R row on axis a passes partial gradients through.

    `needs[k]` is the state in which operand k is read (None if its values are not), `makes[j]` the state of output j. `part`
    is the call that each rank runs, where it is known already.
    """

    rows: tuple[Row, ...]
    partial: tuple[bool, ...]
    needs: tuple[Placements | None, ...]
    makes: tuple[Placements, ...]
    part: Call | None = field(default=None, compare=False, repr=False)

    @property
    def local(self) -> str | None:
        """The local implementation that runs, None for the plain op."""
        return next((row.local for row in self.rows if row.local), None)

    def inside(self) -> tuple[tuple[str, tuple[int, ...]], ...]:
        """The (kind, axes) of the collectives inside the op."""
        return tuple((kind, (axis,)) for axis, row in enumerate(self.rows) for kind in row.inside)

    def inside_forward(self) -> tuple[tuple[str, tuple[int, ...]], ...]:
        """Those of them that a forward runs: what running it again adds."""
        forward = ((axis, row.inside[: len(row.inside) - row.inside_backward]) for axis, row in enumerate(self.rows))
        return tuple((kind, (axis,)) for axis, kinds in forward for kind in kinds)

    def describe(self, mesh: Mesh) -> str:
        """`S(0) R -> S(0) on x; R S(0) -> S(2) on y`, as plans write it (axes on which all is replicated are left out)."""
        parts = [f"{row} on {name}" for row, name, n in zip(self.rows, mesh.names, mesh.shape, strict=True) if n > 1]
        return "; ".join(parts)


@dataclass(frozen=True, slots=True)
class AxisStates:
    """What a row makes of a call on its axis: the states in which operands are read and outputs made, by number."""

    partial: bool
    needs: tuple[Placement | None, ...]
    makes: tuple[Placement, ...]


def axis_states(row: Row, partial: bool, operands: tuple[TensorSpec, ...], outputs: tuple[TensorSpec, ...]) -> AxisStates:
    """The states that follow from a row (DESIGN 4: gradient placements follow from the row)."""
    replicated = R_PARTIAL if partial or not row.is_replicated else R
    needs = tuple(
        replicated if placement == R and spec.needs_grad and k not in row.whole else placement
        for k, (placement, spec) in enumerate(zip(row.ins, operands, strict=True))
    )
    makes = tuple(
        R_PARTIAL if partial and placement == R and spec.needs_grad else placement
        for placement, spec in zip(row.outs, outputs, strict=True)
    )
    return AxisStates(partial, needs, makes)


def join_axes(rows: tuple[Row, ...], axes: Sequence[AxisStates], part: Call | None = None) -> Strategy:
    """The strategy of one row for each axis; an operand that a row does not read is read on no axis."""
    needs = tuple([None if None in placements else placements for placements in zip(*[axis.needs for axis in axes], strict=True)])
    makes = tuple(zip(*[axis.makes for axis in axes], strict=True))
    return Strategy(rows, tuple([axis.partial for axis in axes]), needs, makes, part)


def make_strategy(
    rows: tuple[Row, ...], partial: tuple[bool, ...], operands: tuple[TensorSpec, ...], outputs: tuple[TensorSpec, ...]
) -> Strategy:
    """The strategy of `rows` for a call of these operands and outputs."""
    return join_axes(rows, [axis_states(row, flag, operands, outputs) for row, flag in zip(rows, partial, strict=True)])


def call_of(graph: Graph, node: Node, hints: dict[int, tuple[frozenset[int], ...]] | None = None, axis_size: int = 1) -> Call:
    """`node` as a rule sees it before any axis is cut."""
    count = 0

    def number(_: Ref) -> Ref:
        nonlocal count
        count += 1
        return Ref(count - 1)

    flows = graph.loss is not None and any(graph.values[output].needs_grad for output in node.outputs)

    def spec(value_id: int) -> TensorSpec:
        value = graph.values[value_id]
        return TensorSpec(value.shape, value.dtype, flows and value.needs_grad, (hints or {}).get(value_id, ()))

    args, kwargs = map_refs(node.args, number), map_refs(node.kwargs, number)
    operands = tuple(map(spec, node.inputs))
    return Call(node.op, args, kwargs, operands, tuple(map(spec, node.outputs)), axis_size, tuple(spec.shape for spec in operands))


@once
def calls_of(graph: Graph) -> tuple[Call, ...]:
    """All nodes as rules see them before any axis is cut, by number."""
    return tuple(call_of(graph, node) for node in graph.nodes)
