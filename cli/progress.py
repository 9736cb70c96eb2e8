"""Progress of long steps as bars on standard error, where that is a terminal."""

from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.filesize import decimal
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TaskID, TextColumn, TimeRemainingColumn
from rich.text import Text


class Bars:
    """A `targets.contract.Progress` that draws: one bar a step, with its rate and the time that remains.

    A context manager: the bars stand while it is open. Where standard error is no terminal nothing is drawn.
    """

    def __init__(self, console: Console | None = None) -> None:
        console = console or Console(stderr=True)
        self._drawn = console.is_terminal
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            _Amount(),
            _Rate(),
            TimeRemainingColumn(compact=True, elapsed_when_finished=True),
            console=console,
            disable=not self._drawn,
        )
        self._task: TaskID | None = None

    def start(self, step: str, total: int, unit: str) -> None:
        """Begin a bar; the one before it is complete."""
        self._finish()
        self._task = self._progress.add_task(step, total=total, unit=unit)

    def advance(self, amount: int) -> None:
        """Draw the current bar further by this many of its units."""
        if self._task is not None:
            self._progress.advance(self._task, amount)

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, reason: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self._finish()
        self._progress.stop()

    def _finish(self) -> None:
        if self._task is not None:
            task = self._progress.tasks[self._task]
            self._progress.update(self._task, completed=task.total)


class _Amount(ProgressColumn):
    def render(self, task: Task) -> Text:
        done, total = _count(task.completed, task.fields), _count(task.total or 0, task.fields)
        return Text(f"{done} of {total}")


class _Rate(ProgressColumn):
    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text(f"{_count(speed, task.fields, 1)}/s" if speed else "")


def _count(amount: float, fields: dict[str, Any], digits: int = 0) -> str:
    unit = fields["unit"]
    return decimal(int(amount)) if unit == "bytes" else f"{amount:.{digits}f} {unit}"
