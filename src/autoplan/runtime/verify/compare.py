"""The largest differences between one device and the ranks of a plan."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from statistics import median

import torch
from torch import Tensor

from autoplan.assignment import Assignment
from autoplan.assignment.redistributions import Counts
from autoplan.placement import Mesh
from autoplan.runtime.shards import local_part
from autoplan.runtime.verify.results import GRADIENT_TOLERANCE, RankResult, Reference, Verification


def compare(reference: Reference, results: Sequence[RankResult], assignment: Assignment, planned: Mapping[str, int]) -> Verification:
    """The largest differences over all ranks, each gradient compared with the part of the reference's that the rank holds."""
    mesh = assignment.mesh
    observed = [named_counts(result.collectives, mesh) for result in results]
    problems = [f"rank {rank} ran other collectives than rank 0" for rank, counts in enumerate(observed) if counts != observed[0]]
    loss_error = max(
        (_relative(found, wanted) for result in results for found, wanted in zip(result.outputs, reference.outputs, strict=True)),
        default=0.0,
    )
    error, worst = _gradient_error(reference, results, assignment)
    buffer_errors = _buffer_errors(reference, results, assignment)
    problems += [f"buffer {fqn} is {off:.2g} off" for fqn, off in buffer_errors.items() if not off <= GRADIENT_TOLERANCE]
    return Verification(
        loss_error,
        error,
        worst,
        _split_fraction(reference, results, mesh),
        planned,
        observed[0],
        tuple(problems),
        buffer_rel_err=_worst(buffer_errors.values()),
    )


def named_counts(counts: Counts, mesh: Mesh) -> dict[str, int]:
    """Counts as `{"all-gather x,y": 3}`, sorted, without zeros."""
    named = {f"{kind} {','.join(mesh.names[axis] for axis in axes)}": count for (kind, axes), count in counts.items() if count}
    return dict(sorted(named.items()))


def _gradient_error(reference: Reference, results: Sequence[RankResult], assignment: Assignment) -> tuple[float, str | None]:
    """max|g - r| / max(|r|max, 1e-4 x the median over parameters of |r|max), its maximum over parameters, and whose it is."""
    largest = {fqn: gradient.abs().max().item() for fqn, gradient in reference.gradients.items() if gradient is not None}
    floor = _floor(largest.values())
    state_of = {p.fqn: assignment.produced[p.value] for p in assignment.graph.parameters}
    worst: tuple[float, str | None] = (0.0, None)
    for fqn, wanted in reference.gradients.items():
        for result in results:
            found = result.gradients[fqn]
            if found is None or wanted is None:
                error = 0.0 if found is wanted else float("inf")
            else:
                part = local_part(wanted, state_of[fqn], assignment.mesh, result.coordinate)
                difference = (found - part).abs().max().item() if found.shape == part.shape else float("inf")
                error = _ratio(difference, max(largest[fqn], floor))
            if not error <= worst[0]:  # a NaN is the worst
                worst = (error, fqn)
    return worst


def _floor(largest: Collection[float], small: float = 1e-4) -> float:
    """What a gradient or a buffer is measured against where it is nought but for rounding: a small part of what others are."""
    return small * median(largest) if largest else 0.0


def _buffer_errors(reference: Reference, results: Sequence[RankResult], assignment: Assignment) -> dict[str, float]:
    """How far each overwritten buffer is off, on the rank where it is most; counters must be equal.

    The running mean of what an earlier norm has centred is all rounding, about 1e-7 (fp32) of what is averaged, as large as other
    buffers are: so the least that a buffer is measured against is a hundredth of their median.
    """
    graph, mesh = assignment.graph, assignment.mesh
    largest = {fqn: buffer.abs().max().item() for fqn, buffer in reference.buffers.items() if buffer.is_floating_point()}
    floor = _floor(largest.values(), small=1e-2)
    errors = {}
    for fqn, wanted in reference.buffers.items():
        state = assignment.sources[graph.buffers[fqn]]
        pairs = [(result.buffers[fqn], local_part(wanted, state, mesh, result.coordinate)) for result in results]
        errors[fqn] = _worst(_buffer_error(found, part, max(largest.get(fqn, 0.0), floor)) for found, part in pairs)
    return errors


def _buffer_error(found: Tensor, wanted: Tensor, size: float) -> float:
    if found.shape != wanted.shape or not wanted.is_floating_point():
        return 0.0 if torch.equal(found, wanted) else float("inf")
    return _ratio((found - wanted).abs().max().item(), size)


def _worst(errors: Iterable[float]) -> float:
    """The largest; a NaN is the worst."""
    return max(errors, key=lambda error: (error != error, error), default=0.0)


def _relative(found: Tensor, wanted: Tensor) -> float:
    if found.shape != wanted.shape:
        return float("inf")
    if not wanted.is_floating_point():
        return 0.0 if torch.equal(found, wanted) else float("inf")
    return _ratio((found - wanted).abs().max().item(), wanted.abs().max().item())


def _ratio(difference: float, size: float) -> float:
    return 0.0 if difference == 0.0 else difference / size if size else float("inf")


def _split_fraction(reference: Reference, results: Sequence[RankResult], mesh: Mesh) -> float:
    """How much of the work that could be split is: 1 if each of N ranks does 1/N of it, 0 if one does all."""
    if mesh.size == 1 or not reference.flops:
        return 1.0
    return (reference.flops - max(result.flops for result in results)) / (reference.flops * (1 - 1 / mesh.size))
