"""An engine that fails gives way to the next, and nobody who waits for an answer sees it."""

import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ossicle.runtimes.base import BoundedEngine, Engine, Sequences
from ossicle.runtimes.fallback import FallbackEngine, Way
from ossicle.runtimes.session import Session
from ossicle.targets.contract import EngineError, Float32
from ossicle.tests.fakes import HIDDEN, FakeEngine, demo_tokenizer, write_bundle

PROMPTS = [np.random.default_rng(n).normal(0, 1, (n, HIDDEN)).astype(np.float32) for n in (20, 7)]
SOUND = np.random.default_rng(3).normal(0, 0.1, 16000).astype(np.float32)
CALLS = ("encode", "embed", "prefill", "extend", "step", "keep", "score")


class Failing(FakeEngine):
    """A fake engine that fails at its nth call of one kind; `how` says what that looks like."""

    def __init__(self, name: str, kind: str = "", after: int = 0, how: str = "raises") -> None:
        super().__init__()
        self.name = name
        self._left = after
        if kind:
            setattr(self, kind, partial(self._counted, getattr(self, kind), how))

    def close(self) -> None:
        """As real engines do it: nothing is left, not even the name."""
        self.__dict__.clear()
        super().close()

    def _counted(self, call: Callable[..., Any], how: str, *arguments: Any) -> Any:
        self._left -= 1
        if self._left >= 0:
            return call(*arguments)
        if how == "raises":
            raise EngineError(f"engine '{self.name}' failed: out of memory")
        logits, state = call(*arguments)
        return np.full_like(logits, np.nan), state


def ways(*engines: Engine) -> list[Way]:
    return [Way(engine.name, lambda engine=engine: engine) for engine in engines]  # type: ignore[misc]


def refuse() -> Engine:
    raise EngineError("the driver is too old")


def answer(engine: Engine) -> list[Float32]:
    """Everything that an engine is asked in a life: two prompts, steps, one row kept, a longer prompt, more steps."""
    logits, state = engine.prefill(PROMPTS)
    found = [engine.encode(np.ones((1, 128, 3000), np.float32)), logits]
    for tokens in ([5, 6], [7, 8]):
        logits, state = engine.step(state, np.array(tokens))
        found.append(logits)
    other = engine.keep(state, [0])
    logits, longer = engine.extend(engine.keep(state, [1]), PROMPTS[0][:5])
    found.append(logits)
    for _ in range(2):
        logits, longer = engine.step(longer, np.array([9]))
        found.append(logits)
    logits, other = engine.step(other, np.array([3]))
    assert (longer.lengths, other.lengths) == ([16], [23])
    return [*found, logits, engine.score(PROMPTS[0], 3)]


@pytest.mark.parametrize("kind", CALLS)
@pytest.mark.parametrize("after", [0, 1, 3])
def test_answers_are_the_same_wherever_an_engine_fails(kind: str, after: int, caplog: pytest.LogCaptureFixture) -> None:
    first, second = Failing("first", kind, after), Failing("second")
    engine = FallbackEngine(ways(first, second))
    for ours, expected in zip(answer(engine), answer(FakeEngine()), strict=True):
        np.testing.assert_array_equal(ours, expected)
    failed = first.closed
    assert engine.name == ("second" if failed else "first")
    assert len([one for one in caplog.records if one.levelno == logging.WARNING]) == failed
    assert failed or after


def test_logits_that_are_no_numbers_are_a_failure() -> None:
    engine = FallbackEngine(ways(Failing("first", "step", 2, "no numbers"), Failing("second")))
    for ours, expected in zip(answer(engine), answer(FakeEngine()), strict=True):
        np.testing.assert_array_equal(ours, expected)
    assert engine.name == "second"


def test_several_fail_one_after_the_other() -> None:
    engines = [Failing("a", "step", 1), Failing("b", "prefill"), Failing("c", "step", 2), Failing("d")]
    engine = FallbackEngine(ways(*engines))
    for ours, expected in zip(answer(engine), answer(FakeEngine()), strict=True):
        np.testing.assert_array_equal(ours, expected)
    assert engine.name == "d"
    assert [one.closed for one in engines] == [True, True, True, False]


