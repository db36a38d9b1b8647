"""What must hold before the first collective: processes as many as the mesh has ranks, where it wants them, all of one mind."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, TypeVar

import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh

from autoplan.errors import AutoplanError, PlanError, UsageError
from autoplan.placement import Mesh
from autoplan.plan.schema import Plan

Found = TypeVar("Found")


def check_world(mesh: Mesh, plan_name: str) -> None:
    """Raises UsageError with the right torchrun line if the processes are not as many as the mesh has ranks."""
    world = dist.get_world_size() if dist.is_initialized() else int(os.environ.get("WORLD_SIZE", "1"))
    if world != mesh.size:
        raise UsageError(
            f"the plan is for a mesh of {mesh} = {mesh.size} ranks, but {world} process{'es run' if world > 1 else ' runs'}",
            next_step=f"torchrun --nproc-per-node {mesh.size} apply.py --plan {plan_name} (or --nnodes and --nproc-per-node with that product)",
        )


def check_device_mesh(mesh: Mesh, device_mesh: DeviceMesh) -> None:
    """Raises UsageError unless the device mesh has the plan's axes and its ranks in row-major order."""
    if tuple(device_mesh.shape) != mesh.shape:
        raise UsageError(
            f"the device mesh is {'x'.join(map(str, device_mesh.shape))}, the plan's is {mesh}",
            next_step=f"init_device_mesh(device, {mesh.shape})",
        )
    if device_mesh.mesh.flatten().tolist() != list(range(mesh.size)):
        raise UsageError(
            f"the device mesh orders its ranks {device_mesh.mesh.flatten().tolist()}",
            next_step="make it by init_device_mesh, ranks in row-major order",
        )


def check_hosts(plan: Plan, per_host: int) -> str | None:
    """A note where hosts of `per_host` ranks are not those that the predictions are for; None if they are, or one host runs all.

    Raises UsageError if groups over the last axis, which ranks next to each other make up, span more hosts than planned.
    """
    mesh, planned = plan.mesh, plan.hardware.per_host or plan.mesh.size
    if per_host >= mesh.size:
        return None
    wider = [axis for axis in range(mesh.ndim) if _hosts(mesh, axis, per_host) > _hosts(mesh, axis, planned)]
    if not wider:
        return None
    spans = ", ".join(
        f"{mesh.names[axis]} spans {_hosts(mesh, axis, per_host)} hosts instead of {_hosts(mesh, axis, planned)}" for axis in wider
    )
    facts = f"{per_host} of {mesh.size} ranks run on each host, the plan puts {planned} there: axis {spans}"
    if mesh.ndim - 1 in wider:
        raise UsageError(
            facts,
            where=plan.provenance.where("hardware"),
            next_step=f"start more ranks on a host (--nproc-per-node), or plan for hardware with gpus_per_node: {per_host}",
        )
    return f"note: {facts}; the predictions do not know of it"


def _hosts(mesh: Mesh, axis: int, per_host: int) -> int:
    """On how many hosts the ranks of one group over an axis run, at most; rank r runs on host r // per_host."""
    groups: dict[tuple[int, ...], set[int]] = {}
    for rank, coordinate in enumerate(mesh.coordinates()):
        groups.setdefault(coordinate[:axis] + coordinate[axis + 1 :], set()).add(rank // per_host)
    return max(map(len, groups.values()))


def launch_facts() -> dict[str, str]:
    """What every rank must say alike of how it was started; nothing where torchrun's variables are not set."""
    if "LOCAL_WORLD_SIZE" not in os.environ:
        return {}
    rank, local, size = (int(os.environ[name]) for name in ("RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE"))
    order = "host by host" if rank % size == local else f"process {local} of its host"
    return {"processes of a host": str(size), "order of ranks": order}


def check_agreement(facts: dict[str, str]) -> None:
    """Raises PlanError that names the ranks whose facts (plan, graph, torch version) are not those of rank 0."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return
    everyone: list[dict[str, str] | None] = [None] * dist.get_world_size()
    dist.all_gather_object(everyone, facts)
    first = everyone[0] or {}
    differing = {
        what: [f"rank {rank} has {own[what]}" for rank, own in enumerate(everyone) if own and own[what] != first[what]] for what in facts
    }
    problems = [f"{what}: rank 0 has {first[what]}, {', '.join(ranks[:4])}" for what, ranks in differing.items() if ranks]
    if problems:
        raise PlanError("the ranks do not agree\n" + "\n".join(problems), next_step="launch the same code, plan and torch everywhere")


def on_rank_0(function: Callable[[], Found], what: str | None = None) -> Found:
    """What the function returns on rank 0, on every rank; its error, if it is a user's or the file system's, likewise.

    `what` begins the message of an error of the file system: what cannot be done. What is looked up in files so is the same everywhere, however late other hosts see them change.
    """
    answer: list[Any] = [None, None]
    if not dist.is_initialized() or dist.get_rank() == 0:
        try:
            answer[0] = function()
        except OSError as error:
            why = error.strerror or str(error)
            answer[1] = PlanError(f"{what}: {why}" if what else why, where=error.filename)
        except AutoplanError as error:
            answer[1] = error
    if dist.is_initialized():
        dist.broadcast_object_list(answer)
    if answer[1] is not None:
        raise answer[1]
    return answer[0]
