"""An engine that gives way to the next where it fails, in the middle of an answer too.

A sequence remembers what it was given, prompts as embeddings and answers as tokens. Where its engine fails, the next one
reads all of that as a prompt, and goes on from there.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np

from ..targets.contract import EngineError, Float32, Int64
from . import adapters as choices
from .base import BoundedEngine, Engine, Sequences, WrappingEngine
from .mixed import MixedEngine
from .plans import STAGES, Stage

_log = logging.getLogger("ossicle")
T = TypeVar("T")


@dataclass(frozen=True)
class Way:
    """One way to run a bundle: what it is called, and what opens it."""

    name: str
    open: Callable[[], Engine]


@dataclass
class _Living:
    """Sequences, the engine that they live in, and what each was given: embeddings [sequence, hidden], and tokens between."""

    life: int
    inner: Sequences
    given: list[list[Float32 | int]] = field(repr=False)


class FallbackEngine:
    """The first of several ways to run a bundle that works. The last one's failures are the caller's."""

    context: int  # where the first is bounded: those after it must have as much room

    def __init__(self, ways: Sequence[Way]) -> None:
        self._ways = list(ways)
        self._lives = 0
        self._running: Engine | None = None
        self._end = ""  # why nothing runs any more
        self._open_next([])
        if isinstance(self.engine, BoundedEngine):
            self.context = self.engine.context

    @property
    def engine(self) -> Engine:
        """The engine that runs it now.

        Raises:
            EngineError: all have failed.
        """
        if self._running is None:
            raise EngineError(self._end)
        return self._running

    @property
    def name(self) -> str:
        """What runs it now."""
        return self.engine.name

    @property
    def _life(self) -> int:
        """How many engines have run it: states of an earlier one are read again."""
        return self._lives

    @property
    def adapters(self) -> tuple[str, ...]:
        """The adapters of the engine that runs it now."""
        return choices.names(self.engine)

    def adapted(self, adapters: Mapping[str, float]) -> Engine:
        return _AdaptedFallback(self, adapters)

    def encode(self, mel: Float32) -> Float32:
        return self._tried(lambda engine: engine.encode(mel))

    def embed(self, ids: Int64) -> Float32:
        return self._tried(lambda engine: engine.embed(ids))

    def prefill(self, prompts: Sequence[Float32]) -> tuple[Float32, Sequences]:
        logits, inner = self._tried(lambda engine: _numbers(engine, engine.prefill(prompts)))
        return logits, self._outer(inner, [[prompt] for prompt in prompts])

    def extend(self, state: Sequences, prompt: Float32) -> tuple[Float32, Sequences]:
        if len(state.lengths) != 1:
            raise EngineError(f"engine '{self.name}' cannot extend {len(state.lengths)} rows at once (it can: 1).")
        return self._advanced(state, lambda engine, inner: engine.extend(inner, prompt), [prompt])

    def step(self, state: Sequences, tokens: Int64) -> tuple[Float32, Sequences]:
        return self._advanced(state, lambda engine, inner: engine.step(inner, tokens), [int(token) for token in tokens])

    def keep(self, state: Sequences, rows: Sequence[int]) -> Sequences:
        living: _Living = state.cache
        inner = self._tried(lambda engine: engine.keep(self._inner(living), rows))
        return self._outer(inner, [list(living.given[row]) for row in rows])

    def score(self, prompt: Float32, last: int = 0) -> Float32:
        return self._tried(lambda engine: engine.score(prompt, last))

    def close(self) -> None:
        self._ways.clear()
        if self._running is not None:
            self._running.close()

    def _advanced(
        self,
        state: Sequences,
        advance: Callable[[Engine, Sequences], tuple[Float32, Sequences]],
        added: Sequence[Float32 | int],
    ) -> tuple[Float32, Sequences]:
        living: _Living = state.cache
        logits, inner = self._tried(lambda engine: _numbers(engine, advance(engine, self._inner(living))))
        for given, one in zip(living.given, added, strict=True):
            given.append(one)
        return logits, self._outer(inner, living.given)

    def _outer(self, inner: Sequences, given: list[list[Float32 | int]]) -> Sequences:
        return Sequences(inner.lengths, _Living(self._life, inner, given), inner.known)

    def _inner(self, living: _Living) -> Sequences:
        """The sequences in the engine that runs now, which reads what they were given if it did not."""
        if living.life != self._life:
            _, living.inner = _numbers(self.engine, self.engine.prefill([self._embedded(one) for one in living.given]))
            living.life = self._life
        return living.inner

    def _embedded(self, given: Sequence[Float32 | int]) -> Float32:
        """What a sequence was given, [sequence, hidden]."""
        tokens = [one for one in given if isinstance(one, int)]
        rows = iter(self.engine.embed(np.array(tokens, np.int64)) if tokens else ())
        return np.concatenate([next(rows)[None] if isinstance(one, int) else one for one in given])

    def _tried(self, work: Callable[[Engine], T]) -> T:
        """What the engine gives, or the first of those after it that does not fail."""
        while True:
            try:
                return work(self.engine)
            except EngineError as reason:
                if not self._ways or self._running is None:
                    raise
                failed, name, self._running = self._running, self.name, None
                _log.warning("engine '%s' failed, and the next one goes on: %s", name, reason)
                failed.close()  # first, since memory may not hold both; nothing can be asked of it then
                self._open_next([f"{name}: {reason}"])

    def _open_next(self, reasons: list[str]) -> None:
        """Open the next way that can be.

        Raises:
            EngineError: none can, with every reason.
        """
        while self._ways:
            way = self._ways.pop(0)
            try:
                self._running = self._checked(way.open())
            except EngineError as fault:
                _log.warning("engine '%s' cannot be opened, and the next one is tried: %s", way.name, fault)
                reasons.append(f"{way.name}: {fault}")
                continue
            self._lives += 1
            return
        self._end = (
            f"no engine is left that runs the bundle here: {'; '.join(reasons)}. See what there is: ossicle doctor"
        )
        raise EngineError(self._end)

    def _checked(self, engine: Engine) -> Engine:
        """The engine, if it has as much room as was promised."""
        promised = getattr(self, "context", None)
        room = engine.context if isinstance(engine, BoundedEngine) else promised
        if self._lives and room is not None and (promised is None or room < promised):
            engine.close()
            raise EngineError(f"it has room for {room} tokens, and more was promised.")
        return engine


class _AdaptedFallback(FallbackEngine):
    """The same ways to run a bundle with adapters. One that has not got them is the caller's fault, and no failure of it."""

    def __init__(self, whole: FallbackEngine, adapters: Mapping[str, float]) -> None:
        self._whole = whole
        self._chosen = dict(adapters)
        self._view: tuple[int, Engine] | None = None  # the life that it is of
        if isinstance(whole, BoundedEngine):
            self.context = whole.context

    @property
    def engine(self) -> Engine:
        return self._adapted(self._whole.engine)

    @property
    def _life(self) -> int:
        return self._whole._life

    def close(self) -> None:
        """Nothing of its own."""

    def _tried(self, work: Callable[[Engine], T]) -> T:
        return self._whole._tried(lambda engine: work(self._adapted(engine)))

    def _adapted(self, engine: Engine) -> Engine:
        if self._view is None or self._view[0] != self._life:
            self._view = self._life, choices.adapted(engine, self._chosen)
        return self._view[1]


def parts(engine: Engine) -> dict[Stage, str]:
    """What runs each stage of an opened bundle now."""
    running = engine
    while isinstance(running, WrappingEngine):
        running = running.engine
    return dict(running.parts) if isinstance(running, MixedEngine) else dict.fromkeys(STAGES, running.name)


def _numbers(engine: Engine, found: tuple[Float32, Any]) -> tuple[Float32, Any]:
    """Logits and a state, if the logits are numbers."""
    if not np.isfinite(found[0].max(axis=1)).all():
        raise EngineError(f"engine '{engine.name}' gave logits that are no numbers. Check it with: ossicle verify")
    return found
