"""One engine for several callers at a time: calls take turns, and whoever leaves last closes it."""

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from threading import Lock
from typing import Any

from ..targets.contract import EngineError, Float32, Int64
from . import adapters as choices
from .base import BoundedEngine, Engine, Listener, Sequences


class Turns:
    """A lock that is given in the order in which it is asked for, so that an answer of many steps keeps nobody waiting."""

    def __init__(self) -> None:
        self._guard = Lock()
        self._waiting: deque[Any] = deque()
        self._taken = False

    def __enter__(self) -> None:
        with self._guard:
            if not self._taken:
                self._taken = True
                return
            mine = Lock()
            mine.acquire()
            self._waiting.append(mine)
        try:
            mine.acquire()  # released by whoever had the turn before
        except BaseException:
            self._give_up(mine)
            raise

    def __exit__(self, *_: object) -> None:
        self._pass_on()

    def _give_up(self, mine: Any) -> None:
        with self._guard:
            if mine in self._waiting:
                self._waiting.remove(mine)
                return
        self._pass_on()  # it had come meanwhile

    def _pass_on(self) -> None:
        with self._guard:
            if self._waiting:
                self._waiting.popleft().release()
            else:
                self._taken = False


class _Owned:
    """An engine, whose turn it is, and how many use it."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.turns = Turns()
        self.users = 0


class SharedEngine:
    """An engine as one of its callers has it: any thread may call, and states are the caller's own."""

    context: int  # where the engine is bounded
    tokens_per_window: int  # where the engine listens itself

    def __init__(self, owned: _Owned) -> None:
        self._owned: _Owned | None = owned
        owned.users += 1
        if isinstance(owned.engine, BoundedEngine):
            self.context = owned.engine.context
        if isinstance(owned.engine, Listener):
            self.tokens_per_window = owned.engine.tokens_per_window

    @property
    def engine(self) -> Engine:
        """The engine itself.

        Raises:
            EngineError: it was closed.
        """
        return self._mine().engine

    @property
    def name(self) -> str:
        return self.engine.name

    @property
    def adapters(self) -> tuple[str, ...]:
        """The adapters that may be chosen, by name."""
        return choices.names(self.engine)

    def adapted(self, adapters: Mapping[str, float]) -> Engine:
        """The engine for the same caller, with these adapters; it is left with this one."""
        return _AdaptedShare(self, adapters)

    def another(self) -> "SharedEngine":
        """The same engine for another caller."""
        owned = self._mine()
        with owned.turns:
            return SharedEngine(owned)

    def encode(self, mel: Float32) -> Float32:
        with self._turn() as engine:
            return engine.encode(mel)

    def hear(self, samples: Float32) -> Float32:
        with self._turn() as engine:
            if not isinstance(engine, Listener):
                raise EngineError(f"engine '{engine.name}' takes log-mel windows, no recordings. Use: encode")
            return engine.hear(samples)

    def embed(self, ids: Int64) -> Float32:
        with self._turn() as engine:
            return engine.embed(ids)

    def prefill(self, prompts: Sequence[Float32]) -> tuple[Float32, Sequences]:
        with self._turn() as engine:
            return engine.prefill(prompts)

    def extend(self, state: Sequences, prompt: Float32) -> tuple[Float32, Sequences]:
        with self._turn() as engine:
            return engine.extend(state, prompt)

    def step(self, state: Sequences, tokens: Int64) -> tuple[Float32, Sequences]:
        with self._turn() as engine:
            return engine.step(state, tokens)

    def keep(self, state: Sequences, rows: Sequence[int]) -> Sequences:
        with self._turn() as engine:
            return engine.keep(state, rows)

    def score(self, prompt: Float32, last: int = 0) -> Float32:
        with self._turn() as engine:
            return engine.score(prompt, last)

    def close(self) -> None:
        """Leave it; the last to do so closes the engine."""
        owned, self._owned = self._owned, None
        if owned is None:
            return
        with owned.turns:
            owned.users -= 1
            if owned.users == 0:
                owned.engine.close()

    @contextmanager
    def _turn(self) -> Iterator[Engine]:
        owned = self._mine()
        with owned.turns:
            yield owned.engine

    def _mine(self) -> _Owned:
        if self._owned is None:
            raise EngineError("the session is closed. Open another with ossicle.load(bundle).")
        return self._owned


class _AdaptedShare(SharedEngine):
    """What a caller has, with adapters. Its turns are those of the caller's own."""

    def __init__(self, share: SharedEngine, adapters: Mapping[str, float]) -> None:
        self._share = share
        self._adapters = dict(adapters)
        self._view: Engine | None = None
        for name in ("context", "tokens_per_window"):
            if hasattr(share, name):
                setattr(self, name, getattr(share, name))

    def close(self) -> None:
        """Nothing of its own."""

    @contextmanager
    def _turn(self) -> Iterator[Engine]:
        with self._share._turn() as engine:
            self._view = self._view or choices.adapted(engine, self._adapters)
            yield self._view

    def _mine(self) -> _Owned:
        return self._share._mine()


def shared(engine: Engine) -> SharedEngine:
    """An engine for its first caller."""
    return engine if isinstance(engine, SharedEngine) else SharedEngine(_Owned(engine))
