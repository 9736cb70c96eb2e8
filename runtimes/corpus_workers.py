"""Workers of a corpus run as processes of this machine."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from typing import IO, Any

from ..targets.contract import EngineError
from .corpus import Item
from .corpus_pool import Died
from .llamacpp_process import cause

_PATIENCE = 10.0  # seconds that a worker has for ending by itself
_TAIL = 400  # characters of what it printed last that an error tells


class ProcessHelper:
    """A worker in a process of its own: runtimes/corpus_worker.py, spoken to in lines of JSON."""

    def __init__(self, opening: Mapping[str, Any]) -> None:
        self._opening = opening
        self._child: subprocess.Popen[bytes] | None = None
        self._printed: IO[bytes] | None = None
        self._killed = False

    def open(self) -> dict[str, Any]:
        """Start the process and have it open the bundle.

        Raises:
            Died: it died.
            EngineError: it cannot be started.
        """
        self._printed = tempfile.TemporaryFile()  # noqa: SIM115, it stays open as long as the child
        try:
            self._child = subprocess.Popen(
                [sys.executable, "-m", f"{__package__}.corpus_worker"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._printed,
                env=os.environ | {"PYTHONSAFEPATH": "1"},
            )
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
            self._finish(child)
        if self._printed is not None:
            self._printed.close()

    def kill(self) -> None:
        """End the process at once."""
        self._killed = True
        if child := self._child:
            child.kill()

    def _ask(self, request: Mapping[str, Any]) -> dict[str, Any]:
        child = self._child
        if child is None or self._killed:
            raise Died("the worker was ended")
        assert child.stdin is not None
        assert child.stdout is not None
        try:
            child.stdin.write(json.dumps(request).encode() + b"\n")
            child.stdin.flush()
            answer = child.stdout.readline()
        except OSError:
            answer = b""
        if not answer.endswith(b"\n"):
            raise Died(self._death(child))
        found: dict[str, Any] = json.loads(answer)
        return found

    def _death(self, child: subprocess.Popen[bytes]) -> str:
        self._child = None
        status = self._finish(child)
        return f"the worker ended in the middle of it ({cause(status)}){self._last_words()}"

    def _finish(self, child: subprocess.Popen[bytes]) -> int:
        for pipe in (child.stdin, child.stdout):
            try:
                if pipe:
                    pipe.close()
            except OSError:
                continue  # what was still to be written has nobody to read it
        try:
            return child.wait(_PATIENCE)
        except subprocess.TimeoutExpired:
            child.kill()
            return child.wait()

    def _last_words(self) -> str:
        """The last line that the process printed, behind a colon."""
        if self._printed is None:
            return ""
        self._printed.seek(max(0, self._printed.seek(0, os.SEEK_END) - _TAIL))
        lines = self._printed.read().decode(errors="replace").strip().splitlines()
        self._printed.close()
        return f": {lines[-1].strip()}" if lines else ""