def test_one_that_cannot_be_opened_is_passed_over_with_its_reason(caplog: pytest.LogCaptureFixture) -> None:
    engine = FallbackEngine([Way("new", refuse), *ways(Failing("second"))])
    assert engine.name == "second"
    (told,) = caplog.records
    assert "'new' cannot be opened, and the next one is tried: the driver is too old" in told.getMessage()
    with pytest.raises(EngineError, match=r"no engine is left.*new: the driver is too old; old: the driver is too old"):
        FallbackEngine([Way("new", refuse), Way("old", refuse)])


def test_the_last_ones_failures_are_the_callers() -> None:
    engine = FallbackEngine(ways(Failing("only", "step", 1)))
    _, state = engine.prefill(PROMPTS)
    _, state = engine.step(state, np.array([1, 2]))
    for _ in range(2):
        with pytest.raises(EngineError, match="'only' failed"):
            engine.step(state, np.array([1, 2]))


def test_where_none_is_left_every_call_says_why() -> None:
    engine = FallbackEngine([*ways(Failing("first", "step")), Way("second", refuse)])
    _, state = engine.prefill(PROMPTS)
    for _ in range(2):
        with pytest.raises(EngineError, match=r"no engine is left.*first: .*out of memory; second: the driver"):
            engine.step(state, np.array([1, 2]))
    engine.close()


def test_a_callers_mistake_costs_no_engine() -> None:
    engine = FallbackEngine(ways(Failing("first"), Failing("second")))
    _, state = engine.prefill(PROMPTS)
    with pytest.raises(EngineError, match="cannot extend 2 rows"):
        engine.extend(state, PROMPTS[0])
    assert engine.name == "first"


def test_room_that_was_promised_is_kept() -> None:
    def bounded(name: str, context: int, kind: str = "") -> Engine:
        engine = Failing(name, kind)
        engine.context = context  # type: ignore[attr-defined]
        return engine

    engine = FallbackEngine(ways(bounded("a", 512, "prefill"), bounded("b", 256), bounded("c", 600)))
    assert isinstance(engine, BoundedEngine)
    assert engine.context == 512
    engine.prefill(PROMPTS)
    assert (engine.name, engine.context) == ("c", 512)
    unbounded = FallbackEngine(ways(Failing("a", "prefill"), bounded("b", 8192)))
    assert not isinstance(unbounded, BoundedEngine)
    with pytest.raises(EngineError, match="it has room for 8192 tokens, and more was promised"):
        unbounded.prefill(PROMPTS)


def test_a_session_answers_as_if_nothing_had_happened(tmp_path: Path) -> None:
    manifest, tokenizer = write_bundle(tmp_path), demo_tokenizer(tmp_path)
    expected = Session(manifest, tokenizer, FakeEngine()).transcribe(SOUND, rate=16000, max_tokens=40)
    broken = FallbackEngine(ways(Failing("first", "step", 11), Failing("second")))
    session = Session(manifest, tokenizer, broken)
    stream = session.stream(SOUND, rate=16000, max_tokens=40)
    pieces = list(stream)
    assert "".join(pieces) == expected.text
    assert (stream.reply.tokens, stream.reply.engine) == (expected.tokens, "second")
    assert session.stages == {"encoder": "second", "prefill": "second", "decoder": "second"}


def test_states_of_an_engine_that_is_gone_are_read_again_only_when_they_go_on() -> None:
    engine = FallbackEngine(ways(Failing("first", "step", 1), second := Failing("second")))
    states: list[Sequences] = [engine.prefill([prompt])[1] for prompt in PROMPTS]
    read: list[int] = []
    prefill = second.prefill
    second.prefill = lambda prompts: read.append(len(prompts)) or prefill(prompts)  # type: ignore[func-returns-value,assignment]
    _, states[0] = engine.step(states[0], np.array([1]))
    _, states[0] = engine.step(states[0], np.array([1]))
    assert (engine.name, read) == ("second", [1])
    engine.step(states[1], np.array([1]))
    assert read == [1, 1]
