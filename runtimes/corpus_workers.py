"""Workers of a corpus run as processes of this machine."""

from collections.abc import Mapping
from typing import Any

from ..targets.contract import EngineError
from .child import Child
from .corpus import Item
from .corpus_pool import Died


class ProcessHelper:
    """A worker in a process of its own: runtimes/corpus_worker.py, spoken to in lines of JSON."""

    def __init__(self, opening: Mapping[str, Any]) -> None:
        self._opening = opening
        self._child: Child | None = None
        self._killed = False

    def open(self) -> dict[str, Any]:
        """Start the process and have it open the bundle.

        Raises:
            Died: it died.
            EngineError: it cannot be started.
        """
        try:
            self._child = Child("corpus_worker")
        except OSError as reason:
            raise EngineError(f"a worker cannot be started: {reason}. Free memory or end other processes") from reason
        return self._ask(self._opening)

    def transcribe(self, item: Item) -> dict[str, Any]:
        """What the process answers on a recording.

        Raises:
            Died: it died.
        """
        return self._ask({"audio": item.audio, "language": item.language})

    def close(self) -> None:
        """Let the process end, by the end of its input."""
        child, self._child = self._child, None
        if child is not None:
            child.end()

    def kill(self) -> None:
        """End the process at once, for good."""
        self._killed = True
        self.interrupt()

    def interrupt(self) -> None:
        """End the process at once."""
        if child := self._child:
            child.kill()

    def _ask(self, request: Mapping[str, Any]) -> dict[str, Any]:
        child = self._child
        if child is None or self._killed:
            raise Died("the worker was ended")
        answer = child.ask(request)
        if answer is None:
            self._child, end = None, child.end()
            raise Died(f"the worker ended in the middle of it ({end.cause}){end.last_line}")
        return answer
