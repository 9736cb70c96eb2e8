"""A module of ours in a process of its own, spoken to over its pipes, and gone without harm."""

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from typing import IO, Any

_PATIENCE = 10.0  # seconds that it has for ending by itself
_TAIL = 400  # characters of what it printed last that are kept


@dataclass(frozen=True)
class End:
    """How a process ended: its status as `subprocess` gives it, and what it printed last."""

    status: int
    printed: str

    @property
    def cause(self) -> str:
        """The status in words."""
        return cause(self.status)

    @property
    def last_line(self) -> str:
        """The last line that was printed, behind a colon; empty where nothing was."""
        line = self.printed.rpartition("\n")[2].strip()
        return f": {line}" if line else ""


class Child:
    """A running `python -m ossicle.runtimes.MODULE`; what lies in the working folder is not imported.

    Raises:
        OSError: it cannot be started.
    """

    def __init__(self, module: str, environment: Mapping[str, str] | None = None) -> None:
        self._printed: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115, it stays open as long as the child
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-m", f"{__package__}.{module}"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._printed,
                env={**os.environ, "PYTHONSAFEPATH": "1", **(environment or {})},
            )
        except BaseException:
            self._printed.close()
            raise
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self.stdin: IO[bytes] = self._process.stdin
        self.stdout: IO[bytes] = self._process.stdout
        self._end: End | None = None

    @property
    def pid(self) -> int:
        """The number of the process."""
        return self._process.pid

    def ask(self, request: Mapping[str, Any]) -> dict[str, Any] | None:
        """The line of JSON that it answers to one; None where it has ended."""
        try:
            self.stdin.write(json.dumps(request).encode() + b"\n")
            self.stdin.flush()
            line = self.stdout.readline()
        except OSError:
            return None
        answer: dict[str, Any] | None = json.loads(line) if line.endswith(b"\n") else None
        return answer

    def kill(self) -> None:
        """End the process at once; `end` is still to be called."""
        self._process.kill()

    def end(self, patience: float = _PATIENCE) -> End:
        """Close its pipes, by which it ends, and wait for it; kill it after that many seconds. Once is as good as twice."""
        if self._end is None:
            self._end = self._ended(patience)
        return self._end

    def _ended(self, patience: float) -> End:
        if not patience:
            self._process.kill()
        for pipe in (self.stdin, self.stdout):
            try:
                pipe.close()
            except OSError:
                continue  # what was still to be written has nobody to read it
        try:
            self._process.wait(patience or None)
        except subprocess.TimeoutExpired:
            self._process.kill()
        status = self._process.wait()
        with self._printed:
            self._printed.seek(max(0, self._printed.seek(0, os.SEEK_END) - _TAIL))
            return End(status, self._printed.read().decode(errors="replace").strip())


def cause(status: int) -> str:
    """How a process ended, by its status as `subprocess` gives it."""
    if status >= 0:
        return f"exit status {status}"
    try:
        name = signal.Signals(-status).name
    except ValueError:
        return f"signal {-status}"
    return f"signal {name}" + (", as systems end what takes more memory than there is" if name == "SIGKILL" else "")
