"""Progress of long steps on standard error: as bars where that is a terminal, as a line a minute where it is a log."""

import time
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.filesize import decimal
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TaskID, TextColumn, TimeRemainingColumn
from rich.text import Text

_BETWEEN = 60.0  # seconds from one line to the next


class Bars:
    """A `targets.contract.Progress` that draws: one bar a step, with its rate and the time that remains.

    A context manager: the bars stand while it is open. Where standard error is no terminal, as in a log, nothing is drawn; what
    takes minutes says once in each how far it is.
    """

    def __init__(self, console: Console | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self._console = console = console or Console(stderr=True)
        self._clock, self._said = clock, clock()
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            _Amount(),
            _Rate(),
            TimeRemainingColumn(compact=True, elapsed_when_finished=True),
            console=console,
            disable=not console.is_terminal,
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
            self._say(self._progress.tasks[self._task])

    def _say(self, task: Task) -> None:
        now = self._clock()
        if not self._console.is_terminal and now - self._said >= _BETWEEN:
            self._said = now
            self._console.print(f"{task.description}: {_amount(task)}", highlight=False, soft_wrap=True, markup=False)

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
        return Text(_amount(task))


class _Rate(ProgressColumn):
    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text(f"{_count(speed, task.fields, 1)}/s" if speed else "")


def _amount(task: Task) -> str:
    return f"{_count(task.completed, task.fields)} of {_count(task.total or 0, task.fields)}"


def _count(amount: float, fields: dict[str, Any], digits: int = 0) -> str:
    unit = fields["unit"]
    return decimal(int(amount)) if unit == "bytes" else f"{amount:.{digits}f} {unit}"
