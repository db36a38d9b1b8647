"""How a process joins the others: the watch over all of them, the device it takes, the backend, the mesh."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from autoplan.errors import UsageError
from autoplan.placement import Mesh
from autoplan.plan.load import load_plan
from autoplan.plan.schema import Plan
from autoplan.runtime.ranks.agreement import check_world
from autoplan.runtime.ranks.watch import Sign, Watch, write


def this_rank() -> int:
    """The number that torchrun gave this process; 0 without torchrun."""
    return int(os.environ.get("RANK", "0"))


def _let_segments_grow() -> None:
    """Have CUDA's allocator join free pieces, unless the user has settings: plans count what is allocated, not what lies between.

    Llama 8B with 6 x 8192 tokens on two GPUs has a peak of 130.8 of 139.8 GiB; without this it ran out, 6.8 GiB being in pieces too
    small (benchmarks/runtime). The allocator reads the variable when it first allocates.
    """
    if not {"PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"} & os.environ.keys():
        os.environ["PYTORCH_CUDA_ALLOC_CONF"] = "expandable_segments:True"


def _own_gpu() -> int:
    """The GPU of this process, one for each of its host's; raises UsageError where there are fewer."""
    own, there = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
    if own >= there:
        started = os.environ.get("LOCAL_WORLD_SIZE", str(own + 1))
        raise UsageError(
            f"{started} processes run on a host where {there} GPU{'s are' if there > 1 else ' is'} visible",
            next_step=f"--nproc-per-node {there} and a plan for so many, more hosts, or look at CUDA_VISIBLE_DEVICES",
        )
    return own


@contextlib.contextmanager
def join_mesh(plan: Plan | str | Path) -> Iterator[DeviceMesh]:
    """The device mesh of a plan, over the processes that torchrun started, each on its device: nccl on CUDA, gloo on the CPU.

    Within it the ranks watch each other: if one is lost or raises, that is said once and every process ends, with an exit
    code other than 0. Without torchrun the mesh is of this process alone, and errors are raised.
    """
    with Launch() as launch:
        plan = load_plan(plan) if isinstance(plan, str | Path) else plan
        check_world(plan.mesh, plan.provenance.source)
        yield launch.join(plan.mesh)


class Launch:
    """The processes of a run, from their first contact to their last; a context manager. `world` is how many they are.

    Each launch by torchrun, a restart too, has a store of its own: torch 2.13 hands a restarted group the store of the one
    before, with the addresses of processes that are gone.
    """

    def __init__(self) -> None:
        self._store: dist.Store = dist.HashStore()
        self._rank, self.world = 0, int(os.environ.get("WORLD_SIZE", "1"))
        self._watch: Watch | None = None

    def __enter__(self) -> Launch:
        if self.world > 1:
            self._store, self._rank, self.world = next(dist.rendezvous("env://"))
            self._start_watch()
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if error is None or (isinstance(error, SystemExit) and not error.code):  # sys.exit() is an end like any other
            if dist.is_initialized():
                dist.destroy_process_group()
            if self._watch is not None:
                self._watch.close()
        elif self._watch is not None and isinstance(error, Exception):
            os._exit(self._watch.fail(error))

    def join(self, mesh: Mesh) -> DeviceMesh:
        """Make the process group and the mesh over it; the processes of a host share its cores."""
        kind = "cuda" if torch.cuda.is_available() else "cpu"
        if kind == "cuda":
            _let_segments_grow()
            torch.cuda.set_device(_own_gpu())
        else:
            torch.set_num_threads(max(1, (os.cpu_count() or 1) // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))))
        dist.init_process_group(
            "nccl" if kind == "cuda" else "gloo",
            store=self._store,
            rank=self._rank,
            world_size=self.world,
            device_id=torch.device("cuda", torch.cuda.current_device()) if kind == "cuda" else None,
        )
        return init_device_mesh(kind, mesh.shape, mesh_dim_names=mesh.names)

    def _start_watch(self) -> None:
        """A rank that cannot reach rank 0 says so and goes unwatched."""
        try:
            store = self._store.clone()  # type: ignore[attr-defined]  # the stubs lack it
            self._watch = Watch(store, self._rank, self.world).start()
        except OSError as error:
            write(f"note: rank {self._rank} cannot reach rank 0, and would not be missed: {error}")
            return
        self._store = dist.PrefixStore(self._watch.token, self._store)


def say_alone(error: BaseException) -> int:
    """Print the error of a process that nobody watches; the exit code."""
    sign = Sign.of_error(this_rank(), error)
    write(sign.text)
    return sign.code
