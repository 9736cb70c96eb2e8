"""Fake engines with adapters: each adds a vector to all that the model is given, as if that were in its weights."""

from collections.abc import Mapping, Sequence
from copy import copy
from typing import Any

import numpy as np
from ossicle.runtimes.base import Engine, Sequences
from ossicle.runtimes.handing import KeyValues
from ossicle.targets.contract import EngineError, Float32
from ossicle.tests.fakes import HIDDEN, FakeEngine

SHIFTS: Mapping[str, Float32] = {
    name: np.random.default_rng(seed).normal(0, 1, HIDDEN).astype(np.float32)
    for seed, name in enumerate(("legal", "polite", "short"))
}


class Merged(FakeEngine):
    """A fake model that adds a vector to all that it is given, as if that were in its weights."""

    def __init__(self, shift: Float32 | float = 0.0) -> None:
        super().__init__()
        self.shift = shift

    def _run(self, state: Float32, embeddings: Float32) -> Float32:  # type: ignore[override]
        return FakeEngine._run(state, embeddings + np.float32(self.shift))


class Adapting(Merged):
    """The same with its vectors as adapters, and keys and values that it hands over; counts the tokens that it reads."""

    def __init__(self, *adapters: str, name: str = "fake-cpu") -> None:
        super().__init__()
        self.name = name
        self.adapters = adapters
        self.read: list[int] = []
        self.fails = 1 << 30  # after so many steps

    def adapted(self, adapters: Mapping[str, float]) -> Engine:
        view = copy(self)
        view.shift = shift_of(adapters)
        return view

    def prefill(self, prompts: Sequence[Float32]) -> tuple[Float32, Sequences]:
        self.read += map(len, prompts)
        return super().prefill(prompts)

    def extend(self, state: Sequences, prompt: Float32) -> tuple[Float32, Sequences]:
        self.read.append(len(prompt))
        return super().extend(state, prompt)

    def step(self, state: Sequences, tokens: Any) -> tuple[Float32, Sequences]:
        self.fails -= 1
        if self.fails < 0:
            raise EngineError(f"engine '{self.name}' failed")
        return super().step(state, tokens)

    def give(self, state: Sequences) -> list[KeyValues]:
        rows = [
            np.broadcast_to(row, (1, 1, length, HIDDEN)) for row, length in zip(state.cache, state.lengths, strict=True)
        ]
        return [KeyValues(row, row) for row in rows]

    def take(self, rows: Sequence[KeyValues]) -> Sequences:
        return Sequences([row.tokens for row in rows], np.stack([row.keys[0, 0, 0] for row in rows]))


class Branching(Adapting):
    """One whose states are all that they were given, so that sequences begin as others do."""

    give = take = None  # type: ignore[assignment]

    def prefill(self, prompts: Sequence[Float32]) -> tuple[Float32, Sequences]:
        logits, _ = super().prefill(prompts)
        return logits, Sequences([len(prompt) for prompt in prompts], list(prompts))

    def extend(self, state: Sequences, prompt: Float32) -> tuple[Float32, Sequences]:
        self.read.append(len(prompt))
        whole = np.concatenate([state.cache[0], prompt])
        return FakeEngine.prefill(self, [whole])[0], Sequences([len(whole)], [whole])

    def branch(self, state: Sequences, tokens: int) -> Sequences:
        return Sequences([tokens], [state.cache[0][:tokens]])


def shift_of(adapters: Mapping[str, float] | None) -> Float32:
    zero = np.zeros(HIDDEN, np.float32)
    return np.sum([zero, *(scale * SHIFTS[name] for name, scale in (adapters or {}).items())], axis=0, dtype=np.float32)
