"""Recordings -> answers on many workers at once, whatever the workers are: processes here, or actors on other machines.

A worker that dies is replaced, and what it was at is tried once more. A worker that cannot be opened leaves its share to the
others; when none is left the pool ends, and says why.
"""

import threading
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from queue import SimpleQueue
from time import monotonic
from types import TracebackType
from typing import Any, Protocol, Self

from ..targets.contract import EngineError
from .corpus import Item

TRIES = 2  # of a recording on which workers die


class Died(Exception):  # noqa: N818 - what became of a worker
    """A worker is gone, or no use any more; how, in words."""


class Helper(Protocol):
    """A worker as seen from outside."""

    def open(self) -> dict[str, Any]:
        """Start it and have it open the bundle; what it says of it.

        Raises:
            Died: it died; the next `open` starts another.
        """

    def transcribe(self, item: Item) -> dict[str, Any]:
        """Its answer on a recording.

        Raises:
            Died: it died; the next `open` starts another.
        """

    def close(self) -> None:
        """Let it end by itself."""

    def kill(self) -> None:
        """End it at once, whatever it is at, for good; safe to call from another thread."""

    def interrupt(self) -> None:
        """End it at once, whatever it is at; the next `open` starts another. Safe to call from another thread."""


@dataclass(frozen=True)
class Result:
    """What came of a recording: a worker's answer, with "text" or with "error"."""

    item: Item
    answer: Mapping[str, Any]


class Pool:
    """Workers on a list of recordings. A context manager: leaving it ends the workers."""

    def __init__(
        self, items: Iterable[Item], make: Callable[[], Helper], workers: int, bundle: str, limit: float = 0.0
    ) -> None:
        """`make` gives a worker that is not open yet; `bundle` is the digest that each must find.

        A worker that is at a recording for more than `limit` seconds is ended; 0: none is.
        """
        self._limit = limit if limit < threading.TIMEOUT_MAX else 0.0
        self._todo = deque((item, 1) for item in items)
        self._bundle = bundle
        self._results: SimpleQueue[Result | None] = SimpleQueue()
        self._stopping = threading.Event()
        self._helpers = [make() for _ in range(workers)]
        self._threads = [threading.Thread(target=self._work, args=(one,), daemon=True) for one in self._helpers]
        self._running = workers
        self._first, self._is_known = threading.Lock(), False
        self.refusals: list[str] = []  # why workers could not be opened

    def take(self) -> Result | None:
        """The next result, as soon as there is one; None where no more will come."""
        while self._running:
            result = self._results.get()
            if result is not None:
                return result
            self._running -= 1
        return None

    @property
    def stopped(self) -> bool:
        """Whether it was told to stop."""
        return self._stopping.is_set()

    def stop(self) -> None:
        """Begin no more recordings; those that workers are at come to their end."""
        self._stopping.set()

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, reason: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
        for helper in self._helpers if kind else ():
            helper.kill()
        for thread in self._threads:
            thread.join()

    def _work(self, helper: Helper) -> None:
        """One worker's share: whatever is next, until there is nothing."""
        is_open = False
        try:
            while not self._stopping.is_set() and (task := self._next()):
                if not (is_open := is_open or self._opened(helper)):
                    self._todo.appendleft(task)
                    return
                is_open = self._settled(helper, *task)
        finally:
            helper.close()
            self._results.put(None)

    def _next(self) -> tuple[Item, int] | None:
        try:
            return self._todo.popleft()
        except IndexError:
            return None

    def _opened(self, helper: Helper) -> bool:
        said = self._first_said(helper)
        if "error" not in said and said["bundle"] != self._bundle:
            said = {"error": "the bundle that it found is another one than the run was begun on"}
        if "error" in said:
            self.refusals.append(said["error"])
        return "error" not in said

    def _first_said(self, helper: Helper) -> dict[str, Any]:
        """What a worker says when it is opened. The first is opened alone: the others choose an engine by what it measured."""
        with self._first:
            if not self._is_known:
                said = self._said(helper)
                self._is_known = True
                return said
        return self._said(helper)

    @staticmethod
    def _said(helper: Helper) -> dict[str, Any]:
        """What a worker says; one that died at it is started once more."""
        said: dict[str, Any] = {}
        for _ in range(TRIES):
            try:
                return helper.open()
            except Died as reason:
                said = {"error": str(reason)}
            except EngineError as reason:
                return {"error": str(reason)}
        return said

    def _settled(self, helper: Helper, item: Item, tries: int) -> bool:
        """Transcribe a recording; gives whether the worker can go on with another."""
        try:
            answer = self._transcribed(helper, item)
        except Died as reason:
            answer = {"error": f"{reason}, as it did before" if tries > 1 else str(reason), "again": True}
        again = answer.pop("again", False)
        if again and self._stopping.is_set():
            return False  # not tried enough to be given up: left for the next run
        if again and tries < TRIES:
            self._todo.appendleft((item, tries + 1))
        else:
            self._results.put(Result(item, answer))
        if again:
            helper.close()
        return not again

    def _transcribed(self, helper: Helper, item: Item) -> dict[str, Any]:
        """A worker's answer on a recording, within the limit.

        Raises:
            Died: it died, or was ended since it took too long.
        """
        if not self._limit:
            return helper.transcribe(item)
        watch, started = threading.Timer(self._limit, helper.interrupt), monotonic()
        watch.start()
        try:
            return helper.transcribe(item)
        except Died as reason:
            if monotonic() - started < self._limit:
                raise
            raise Died(f"it took longer than {self._limit:g} s") from reason
        finally:
            watch.cancel()
