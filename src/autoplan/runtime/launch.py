"""How a process joins the others: the device it takes, the backend, the mesh."""

from __future__ import annotations

import os

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from autoplan.placement import Mesh


def this_rank() -> int:
    """The number that torchrun gave this process; 0 without torchrun."""
    return int(os.environ.get("RANK", "0"))


def join_mesh(mesh: Mesh) -> DeviceMesh:
    """Join the other processes: nccl on CUDA, gloo on the CPU, where the processes of a host share its cores."""
    kind = "cuda" if torch.cuda.is_available() else "cpu"
    if kind == "cuda":
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    else:
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))))
    backend = "nccl" if kind == "cuda" else "gloo"
    if "RANK" in os.environ:
        dist.init_process_group(backend, device_id=torch.device("cuda", torch.cuda.current_device()) if kind == "cuda" else None)
    else:
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
    return init_device_mesh(kind, mesh.shape, mesh_dim_names=mesh.names)
