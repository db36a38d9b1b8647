"""`autoplan verify`: a plan's parallel run against one device."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from autoplan.cli.exits import reported
from autoplan.cli.options import SettingsCommand, json_option, plan_argument, rules_option, set_option, target_of_plan
from autoplan.cli.output import put, put_json
from autoplan.errors import VerificationError
from autoplan.plan import Plan, load_plan
from autoplan.settings import parse_settings

if TYPE_CHECKING:
    from autoplan.assignment import Assignment
    from autoplan.graph import Graph
    from autoplan.load import Built, Target
    from autoplan.runtime.verify.pool import WorkerPool
    from autoplan.runtime.verify.results import Verification

DTYPES = {"fp32": "float32", "fp64": "float64"}


@click.command(cls=SettingsCommand)
@plan_argument
@click.option("--target", metavar="TARGET", help="The model, where it is no longer what the plan names.")
@set_option
@click.option("--random-plans", type=click.IntRange(min=0), default=0, metavar="K", help="Run K random legal plans too.")
@click.option("--seed", type=click.IntRange(min=0), default=0, metavar="S", help="Of weights, inputs and random plans.")
@click.option(
    "--dtype",
    type=click.Choice(list(DTYPES)),
    help="In what both sides compute; fp32 unless said, then fp64 where they differ as if by rounding.",
)
@rules_option
@json_option
@reported
def verify(
    plan_file: Path,
    target: str | None,
    settings: tuple[str, ...],
    random_plans: int,
    seed: int,
    dtype: str | None,
    rules: str | None,
    as_json: bool,
) -> None:
    """Run a plan against one device. Loss, gradients and collectives must agree; up to 8 ranks are processes, more are simulated."""
    plan = load_plan(plan_file)
    changes = parse_settings(settings)
    from autoplan.cli.progress import Stages

    with Stages() as stages:
        stages.stage("load")
        model = SeededModel.of(target_of_plan(plan, plan_file, target, changes, rules), plan.options.mode, seed)
        found = verified(plan, model, dtype, random_plans=random_plans, shrunk=bool(changes), on_stage=stages.stage)
    if as_json:
        put_json(found.to_json())
    else:
        put("\n".join(result(found)) + "\n")
    if not found.ok:
        raise VerificationError("the parallel run differs from one device", where=str(plan_file))


@dataclass(frozen=True, slots=True)
class SeededModel:
    """A target as a process of its own can build it: the same weights and inputs in each."""

    target: str
    settings: Mapping[str, Any]
    mode: str
    seed: int
    rules: str | None = None

    @classmethod
    def of(cls, target: Target, mode: str, seed: int) -> SeededModel:
        """The model of a loaded target."""
        name = target.name if target.file is None else f"{target.file}{target.suffix}"
        return cls(name, dict(target.settings), mode, seed, target.rules.place if target.rules else None)

    def __call__(self) -> Built:
        from autoplan.load import build_on, load_rules, load_target

        if self.rules is not None:
            load_rules(self.rules)
        return build_on(load_target(self.target, self.settings, mode=self.mode), "cpu", self.seed)


def verified(
    plan: Plan,
    model: SeededModel,
    dtype: str | None = None,
    *,
    random_plans: int = 0,
    shrunk: bool = False,
    pool: WorkerPool | None = None,
    on_stage: Callable[[str], None] = lambda name: None,
) -> Verification:
    """The plan and random ones against one device in `dtype`: fp32 unless said, then fp64 where they differ as if by rounding."""
    import torch

    from autoplan.runtime.verify.verify import verify as verify_runs

    for precision in ("fp32", "fp64") if dtype is None else (dtype,):
        on_stage(f"run in {precision}")
        fitting, graph = fitted(plan, model, precision, shrunk=shrunk)
        others = random_assignments(fitting, graph, random_plans, model.seed)
        found = verify_runs(model, fitting, dtype=getattr(torch, DTYPES[precision]), pool=pool, random_assignments=others)
        if not found.may_be_rounding:
            break
    return found


def fitted(plan: Plan, model: SeededModel, dtype: str, *, shrunk: bool) -> tuple[Plan, Graph]:
    """The plan, rescaled where settings have `shrunk` its model, and the graph it will run; raises PlanError for another model."""
    import torch

    from autoplan.runtime.prepare import check_model
    from autoplan.runtime.verify.verify import verified_graph

    if not shrunk:
        check_model(model().module, plan)
    graph = verified_graph(model, plan, getattr(torch, DTYPES[dtype]))
    if not shrunk:
        return plan, graph
    from autoplan.assignment.rescale import rescale

    return rescale(plan, graph), graph


def random_assignments(plan: Plan, graph: Graph, number: int, seed: int) -> list[Assignment]:
    """That many random legal decisions for the same graph and mesh."""
    if not number:
        return []
    from autoplan.planner.candidates import enumerate_candidates
    from autoplan.planner.random_plans import fold, random_assignment

    candidates = enumerate_candidates(graph, plan.mesh, fold(graph))
    return [random_assignment(graph, plan.mesh, seed + k, candidates=candidates) for k in range(number)]


def result(found: Verification) -> Iterator[str]:
    """What was compared, line by line; lines that differ are marked."""
    from autoplan.runtime.verify.results import GRADIENT_TOLERANCE, LOSS_TOLERANCE

    yield ("same as one device" if found.ok else "DIFFERS from one device") + (", both in fp64" if found.dtype == "float64" else "")
    yield _line("loss", f"{found.loss_rel_err:.2g} off, at most {LOSS_TOLERANCE:g}", found.loss_rel_err <= LOSS_TOLERANCE)
    worst = f", worst in {found.worst_param}" if found.worst_param else ""
    yield _line(
        "gradients", f"{found.grad_rel_err:.2g} off, at most {GRADIENT_TOLERANCE:g}{worst}", found.grad_rel_err <= GRADIENT_TOLERANCE
    )
    yield _line("split", f"{found.split_flops_fraction:.1%} of the work that the ranks could share", True)
    names = sorted({*found.planned, *found.observed})
    yield _line("collectives", "" if names else "none planned, none observed", True)
    width = max(map(len, names), default=0)
    for name in names:
        planned, observed = found.planned.get(name, 0), found.observed.get(name, 0)
        yield _line("", f"{name:<{width}}  planned {planned:>4}  observed {observed:>4}", planned == observed)
    for problem in found.problems:
        yield _line("", problem, False)
    if found.random_run:
        yield _line("random plans", f"{found.random_ok} of {found.random_run} agree with one device", found.random_ok == found.random_run)


def _line(name: str, text: str, good: bool) -> str:
    return f"  {name:<13} {text}{'' if good else '   <- differs'}".rstrip()
