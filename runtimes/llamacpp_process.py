"""The child process that llama.cpp runs in, from outside: started when it is needed, gone without harm."""

from collections.abc import Sequence
from typing import Any

from numpy.typing import NDArray

from ..targets.contract import EngineError
from . import llamacpp_wire
from .child import Child

_ENVIRONMENT = {"GGML_NO_BACKTRACE": "1"}  # no debugger is called up where the library aborts


class Process:
    """A child that has opened a model, started anew by the next call where it has died."""

    def __init__(self, opening: dict[str, Any]) -> None:
        self._opening = opening
        self._child: Child | None = None
        self._closed = False
        self.lives = 0  # how often it was started: what an earlier one held is lost
        self.model = self.start()

    @property
    def pid(self) -> int | None:
        """The number of the process that is running."""
        return self._child.pid if self._child else None

    def start(self) -> dict[str, Any]:
        """Start the child if none is running, and what it says of the model.

        Raises:
            EngineError: it cannot be started, or refuses the model, or was closed.
        """
        if self._closed:
            raise EngineError("engine 'llamacpp' is closed. Open the bundle again: ossicle.load(bundle)")
        if self._child is not None:
            return self.model
        self._spawn()
        self.lives += 1
        try:
            self.model = self.call("open", {"opening": self._opening})[0]
        except EngineError:
            self._end()
            raise
        return self.model

    def call(
        self, action: str, message: dict[str, Any], arrays: Sequence[NDArray[Any]] = ()
    ) -> tuple[dict[str, Any], list[NDArray[Any]]]:
        """What the child answers.

        Raises:
            EngineError: it refuses, or has died; then the next `start` begins anew.
        """
        child = self._child
        if child is None:
            raise EngineError("engine 'llamacpp' is not running. Begin again: prefill")
        try:
            llamacpp_wire.send(child.stdin, {"do": action, **message}, arrays)
            answer, results = llamacpp_wire.receive(child.stdout)
        except (EOFError, OSError) as reason:
            raise self._death() from reason
        except BaseException:
            self._end(patience=0.0)  # an answer that nobody waits for would be taken for that of the next call
            raise
        if "error" in answer:
            raise EngineError(f"engine 'llamacpp' failed: {answer['error']}. See what this machine has: ossicle doctor")
        return answer, results

    def close(self) -> None:
        """End the child for good, if there is one."""
        self._closed = True
        self._end()

    def _spawn(self) -> None:
        try:
            self._child = Child("llamacpp_worker", _ENVIRONMENT)
        except OSError as reason:
            raise EngineError(
                f"engine 'llamacpp' runs in a process of its own, which cannot be started: {reason}. "
                "Free memory or end other processes"
            ) from reason

    def _end(self, **patience: float) -> None:
        child, self._child = self._child, None
        if child is not None:
            child.end(**patience)

    def _death(self) -> EngineError:
        """The error that tells how the child died."""
        child, self._child = self._child, None
        assert child is not None
        end = child.end()
        return EngineError(
            f"engine 'llamacpp' ended in the middle of its work ({end.cause}){': ' + end.printed if end.printed else ''}. "
            "What it was computing is lost; the next call starts it again"
        )
