"""One process of a WorkerPool: joins the others over gloo, then runs the jobs that arrive until the pool hangs up."""

from __future__ import annotations

import os
import pickle
import sys
import traceback
from datetime import timedelta
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from autoplan.errors import AutoplanError

COLLECTIVE_TIMEOUT = timedelta(seconds=120)


def main(handle: int, rank: int, size: int, folder: str) -> None:
    """Serve jobs from the socket `handle` as `rank` of `size`."""
    torch.set_num_threads(1)
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(size), LOCAL_RANK=str(rank), LOCAL_WORLD_SIZE=str(size))
    store = dist.FileStore(str(Path(folder) / "store"), size)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=size, timeout=COLLECTIVE_TIMEOUT)
    connection = Connection(handle)
    while True:
        try:
            message = connection.recv_bytes()
        except (EOFError, OSError):
            break
        connection.send_bytes(_answer(message, rank))
    os._exit(0)  # the other ranks may be gone: nothing to say goodbye to


def _answer(message: bytes, rank: int) -> bytes:
    try:
        job, args = pickle.loads(message)
        return pickle.dumps(("result", job(*args)))
    except AutoplanError as error:
        return pickle.dumps(("user", portable(error)))
    except BaseException:
        return pickle.dumps(("error", f"rank {rank}: {traceback.format_exc()}"))


def portable(error: AutoplanError) -> AutoplanError:
    """The error as one that pickles: same message and exit code."""
    copy: Any = _Plain(str(error))
    copy.exit_code = error.exit_code
    return copy


class _Plain(AutoplanError):
    """An AutoplanError of any kind, as a worker sends it."""

    def __init__(self, message: str) -> None:
        super().__init__(message)


if __name__ == "__main__":
    from autoplan.runtime.verify import worker

    worker.main(int(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4])
