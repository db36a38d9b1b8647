"""Progress on stderr: a line for each stage that is done, and on a terminal a spinner with what the current one has found."""

from __future__ import annotations

from time import perf_counter
from types import TracebackType

from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn

_NAME_WIDTH = 9


class Stages:
    """`stage(name)` begins a stage and ends the one before; `seconds` has what each took. `quiet`: another process tells."""

    def __init__(self, *, quiet: bool = False) -> None:
        self.seconds: dict[str, float] = {}
        self._console = Console(stderr=True, highlight=False, quiet=quiet)
        self._spinner = Progress(
            SpinnerColumn(),
            TextColumn(f"{{task.description:<{_NAME_WIDTH}}}"),
            TimeElapsedColumn(),
            TextColumn("{task.fields[found]}"),
            console=self._console,
            transient=True,
            disable=quiet or not self._console.is_terminal,
        )
        self._current: tuple[str, TaskID, float] | None = None
        self._found = ""

    def __enter__(self) -> Stages:
        self._spinner.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._end(done=kind is None)
        self._spinner.stop()

    def stage(self, name: str) -> None:
        """A stage begins."""
        self._end(done=True)
        self._current = (name, self._spinner.add_task(name, total=None, found=""), perf_counter())
        self._found = ""

    def incumbent(self, cost_ms: float, bound_ms: float) -> None:
        """The solver has found a better plan."""
        self.found(f"{cost_ms:.4g} ms a step, at least {bound_ms:.4g}")

    def found(self, text: str) -> None:
        """What the current stage has found."""
        self._found = text
        if self._current is not None:
            self._spinner.update(self._current[1], found=self._found)

    def _end(self, *, done: bool) -> None:
        if self._current is None:
            return
        name, task, start = self._current
        self._current = None
        self.seconds[name] = perf_counter() - start
        self._spinner.remove_task(task)
        if done:
            self._console.print(f"{name:<{_NAME_WIDTH}} {self.seconds[name]:6.1f} s  {self._found}".rstrip(), markup=False, soft_wrap=True)
