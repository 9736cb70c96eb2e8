"""Prompts that begin as earlier ones did go on from there: a conversation's next turn, another question about a recording.

What the decoder remembers of a prompt is kept within a bound of memory, the longest unused going first. Prompts are compared by
their embeddings, so that the same words and the same audio are found whatever they were asked for.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from ..targets.contract import EngineError, Float32, Int64
from . import adapters as choices
from .adapters import Key
from .base import BoundedEngine, BranchingEngine, Engine, HandingEngine, Listener, Sequences

SHORTEST = 64  # tokens of a beginning that is worth going on from
MEMORY = 256 << 20  # bytes of keys and values that are kept
ENTRIES = 4


@dataclass(frozen=True)
class Kept:
    """A prompt [sequence, hidden] that was read, the bytes that keeping it takes, and a state of its first tokens.

    `adapters` are those that it was read with: with others, it is another prompt. None: those that the engine was opened with.
    """

    prompt: Float32
    nbytes: int
    begin: Callable[[int], Sequences] = field(repr=False)
    adapters: Key | None = None

    def shared(self, prompt: Float32) -> int:
        """How many tokens another prompt begins with as this one does."""
        length = min(len(self.prompt), len(prompt))
        differs = (self.prompt[:length] != prompt[:length]).any(axis=1)
        return int(differs.argmax()) if differs.any() else length


class PrefixEngine:
    """An engine that reads of a prompt only what it has not read before; else it is the engine that it stands before."""

    context: int  # where the engine is bounded

    def __init__(
        self, engine: Engine, keep: Callable[[Sequences, Float32], Kept], token_bytes: int, memory: int
    ) -> None:
        self.engine = engine
        self._keep = keep
        self._token_bytes = token_bytes
        self._memory = memory
        self._kept: list[Kept] = []  # the one used last at the end; views share it
        self._choice: Key | None = None  # of adapters
        if isinstance(engine, BoundedEngine):
            self.context = engine.context

    @property
    def name(self) -> str:
        return self.engine.name

    @property
    def adapters(self) -> tuple[str, ...]:
        """The adapters of the engine that it stands before."""
        return choices.names(self.engine)

    def adapted(self, adapters: Mapping[str, float]) -> Engine:
        """The same with adapters, within the same bound of memory."""
        engine = choices.adapted(self.engine, adapters)
        keep = _keeper(engine, self._token_bytes)
        if keep is None:
            return engine
        view = PrefixEngine(engine, keep, self._token_bytes, self._memory)
        view._kept, view._choice = self._kept, choices.key(adapters)
        return view

    def prefill(self, prompts: Sequence[Float32]) -> tuple[Float32, Sequences]:
        if len(prompts) != 1 or len(prompts[0]) < SHORTEST:
            return self.engine.prefill(prompts)
        logits, state = self._resumed(prompts[0]) or self.engine.prefill(prompts)
        self._remember(prompts[0], state)
        return logits, state

    def _resumed(self, prompt: Float32) -> tuple[Float32, Sequences] | None:
        """Logits and state behind a prompt whose beginning is known; None: none is, or the engine has lost it."""
        lengths = [
            min(one.shared(prompt), len(prompt) - 1) if one.adapters == self._choice else 0 for one in self._kept
        ]
        best = int(np.argmax(lengths)) if lengths else 0
        if not lengths or lengths[best] < SHORTEST:
            return None
        known = self._kept[best]
        try:
            logits, state = self.engine.extend(known.begin(lengths[best]), prompt[lengths[best] :])
        except EngineError:
            self._kept.clear()  # an engine that begins anew has nothing of what it read
            return None
        if lengths[best] >= len(known.prompt) - 1:
            self._kept.pop(best)  # the longer prompt stands for both
        else:
            self._kept.append(self._kept.pop(best))
        return logits, replace(state, known=lengths[best])

    def _remember(self, prompt: Float32, state: Sequences) -> None:
        if self._token_bytes * len(prompt) + prompt.nbytes > self._memory:
            return  # keeping begins with a copy
        self._kept.append(replace(self._keep(state, prompt), adapters=self._choice))
        while self._kept and (sum(one.nbytes for one in self._kept) > self._memory or len(self._kept) > ENTRIES):
            self._kept.pop(0)

    def encode(self, mel: Float32) -> Float32:
        return self.engine.encode(mel)

    def embed(self, ids: Int64) -> Float32:
        return self.engine.embed(ids)

    def extend(self, state: Sequences, prompt: Float32) -> tuple[Float32, Sequences]:
        return self.engine.extend(state, prompt)

    def step(self, state: Sequences, tokens: Int64) -> tuple[Float32, Sequences]:
        return self.engine.step(state, tokens)

    def keep(self, state: Sequences, rows: Sequence[int]) -> Sequences:
        return self.engine.keep(state, rows)

    def score(self, prompt: Float32, last: int = 0) -> Float32:
        return self.engine.score(prompt, last)

    def close(self) -> None:
        self._kept.clear()
        self.engine.close()


def with_prefixes(engine: Engine, token_bytes: int, memory: int = MEMORY) -> Engine:
    """The engine, reading no beginning twice where it can keep one; `token_bytes` are its keys and values of a token.

    One that listens itself stays as it is.
    """
    keep = None if memory <= 0 or isinstance(engine, Listener) else _keeper(engine, token_bytes)
    return engine if keep is None else PrefixEngine(engine, keep, token_bytes, memory)


def _keeper(engine: Engine, token_bytes: int) -> Callable[[Sequences, Float32], Kept] | None:
    """How beginnings are kept of what an engine has read; None: it cannot."""
    if isinstance(engine, HandingEngine):
        return _by_arrays(engine)
    return _by_branches(engine, token_bytes) if isinstance(engine, BranchingEngine) else None


def _by_arrays(engine: HandingEngine) -> Callable[[Sequences, Float32], Kept]:
    def keep(state: Sequences, prompt: Float32) -> Kept:
        (row,) = engine.give(state)
        return Kept(prompt, row.nbytes + prompt.nbytes, lambda tokens: engine.take([row.first(tokens)]))

    return keep


def _by_branches(engine: BranchingEngine, token_bytes: int) -> Callable[[Sequences, Float32], Kept]:
    def keep(state: Sequences, prompt: Float32) -> Kept:
        branch = engine.branch(state, len(prompt))
        size = token_bytes * len(prompt) + prompt.nbytes
        return Kept(prompt, size, lambda tokens: engine.branch(branch, tokens))

    return keep
