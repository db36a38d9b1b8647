"""Checkpoints of training: whole or absent, under the module's own names, readable on any mesh and under any plan of the model.

A folder holds `step-00000100` and its like, each a checkpoint of torch.distributed.checkpoint. One is written under another name
beside them and renamed when all of it is there: the one with the highest number is the last, and no pointer can disagree with it. The
last two are kept, for the time between two saves and for a disk that spoils one.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata
from torch.optim import Optimizer

from autoplan.errors import PlanError, UsageError
from autoplan.runtime.ranks.agreement import on_rank_0
from autoplan.runtime.storage.differences import differences
from autoplan.runtime.storage.grouped import in_chunks
from autoplan.runtime.storage.states import (
    MODEL,
    OPTIMIZER,
    Stateful,
    make_states,
    model_tensors,
    optimizer_tensors,
    restore_run,
    run_problems,
    run_state,
)

KEPT = 2
UNWRITABLE = "the checkpoint cannot be written"
_RUN = "run"  # the one object that is no tensor
_STEP = re.compile(r"step-(\d{8,})")
_WRITING, _REMOVED = ".writing-", ".removed-"


def save(
    folder: str | os.PathLike[str],
    module: nn.Module,
    optimizer: Optimizer | None,
    step: int,
    *,
    also: Mapping[str, Stateful] | None = None,
    keep: int = KEPT,
) -> Path:
    """Write what `resume` needs to go on after `step` steps, then remove all but the last `keep`; where it was written.

    `also` are things with a state_dict that is the same on all ranks: schedulers, data loaders. All ranks call this, on a
    folder that all of them see. Raises PlanError, on every rank, where it cannot be written; what was there before stays.
    """
    if step < 0:
        raise UsageError(f"a checkpoint after {step} steps", next_step="count the steps that were done")
    place = Path(folder)
    writing, whole = place / f"{_WRITING}step-{step:08d}", place / f"step-{step:08d}"
    on_rank_0(lambda: _prepare(place, writing), UNWRITABLE)
    tensors = model_tensors(module) | optimizer_tensors(module, optimizer)
    state = {name: in_chunks(tensor) for name, tensor in tensors.items()} | {_RUN: run_state(module, optimizer, step, also or {})}
    try:
        planner = dcp.DefaultSavePlanner(flatten_state_dict=False, flatten_sharded_tensors=False)
        dcp.save(state, storage_writer=dcp.FileSystemWriter(writing), planner=planner)
    except CheckpointException as error:
        raise PlanError(f"{UNWRITABLE}: {_first_cause(error)}", where=str(whole)) from error
    on_rank_0(lambda: _publish(writing, whole, keep), UNWRITABLE)
    return whole


def resume(
    folder: str | os.PathLike[str],
    module: nn.Module,
    optimizer: Optimizer | None,
    *,
    also: Mapping[str, Stateful] | None = None,
) -> int:
    """Put back what `save` wrote last, on whichever mesh and in this plan's precision; steps done, 0 where nothing was saved yet.

    Parameters, buffers, optimizer states and hyperparameters, the seeds of random ops, and `also`. Without an optimizer the
    model alone. Raises PlanError, before the model is changed, that lists how the checkpoint differs from what is here.
    """
    place = last(folder)
    if place is None:
        return 0
    metadata: Metadata = on_rank_0(lambda: _read_metadata(place))
    state = _load(place, {_RUN: None})[_RUN]
    saved = set(metadata.state_dict_metadata) | set(state["values"])
    _check(_different(metadata, model_tensors(module), MODEL) + run_problems(state, module, optimizer, also or {}), place)
    if optimizer is not None:
        make_states(module, optimizer, saved)
        _check(_different(metadata, optimizer_tensors(module, optimizer), OPTIMIZER), place)
    tensors = model_tensors(module) | optimizer_tensors(module, optimizer)
    _load(place, {name: in_chunks(tensor) for name, tensor in tensors.items()})
    return restore_run(state, module, optimizer, also or {})


def last(folder: str | os.PathLike[str]) -> Path | None:
    """The last whole checkpoint in a folder, as rank 0 sees it; None where there is none. Raises UsageError for the folder of one."""
    return on_rank_0(lambda: _last(Path(folder)))


def _last(folder: Path) -> Path | None:
    if (folder / ".metadata").exists():
        raise UsageError(f"{folder} is one checkpoint, not a folder of them", next_step=f"give {folder.parent}")
    return max(_whole(folder), key=_step, default=None)


def _whole(folder: Path) -> list[Path]:
    return [path for path in folder.glob("step-*") if _STEP.fullmatch(path.name) and (path / ".metadata").exists()]


def _step(path: Path) -> int:
    return int(path.name.removeprefix("step-"))


def _prepare(folder: Path, writing: Path) -> None:
    """A folder to write to, without what a run that died has left."""
    _last(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for left in [*folder.glob(f"{_WRITING}*"), *folder.glob(f"{_REMOVED}*")]:
        shutil.rmtree(left)
    writing.mkdir()


def _publish(writing: Path, whole: Path, keep: int) -> None:
    """Give a checkpoint its name once every rank's file is there and on the disk, and remove those that it replaces."""
    files = {info.relative_path for info in _read_metadata(writing).storage_data.values()}
    if missing := sorted(name for name in files if not (writing / name).exists()):
        raise PlanError(
            f"the checkpoint lacks {', '.join(missing)}: other hosts wrote them elsewhere",
            where=str(whole.parent),
            next_step="give a folder on a file system that all hosts share",
        )
    _sync(writing)
    removed = [_renamed_away(whole)] if whole.exists() else []
    writing.rename(whole)
    _sync(whole.parent)
    older = sorted((path for path in _whole(whole.parent) if path != whole), key=_step, reverse=True)
    for path in removed + [_renamed_away(path) for path in older[max(0, keep - 1) :]]:
        shutil.rmtree(path)


