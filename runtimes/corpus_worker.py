"""One worker of a corpus run: a bundle opened once, recordings transcribed one after another.

`python -m ossicle.runtimes.corpus_worker` is it as a process: a line of JSON in, a line out. The first line says how the bundle
is opened. It ends when its input does, so that none outlives the run; what engines print goes to standard error.
"""

import hashlib
import json
import os
import signal
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

from ..targets.contract import AudioError, OssicleError, PromptError
from ..targets.manifest import NAME


class Worker:
    """An opened bundle that transcribes."""

    def __init__(self) -> None:
        self._session: Any = None
        self._settings: Mapping[str, Any] = {}

    def open(self, bundle: str, loading: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
        """Open a bundle; what it is, and what runs it. `error` where it cannot be opened."""
        from .opening import load

        try:
            self._session = load(bundle, **loading)
        except OssicleError as reason:
            return {"error": str(reason)}
        self._settings = settings
        return {"engine": self._session.engine, "bundle": digest(Path(bundle))}

    def transcribe(self, audio: str, language: str | None) -> dict[str, Any]:
        """The words of a recording and what they took, in seconds.

        `error` where it cannot be transcribed; `again` beside it where that may be the engine's fault and no other try is vain.
        """
        try:
            found = self._session.transcribe(audio, language=language, **self._settings)
        except (AudioError, PromptError, OSError) as reason:
            return {"error": _one_line(reason)}
        except OssicleError as reason:
            return {"error": _one_line(reason), "again": True}
        timings = {name: round(value, 4) for name, value in vars(found.timings).items()}
        answer = {"text": found.text, "engine": found.engine, "finish": found.finish, "timings": timings}
        if len(found.segments) > 1:
            parts = [{"start": one.start, "end": one.end, "text": one.text} for one in found.segments]
            return {**answer, "segments": parts}
        return answer


def digest(bundle: Path) -> str:
    """The sha256 of a bundle's manifest, which holds those of all its files."""
    return hashlib.sha256((bundle / NAME).read_bytes()).hexdigest()


def serve(requests: IO[bytes], answers: IO[bytes]) -> None:
    """Answer lines until there are no more."""
    worker = Worker()
    for number, request in enumerate(requests):
        asked = json.loads(request)
        answer = worker.transcribe(**asked) if number else worker.open(**asked)
        answers.write(json.dumps(answer).encode() + b"\n")
        answers.flush()


def _one_line(reason: Exception) -> str:
    return " ".join(str(reason).split())


def main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the run's to handle
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints must not come between answers
    serve(sys.stdin.buffer, answers)


if __name__ == "__main__":
    main()
