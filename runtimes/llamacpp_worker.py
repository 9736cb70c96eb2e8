"""The process that llama.cpp runs in: `python -m ossicle.runtimes.llamacpp_worker`, asked on standard input.

A message says what to do, as a method of `Worker`; the answer holds its result, or "error". It ends when its input does. What
the library prints goes to standard error.
"""

import os
import signal
import sys
from collections.abc import Callable, Sequence
from typing import IO, Any

from numpy.typing import NDArray

from ..targets.contract import BundleError, EngineError
from .llamacpp_api import Api
from .llamacpp_audio import Ear
from .llamacpp_context import Context, Opening, load_stored
from .llamacpp_widened import load_widened
from .llamacpp_wire import receive, send

Answer = tuple[dict[str, Any], list[NDArray[Any]]]  # what is said, and arrays beside it

ROOM = 1024  # tokens that a fresh cache holds


class Worker:
    """A model, once it is opened."""

    def __init__(self) -> None:
        self._context: Context | None = None
        self._ear: Ear | None = None

    def open(self, opening: dict[str, Any]) -> Answer:
        """Load a model, and its own audio path where one is named."""
        api, wanted = Api(), Opening(**opening)
        self._context = Context(api, wanted, ROOM, load_widened if wanted.widened else load_stored)
        said = {"hidden": self._context.hidden, "vocabulary": self._context.vocabulary}
        if wanted.mmproj:
            self._ear = Ear(api, self._context, wanted.mmproj, wanted.threads)
            said["audio_tokens"] = self._ear.tokens
        return said, []

    def hear(self, samples: NDArray[Any]) -> Answer:
        """What stands for a recording in a prompt, by llama.cpp's own audio path."""
        if self._ear is None:
            raise EngineError("no audio path is open")
        return {}, [self._ear.hear(samples)]

    def decode(
        self, parts: Sequence[Sequence[int]], free: Sequence[int], scales: Sequence[float], values: NDArray[Any]
    ) -> Answer:
        """Logits of tokens added to sequences with so much of each adapter, after those in `free` are forgotten."""
        context = self._opened()
        context.remove(free)
        context.adapt(scales)
        return {}, [context.decode(parts, values)]

    def copy(self, pairs: Sequence[Sequence[int]], free: Sequence[int]) -> Answer:
        """Sequences begun as others are, with as many tokens as is said, after those in `free` are forgotten."""
        context = self._opened()
        context.remove(free)
        for source, to, tokens in pairs:
            context.copy(source, to, tokens)
        return {}, []

    def _opened(self) -> Context:
        if self._context is None:
            raise EngineError("no model is open")
        return self._context


def serve(requests: IO[bytes], answers: IO[bytes]) -> None:
    """Answer requests until there are no more."""
    worker = Worker()
    actions: dict[str, Callable[..., Answer]] = {
        action.__name__: action for action in (worker.open, worker.decode, worker.copy, worker.hear)
    }
    while True:
        try:
            message, arrays = receive(requests)
        except EOFError:
            return
        try:
            answer, results = actions[message.pop("do")](*message.values(), *arrays)
        except (EngineError, BundleError, MemoryError) as reason:
            answer, results = {"error": str(reason) or type(reason).__name__}, []
        send(answers, answer, results)


def main() -> int:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what the library prints must not come between answers
    try:
        serve(sys.stdin.buffer, answers)
    except MemoryError:  # within a message, of which the rest has nowhere to go
        print("there is not enough memory for what is asked", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
