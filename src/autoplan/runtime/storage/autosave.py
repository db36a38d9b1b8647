"""`--checkpoint DIR --checkpoint-every K` of the torchrun entry: where a run begins, where it ends, and what it leaves on the way."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from torch import nn
from torch.optim import Optimizer

from autoplan.runtime.ranks.agreement import on_rank_0
from autoplan.runtime.storage import checkpoint
from autoplan.runtime.storage.states import Stateful


@dataclass
class Autosave:
    """Goes on from the last checkpoint in a folder and writes one every `every` steps and at the end; without a folder, none.

    `also` are schedulers and the like, see `checkpoint.save`. Only training is saved: an inference plan reads a checkpoint and leaves
    it alone.
    """

    folder: str | None
    every: int | None
    module: nn.Module
    optimizer: Optimizer | None
    also: Mapping[str, Stateful] = field(default_factory=dict)
    writes: bool = True
    _end: int = field(default=0, init=False)
    _saved: int | None = field(default=None, init=False)

    def resume(self, steps: int) -> range:
        """The steps to run, by number: `steps` of them after those of the last checkpoint; what was left, where torchrun restarts a run."""
        if self.folder is None:
            self._end = steps
            return range(steps)
        done = checkpoint.resume(self.folder, self.module, self.optimizer, also=self.also)
        self._saved = done or None
        self._end = on_rank_0(partial(_end, Path(self.folder), done + steps), checkpoint.UNWRITABLE) if self.writes else done + steps
        return range(done, self._end)

    def after(self, step: int) -> bool:
        """To be called when `step` steps are done: whether a checkpoint was written."""
        due = step >= self._end or (self.every is not None and step % self.every == 0)
        if self.folder is None or not self.writes or not due or step == self._saved:
            return False
        checkpoint.save(self.folder, self.module, self.optimizer, step, also=self.also)
        self._saved = step
        return True


def _end(folder: Path, end: int) -> int:
    """The step at which a run ends: `end`, noted in the folder, and after a restart by torchrun what was noted when it began."""
    note = folder / "end"
    if int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0 and note.exists():
        return int(note.read_text())
    folder.mkdir(parents=True, exist_ok=True)
    note.write_text(f"{end}\n")
    return end
