"""The process that an engine is measured in: `python -m ossicle.runtimes.measure_worker`, asked on standard input.

A line of JSON asks for a method of `Worker`; the line that answers holds its result, or "error". It ends when its input does.
"""

import json
import os
import signal
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from time import perf_counter
from typing import Any, TextIO

import numpy as np

from ..targets import manifest as manifests
from ..targets.contract import EngineError, Float32, OssicleError
from ..targets.memory import peak_memory_of_all
from .base import EncoderRuntime, Engine, HandingEngine
from .measurements import stages_of
from .mixed import open_plan
from .options import Options
from .plans import Plan
from .registry import runtime

PROMPT = 128  # tokens that are read at a time; the time of the whole prompt is reckoned from it
STEPS = 16  # tokens of an answer
_WARM = 8  # tokens that are read before anything counts


class Worker:
    """The stages that were opened, and what is put through them."""

    def open(self, bundle: str, stages: Mapping[str, Any], options: Mapping[str, Any]) -> dict[str, Any]:
        """Open some stages of a bundle."""
        started, folder, placed = perf_counter(), Path(bundle), stages_of(stages)
        self._manifest = manifests.read(folder)
        told = Options(**options)
        if "decoder" in placed:
            plan = Plan(placed.get("encoder"), placed["prefill"], placed["decoder"])
            self._engine: Engine | None = open_plan(folder, self._manifest, plan, told, runtime)
            self._encode = self._engine.encode
        else:
            self._engine = None
            one = placed["encoder"]
            found = runtime(one.runtime)
            if not isinstance(found, EncoderRuntime):
                raise EngineError(f"engine '{one.runtime}' does not open an audio encoder alone.")
            alone = Options(one.threads or told.threads, one.provider)
            self._encode = found.open_encoder(folder, self._manifest, alone).encode
        load = perf_counter() - started
        if self._engine is not None:  # what an engine prepares when it first runs is not what its runs take
            _, state = self._engine.prefill([self._engine.embed(np.zeros(_WARM, np.int64))])
            self._engine.step(state, np.zeros(1, np.int64))
        return {"load": load, "hands": isinstance(self._engine, HandingEngine)}

    def encoder(self) -> dict[str, Any]:
        """Seconds of one window of noise."""
        audio = self._manifest.audio
        mel = np.random.default_rng(0).normal(0, 0.5, (1, audio.mel_bins, audio.window_frames)).astype(np.float32)
        started = perf_counter()
        self._encode(mel)
        return {"encoder": perf_counter() - started}

    def decoder(self) -> dict[str, Any]:
        """Seconds of the prompt that one window makes, and of a token after it."""
        assert self._engine is not None
        prompt, tokens = self._prompt(self._engine)
        started = perf_counter()
        _, state = self._engine.prefill([prompt])
        read = perf_counter()
        for token in tokens:
            _, state = self._engine.step(state, token[None])
        ended = perf_counter()
        whole = self._manifest.audio.tokens_per_window / len(prompt)
        return {"prefill": (read - started) * max(1.0, whole), "step": (ended - read) / STEPS}

    def _prompt(self, engine: Engine) -> tuple[Float32, Any]:
        random, text = np.random.default_rng(0), self._manifest.text
        longest = max(1, min(PROMPT, text.context - STEPS))
        ids = random.integers(0, text.vocabulary, longest + STEPS, dtype=np.int64)
        return engine.embed(ids[:longest]), ids[longest:]


def serve(requests: TextIO, answers: TextIO) -> None:
    """Answer requests until there are no more."""
    worker = Worker()
    actions: dict[str, Callable[..., dict[str, Any]]] = {
        action.__name__: action for action in (worker.open, worker.encoder, worker.decoder)
    }
    for line in requests:
        request = json.loads(line)
        try:
            answer = actions[request.pop("do")](**request)
        except (OssicleError, MemoryError) as reason:
            answer = {"error": " ".join(str(reason).split()) or type(reason).__name__}
        print(json.dumps(answer | {"memory": peak_memory_of_all()}), file=answers, flush=True)


def main() -> int:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what libraries print must not come between answers
    serve(sys.stdin, answers)
    return 0


if __name__ == "__main__":
    sys.exit(main())
