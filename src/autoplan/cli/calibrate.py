"""`autoplan calibrate`: this machine measured, a hardware profile out."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from autoplan.cli.exits import reported
from autoplan.cli.hardware import ASSUMED, profile_of
from autoplan.cli.options import PLAN, json_option
from autoplan.cli.output import check_output, put_json, tell
from autoplan.errors import AutoplanError, HardwareError, UsageError

if TYPE_CHECKING:
    from autoplan.calibrate.evidence import Evidence, Site
    from autoplan.calibrate.residuals import Residual
    from autoplan.cost.hardware import Hardware
    from autoplan.runtime.ranks.launch import Launch

_WIDTH = 140  # of tables that go to a file
EXAMPLE = "torchrun --standalone --nproc-per-node 4 -m autoplan calibrate -o profile.yaml"


@click.command(epilog=f"Under torchrun links are measured too: {EXAMPLE}")
@click.option("-o", "--output", "--out", "out", type=PLAN, required=True, metavar="FILE", help="Where the profile goes.")
@click.option("--base", metavar="NAME|FILE", help="The profile that has what is not measured; that of the GPU here unless said.")
@click.option("--quick", is_flag=True, help="Fewer shapes, and less of each.")
@json_option
@reported
def calibrate(out: Path, base: str | None, quick: bool, as_json: bool) -> None:
    """Measure this machine, and write the hardware profile that predicts it best. `plan --hardware FILE` reads it."""
    from autoplan.runtime.ranks.launch import Launch, this_rank

    with Launch() as launch:
        first = this_rank() == 0
        if first:
            check_output(out, "the profile")
        calibrated(launch, out, base, quick=quick, as_json=as_json, first=first)
    if launch.world > 1:  # as runtime/train: threads of gloo may still hold tensors, and abort while the interpreter goes away
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)


def calibrated(launch: Launch, out: Path, base: str | None, *, quick: bool, as_json: bool, first: bool) -> None:
    """Measured by all ranks; fitted, written and told by the `first`."""
    from autoplan.cli.progress import Stages

    with Stages(quiet=not first) as stages:
        stages.stage("join")
        evidence = measured(launch, base, quick=quick, stages=stages, first=first)
        if not first:
            return
        stages.stage("fit")
        if not evidence.measured.timings:
            raise AutoplanError("nothing could be measured", where="; ".join(evidence.measured.left_out.values()))
        text, found = fitted_text(evidence, out.stem)
    write(text, out)
    if as_json:
        put_json(report(evidence, found, out, stages.seconds))
    tell_residuals(evidence, found)
    tell(f"\nwrote {out}")


def measured(launch: Launch, base: str | None, *, quick: bool, stages: Any, first: bool) -> Evidence:
    """What this rank and all others measure."""
    check_devices()
    from autoplan.calibrate.evidence import Evidence
    from autoplan.calibrate.measure import find_site, measure
    from autoplan.cost.hardware import load_hardware
    from autoplan.placement import parse_mesh

    profile = None if base is None else load_hardware(base)
    launch.join(parse_mesh(str(launch.world)))
    site = find_site()
    notes, profile = chosen_base(site, profile)
    for note in notes if first else ():
        tell(note)
    same = profile.device == site.device or profile_of(site.device) == profile.name
    others = [dtype for dtype in profile.compute.flops_per_s if dtype != site.dtype and not same]
    return Evidence(profile, same, site, measure(site, others, quick=quick, on_stage=stages.stage))


def check_devices() -> None:
    """Raises UsageError where a host has more processes than GPUs."""
    import torch

    here = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if torch.cuda.is_available() and torch.cuda.device_count() < here:
        raise UsageError(
            f"{here} processes on a host with {torch.cuda.device_count()} GPUs: each takes one",
            next_step=f"--nproc-per-node {torch.cuda.device_count()}",
        )


def chosen_base(site: Site, profile: Hardware | None) -> tuple[list[str], Hardware]:
    """The profile that has what is not measured, and what there is to say about it."""
    from autoplan.cost.hardware import load_hardware

    notes = []
    if site.kind == "cpu":
        notes.append("no GPU that torch can use: measuring the CPU, collectives by gloo")
    if site.ranks == 1:
        notes.append(f"one process: links are not measured but taken from the base; with torchrun they are: {EXAMPLE}")
    if profile is None:
        known = "cpu-gloo" if site.kind == "cpu" else profile_of(site.device)
        if known is None:
            notes.append(f"no profile for {site.device}: what is not measured is as {ASSUMED}; --base names another")
        profile = load_hardware(known or ASSUMED)
    return notes, profile


def fitted_text(evidence: Evidence, name: str) -> tuple[str, list[Residual]]:
    """The profile's text, and what it predicts once it is read again."""
    from autoplan.calibrate.fit import fit
    from autoplan.calibrate.profile import profile_text
    from autoplan.calibrate.residuals import residuals
    from autoplan.cost.hardware import load_hardware

    text = profile_text(fit(evidence), evidence)
    with tempfile.TemporaryDirectory(prefix="autoplan-calibrate-") as folder:
        path = Path(folder) / f"{name}.yaml"
        path.write_text(text, encoding="utf-8")
        return text, residuals(evidence.measured.timings, load_hardware(path))


def write(text: str, out: Path) -> None:
    """The file, whole or not at all."""
    from autoplan.files import replace_text

    try:
        replace_text(out, text)
    except OSError as error:
        raise HardwareError(f"the profile cannot be written: {error.strerror}", where=str(out)) from error


def report(evidence: Evidence, found: Sequence[Residual], out: Path, seconds: dict[str, float]) -> dict[str, Any]:
    """What `--json` prints."""
    from autoplan.calibrate.residuals import summaries

    site = evidence.site
    return {
        "profile": str(out),
        "base": evidence.base.name,
        "device": site.device,
        "date": site.date,
        "software": site.software,
        "ranks": site.ranks,
        "hosts": site.hosts,
        "dtype": site.dtype,
        "seconds": {**seconds, "total": sum(seconds.values())},
        "families": {
            each.family: {"works": each.works, "typical_error": each.typical, "worst_error": each.worst.error, "worst": each.worst.what}
            for each in summaries(found)
        },
        "measured": [each.to_json() for each in found],
        "left_out": evidence.measured.left_out,
    }


def tell_residuals(evidence: Evidence, found: Sequence[Residual]) -> None:
    """A table of how well the profile predicts what was measured, family by family, and what could not be."""
    from rich.console import Console
    from rich.table import Table

    from autoplan.calibrate.residuals import summaries

    table = Table(box=None, pad_edge=False)
    for title, width in (("predicted", 31), ("timings", 7), ("typically off", 13), ("at most", 8), ("where", None)):
        table.add_column(
            title, no_wrap=True, min_width=width, justify="right" if title in ("timings", "typically off", "at most") else "left"
        )
    for each in summaries(found):
        table.add_row(each.family, str(each.works), f"{each.typical:.1%}", f"{each.worst.error:+.1%}", each.worst.what)
    tell("")
    Console(stderr=True, highlight=False, width=None if sys.stderr.isatty() else _WIDTH).print(table)
    for what, why in evidence.measured.left_out.items():
        tell(f"note: left out: {what}: {why}")


__all__ = ["calibrate"]
