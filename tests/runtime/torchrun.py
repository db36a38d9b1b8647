"""Runs under torchrun in the tests: started, waited for, and their processes found by rank."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
APPLY = str(ROOT / "apply.py")
ENVIRONMENT = {key: value for key, value in os.environ.items() if key not in ("RANK", "WORLD_SIZE")} | {
    "PYTHONPATH": str(ROOT / "src"),
    "OMP_NUM_THREADS": "1",
}


class Run:
    """One torchrun agent; its output goes to a file, so that it can be read while it runs."""

    def __init__(
        self,
        arguments: Sequence[str],
        folder: Path,
        *,
        name: str = "run",
        prefix: Sequence[str] = (),
        extra: Mapping[str, str] | None = None,
    ) -> None:
        self._log = folder / f"{name}.log"
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(
                [*prefix, sys.executable, "-m", "torch.distributed.run", *arguments],
                cwd=folder,
                env=ENVIRONMENT | dict(extra or {}),
                stdout=log,
                stderr=log,
            )

    @property
    def said(self) -> str:
        """What it has printed so far."""
        return self._log.read_text(errors="replace")

    def wait_for(self, pattern: str, timeout_s: float = 240.0) -> str:
        """The first match in what is printed."""
        deadline = time.monotonic() + timeout_s
        while not (found := re.search(pattern, self.said)):
            assert self.process.poll() is None, f"ended before it said {pattern!r}:\n{self.said}"
            assert time.monotonic() < deadline, f"never said {pattern!r}:\n{self.said}"
            time.sleep(0.1)
        return found[0]

    def pid_of(self, rank: int) -> int:
        """The process that has this rank now."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        own = [int(pid) for pid in children if f"RANK={rank}".encode() in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")]
        assert len(own) == 1, (children, own)
        return own[0]

    def end(self, timeout_s: float = 240.0) -> int:
        """The exit code; torchrun is killed if it does not come."""
        try:
            return self.process.wait(timeout_s)
        finally:
            if self.process.poll() is None:
                self.process.kill()
