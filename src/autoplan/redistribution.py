"""How a value gets from one placement to another: the steps that the cost prices, the plan lists and the runtime runs. No torch.

`lower` is the only place that decides this, so the three cannot disagree. Axes change one after another. Where two axes
cut the same dim they are nested in mesh order (see `placement`), so an axis may change its cut of a dim only while no
later axis cuts that dim; `lower` orders the steps accordingly, and gathers a later axis first where there is no other way.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Literal

from autoplan.placement import Mesh, P, Partial, Placement, Placements, R, Replicate, Shard, forward_of, gradient_of

Kind = Literal["slice", "reduce-scatter", "all-to-all", "pad", "all-reduce", "all-gather", "keep"]

# Steps that shrink the local tensor go first, those that grow it last: fewer bytes travel.
_ORDER: dict[str, int] = {"slice": 0, "reduce-scatter": 1, "all-to-all": 2, "pad": 3, "all-reduce": 4, "all-gather": 5, "keep": 6}
LOCAL_KINDS = frozenset({"slice", "pad", "keep"})


@dataclass(frozen=True, slots=True)
class Step:
    """One change of placement over one group of ranks.

    `slice` cuts a replicated value, `keep` leaves it on the first rank and zeros elsewhere, `pad` puts a shard into
    zeros: these three are local. `full` is the local size before or after the step, whichever is larger, as a fraction
    1/full_divisor of the global tensor: the bytes by which collectives are measured.
    """

    kind: Kind
    axes: tuple[int, ...]
    src: Placement
    dst: Placement
    full_divisor: int

    @property
    def is_collective(self) -> bool:
        """Whether ranks talk to each other."""
        return self.kind not in LOCAL_KINDS


@cache
def lower(src: Placements, dst: Placements, mesh: Mesh) -> tuple[Step, ...]:
    """The steps that bring a value from placements `src` to `dst`; empty if they are equal."""
    current = list(src)
    steps: list[Step] = []
    while tuple(current) != dst:
        candidates = [
            (_ORDER[kind], _tie(kind, axis), axis, target)
            for axis in range(mesh.ndim)
            if current[axis] != dst[axis]
            for kind, target in [_first_move(current[axis], dst[axis])]
            if _applies(axis, target, current, dst)
        ]
        if candidates:
            _, _, axis, target = min(candidates, key=lambda candidate: candidate[:2])
        else:
            axis, target = _innermost_blocker(current, dst), R
        steps.append(_step(axis, current[axis], target, current, mesh))
        current[axis] = target
    return _merge(steps, mesh)


def _first_move(src: Placement, dst: Placement) -> tuple[Kind, Placement]:
    """The kind of step that leaves `src` for `dst`, and where it leads (regrouping a dim goes through R)."""
    if isinstance(src, Shard):
        if isinstance(dst, Shard):
            return ("all-to-all", dst) if dst.dim != src.dim else ("all-gather", R)
        return ("pad", P) if isinstance(dst, Partial) else ("all-gather", R)
    if isinstance(src, Partial):
        return ("reduce-scatter", dst) if isinstance(dst, Shard) else ("all-reduce", R)
    return ("slice", dst) if isinstance(dst, Shard) else ("keep", P)


def _tie(kind: Kind, axis: int) -> int:
    """Among equal kinds: gather the innermost axis first, do everything else outermost first, so that neighbours merge."""
    return -axis if kind in ("all-gather", "pad") else axis


def _applies(axis: int, target: Placement, current: list[Placement], dst: Placements) -> bool:
    """Whether nesting allows `axis` to leave its present dim and to cut that of `target`."""
    touched = {p.dim for p in (current[axis], target) if isinstance(p, Shard)}
    if any(isinstance(p, Shard) and p.dim in touched for p in current[axis + 1 :]):
        return False
    if not isinstance(target, Shard):
        return True
    pending = [p for earlier in range(axis) if current[earlier] != dst[earlier] for p in (current[earlier], dst[earlier])]
    return not any(isinstance(p, Shard) and p.dim == target.dim for p in pending)


def _innermost_blocker(current: list[Placement], dst: Placements) -> int:
    """The last axis that cuts a dim which an earlier axis has to leave or to cut."""
    for axis in reversed(range(len(current))):
        held = current[axis]
        if not isinstance(held, Shard):
            continue
        for earlier in range(axis):
            if current[earlier] != dst[earlier] and held.dim in {p.dim for p in (current[earlier], dst[earlier]) if isinstance(p, Shard)}:
                return axis
    raise AssertionError(f"nothing blocks {current} -> {dst}")


def _step(axis: int, src: Placement, dst: Placement, current: list[Placement], mesh: Mesh) -> Step:
    kind, _ = _first_move(src, dst)
    divisor = 1
    for other, placement in enumerate(current):
        if isinstance(placement, Shard) and (other != axis or kind == "all-to-all"):
            divisor *= mesh.shape[other]
    return Step(kind, (axis,), src, dst, divisor)


def _merge(steps: list[Step], mesh: Mesh) -> tuple[Step, ...]:
    """Neighbouring steps of one kind over several axes as one step over the group of all their ranks."""
    merged: list[Step] = []
    for step in steps:
        last = merged[-1] if merged else None
        if (
            last
            and last.kind == step.kind
            and last.kind in ("all-reduce", "all-gather", "reduce-scatter")
            and (last.src, last.dst) == (step.src, step.dst)
        ):
            merged[-1] = Step(
                step.kind, tuple(sorted(last.axes + step.axes)), step.src, step.dst, min(last.full_divisor, step.full_divisor)
            )
        else:
            merged.append(step)
    return tuple(merged)


def transition(produced: Placements, needed: Placements, mesh: Mesh, *, needs_grad: bool) -> tuple[tuple[Step, ...], tuple[Step, ...]]:
    """Forward and backward steps between two states of a value (with the kind of an R's gradient, see `placement`)."""
    forward = lower(forward_of(produced), forward_of(needed), mesh)
    backward = lower(gradient_of(needed), gradient_of(produced), mesh) if needs_grad else ()
    return forward, backward


def collectives(steps: tuple[Step, ...]) -> tuple[tuple[str, tuple[int, ...]], ...]:
    """The (kind, axes) of the steps in which ranks talk to each other, in order."""
    return tuple((step.kind, step.axes) for step in steps if step.is_collective)


def is_replicated(placement: Placement) -> bool:
    """Whether a rank of the axis holds the whole value."""
    return isinstance(placement, Replicate)