def _renamed_away(checkpoint: Path) -> Path:
    """What is to be removed, where half of it does not look like a checkpoint."""
    return checkpoint.rename(checkpoint.with_name(f"{_REMOVED}{checkpoint.name}"))


def _sync(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _read_metadata(place: Path) -> Metadata:
    try:
        return dcp.FileSystemReader(place).read_metadata()
    except Exception as error:  # it is a pickle, whose damage shows as anything
        raise PlanError(f"the checkpoint cannot be read: {type(error).__name__}: {error}", where=str(place)) from error


def _load(place: Path, state: dict[str, Any]) -> dict[str, Any]:
    """`state` with what the checkpoint has under its names: tensors are written in place."""
    try:
        planner = dcp.DefaultLoadPlanner(flatten_state_dict=False, flatten_sharded_tensors=False)
        dcp.load(state, storage_reader=dcp.FileSystemReader(place), planner=planner)
    except CheckpointException as error:
        raise PlanError(f"the checkpoint cannot be read: {_first_cause(error)}", where=str(place)) from error
    return state


def _different(metadata: Metadata, own: Mapping[str, Tensor], prefix: str) -> list[str]:
    """How the saved tensors below `prefix` differ from those here: lines of a message."""
    saved = {name: tuple(entry.size) for name, entry in metadata.state_dict_metadata.items() if isinstance(entry, TensorStorageMetadata)}
    return differences(
        {name: tuple(tensor.shape) for name, tensor in own.items()}, {name: saved[name] for name in saved if name.startswith(prefix)}
    )


def _check(problems: list[str], place: Path) -> None:
    if problems:
        what = "\n".join(["the checkpoint is not this run's", *problems])
        raise PlanError(what, where=str(place), next_step="give the model and optimizer that it was saved with, or another folder")


def _first_cause(error: CheckpointException) -> str:
    rank, (cause, _) = min(error.failures.items())
    return f"rank {rank}: {cause or type(cause).__name__}"
