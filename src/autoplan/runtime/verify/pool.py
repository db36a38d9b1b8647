"""Worker processes that are started once and run many jobs: one per rank, joined by gloo on the CPU.

A job is a picklable callable with arguments; every rank runs it and its results come back in rank order. The workers are
`python -m autoplan.runtime.verify.worker` with this process's import path, so that a caller's main module is not run again.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from multiprocessing.connection import Connection, wait
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

from autoplan.errors import AutoplanError

Result = TypeVar("Result")

START_TIMEOUT_S = 120.0
GRACE_S = 5.0  # that the other ranks get to report once one has failed


class WorkerError(RuntimeError):
    """A job raised in a worker, or the worker died; the message has the worker's own traceback."""


class WorkerPool:
    """`size` processes as ranks 0 to size - 1; a context manager. After a job in which a rank died or hung they start anew."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._workers: list[tuple[subprocess.Popen[bytes], Connection]] = []
        self._folder: tempfile.TemporaryDirectory[str] | None = None

    def __enter__(self) -> WorkerPool:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def run(self, job: Callable[..., Result], *args: Any, timeout_s: float = 600.0) -> list[Result]:
        """`job(*args)` on every rank; an AutoplanError is raised again as it is, any other as WorkerError."""
        if not self._workers:
            self._start()
        message = pickle.dumps((job, args))
        for _, connection in self._workers:
            with contextlib.suppress(OSError):  # the worker is gone: `_collect` says so
                connection.send_bytes(message)
        answers = self._collect(timeout_s)
        failed = [answer for answer in answers if answer[0] != "result"]
        if not failed:
            return [answer[1] for answer in answers]
        if any(answer[0] in ("dead", "late") for answer in failed):
            self.close(kill=True)  # ranks may still wait for each other
        raise _worst(failed)

    def close(self, *, kill: bool = False) -> None:
        """End the workers; the next job starts new ones."""
        for process, connection in self._workers:
            connection.close()
            if kill:
                process.kill()
        for process, _ in self._workers:
            try:
                process.wait(GRACE_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self._workers = []
        if self._folder is not None:
            self._folder.cleanup()
            self._folder = None

    def _start(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="autoplan-workers-")
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path), "OMP_NUM_THREADS": "1"}
        for rank in range(self.size):
            ours, theirs = socket.socketpair()
            log = open(self._log(rank), "wb")  # noqa: SIM115
            command = [
                sys.executable,
                "-m",
                "autoplan.runtime.verify.worker",
                str(theirs.fileno()),
                str(rank),
                str(self.size),
                self._folder.name,
            ]
            process = subprocess.Popen(
                command,
                env=environment,
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
            theirs.close()
            log.close()
            self._workers.append((process, Connection(ours.detach())))

    def _log(self, rank: int) -> Path:
        assert self._folder is not None
        return Path(self._folder.name) / f"rank{rank}.log"

    def _collect(self, timeout_s: float) -> list[tuple[str, Any]]:
        """One answer per rank: ("result", value), ("user", error), ("error", traceback) or ("dead", why)."""
        answers: dict[int, tuple[str, Any]] = {}
        rank_of = {id(connection): rank for rank, (_, connection) in enumerate(self._workers)}
        deadline = time.monotonic() + timeout_s
        while len(answers) < self.size:
            waiting = [connection for rank, (_, connection) in enumerate(self._workers) if rank not in answers]
            ready = wait(waiting, max(0.0, deadline - time.monotonic()))
            if not ready:
                break
            for connection in ready:
                rank = rank_of[id(connection)]
                try:
                    answers[rank] = pickle.loads(connection.recv_bytes())  # type: ignore[union-attr]
                except (EOFError, OSError):
                    answers[rank] = ("dead", self._obituary(rank))
                if answers[rank][0] != "result":
                    deadline = min(deadline, time.monotonic() + GRACE_S)
        late = ("late", f"gave no answer within {timeout_s:.0f} s")
        return [answers.get(rank, late) for rank in range(self.size)]

    def _obituary(self, rank: int) -> str:
        code = self._workers[rank][0].wait(GRACE_S)
        log = self._log(rank).read_text(errors="replace").strip().splitlines()[-20:]
        return "\n".join([f"the worker of rank {rank} of {self.size} died with exit code {code}; the last it said:", *log])


def _worst(failed: list[tuple[str, Any]]) -> BaseException:
    """The cause among what failed: a user's error first, then a rank that died, then the first traceback."""
    for kind in ("user", "dead", "error", "late"):
        for answer in failed:
            if answer[0] == kind:
                return answer[1] if isinstance(answer[1], AutoplanError) else WorkerError(answer[1])
    raise AssertionError(failed)
