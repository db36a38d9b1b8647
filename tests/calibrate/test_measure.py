"""Measuring on processes of the CPU: all ranks have the same timings, and what fails is left out with its reason."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from calibrate_jobs import measured_links, measured_ops, measured_with_a_failure, started

from autoplan.calibrate.clock import LEAST_RUNS, at_work, times
from autoplan.calibrate.evidence import Measured
from autoplan.calibrate.host import eager_steps
from autoplan.calibrate.ops import prepared
from autoplan.calibrate.shapes import collectives, group_sizes, works_of_device
from autoplan.calibrate.works import Collective
from autoplan.cost.hardware import KINDS
from autoplan.runtime.verify.pool import WorkerPool


def test_all_ranks_have_the_same_timings(pool: WorkerPool) -> None:
    everyone = pool.run(measured_ops)
    assert all(each == everyone[0] for each in everyone)
    assert len(everyone[0].timings) == 2 and not everyone[0].left_out
    assert all(timing.seconds > 0 and timing.runs >= LEAST_RUNS for timing in everyone[0].timings)


def test_collectives_of_every_kind_and_group_are_timed(pool: WorkerPool) -> None:
    found = pool.run(measured_links)[0]
    assert isinstance(found, Measured) and not found.left_out
    timed = {(timing.work.ranks, timing.work.kind) for timing in found.timings if isinstance(timing.work, Collective)}
    assert timed == {(group, kind) for group in (2, 4) for kind in KINDS}


def test_what_one_rank_cannot_do_is_left_out_on_all(pool: WorkerPool) -> None:
    everyone = pool.run(measured_with_a_failure)
    for found in everyone:
        assert [timing.work.family for timing in found.timings] == ["vectors"]
        assert found.left_out == {"products: 8 x 8 x 8 float32 forward": "rank 1: RuntimeError: no kernel for this"}


def test_what_does_not_fit_is_not_tried(pool: WorkerPool) -> None:
    found = pool.run(measured_ops, 1000)[0]
    assert not found.timings and set(found.left_out.values()) == {"too large for the memory that is free"}


def test_the_host_is_timed_by_the_runtimes_own_code(pool: WorkerPool) -> None:
    """On GPUs only; the code runs on the CPU as well."""
    found = pool.run(started)[0]
    assert {kind for kind, _, _ in found} == set(KINDS) and {way for _, way, _ in found} == {"forward", "backward"}
    assert all(seconds > 0 for _, _, seconds in found)


def test_eager_steps_are_timed_with_the_number_of_their_ops(one_thread: None) -> None:
    steps = list(eager_steps(torch.device("cpu")))
    assert [work.ops for work, _ in steps] == sorted({work.ops for work, _ in steps}), "more layers have more ops"
    assert all(min(taken) > 0 for _, taken in steps)


@pytest.mark.parametrize(("per_host", "expected"), [(1, ()), (2, (2,)), (4, (2, 4)), (6, (2, 6)), (8, (2, 4, 8)), (3, (3,))])
def test_groups_fill_a_host(per_host: int, expected: tuple[int, ...]) -> None:
    assert group_sizes(per_host) == expected


@pytest.mark.parametrize(("ranks", "per_host"), [(2, 2), (4, 4), (6, 6), (16, 8), (2, 1), (12, 6)])
def test_collectives_divide_by_their_groups(ranks: int, per_host: int) -> None:
    found = list(collectives("cuda", ranks, per_host, 2, quick=False))
    assert found and all(work.full_bytes % (2 * work.ranks) == 0 and work.mesh.size == ranks for work in found)
    assert {work.is_inside for work in found} == ({True, False} if ranks > per_host > 1 else {ranks == per_host})


def test_every_work_of_the_cpu_runs(one_thread: None) -> None:
    for work in works_of_device("cpu", "float32", ("float64",), quick=True):
        run, before = prepared(work, torch.device("cpu"))
        if before:
            before()
        run()


def test_the_first_third_of_the_runs_warms_up() -> None:
    assert at_work([9.0, 9.0, 9.0, 1.0, 2.0, 3.0, 1.0, 2.0, 3.0]) == 2.0
    assert len(times(lambda: None, 0.0)) == LEAST_RUNS
    assert len(times(lambda: None, 0.0, count=lambda own: own + 1)) == LEAST_RUNS + 1


def test_shapes_that_are_quick_are_fewer() -> None:
    whole, quick = (list(works_of_device("cuda", "bfloat16", (), quick=each)) for each in (False, True))
    assert len(quick) < len(whole) / 1.5
    assert {work.family for work in quick} == {work.family for work in whole}


def test_attention_with_dropout_is_measured_without_too() -> None:
    """What dropout adds is the difference."""
    for kind, dtype, quick in (("cuda", "bfloat16", False), ("cuda", "bfloat16", True), ("cpu", "float32", False)):
        works = list(works_of_device(kind, dtype, (), quick=quick))
        dropping = [work for work in works if work.family.endswith("with dropout")]
        assert dropping and all(replace(work, dropout=False) in works for work in dropping)  # type: ignore[type-var]
