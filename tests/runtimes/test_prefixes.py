"""Prompts that go on from earlier ones: what is read, what is kept, what is forgotten."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from ossicle.runtimes.base import Sequences
from ossicle.runtimes.fallback import FallbackEngine, Way
from ossicle.runtimes.prefixes import ENTRIES, PrefixEngine, with_prefixes
from ossicle.runtimes.server.shapes import usage
from ossicle.runtimes.session import Session
from ossicle.runtimes.tokens import Tokenizer
from ossicle.targets.contract import EngineError, Float32
from ossicle.tests.fakes import HIDDEN, FakeEngine, write_bundle

LARGE = 1 << 40


class BranchingEngine(FakeEngine):
    """The fake engine with a state of what it was given, so that it can branch; counts what it reads."""

    def __init__(self) -> None:
        super().__init__()
        self.read: list[int] = []
        self.lost = False

    def prefill(self, prompts: Sequence[Float32]) -> tuple[Float32, Sequences]:
        self.read += map(len, prompts)
        logits, _ = super().prefill(prompts)
        return logits, Sequences([len(prompt) for prompt in prompts], list(prompts))

    def extend(self, state: Sequences, prompt: Float32) -> tuple[Float32, Sequences]:
        whole = np.concatenate([state.cache[0], prompt])
        self.read.append(len(prompt))
        return super().prefill([whole])[0], Sequences([len(whole)], [whole])

    def branch(self, state: Sequences, tokens: int) -> Sequences:
        if self.lost:
            raise EngineError("engine 'fake' ended.")
        return Sequences([tokens], [state.cache[0][:tokens]])


@pytest.fixture
def inner() -> BranchingEngine:
    return BranchingEngine()


def _engine(inner: BranchingEngine, token_bytes: int = 1, memory: int = LARGE) -> PrefixEngine:
    engine = with_prefixes(inner, token_bytes, memory)
    assert isinstance(engine, PrefixEngine)
    return engine


def _prompt(length: int, seed: int = 0) -> Float32:
    return np.random.default_rng(seed).normal(0, 1, (length, HIDDEN)).astype(np.float32)


def _says_as_alone(engine: PrefixEngine, prompt: Float32) -> bool:
    return bool(np.array_equal(engine.prefill([prompt])[0], FakeEngine().prefill([prompt])[0]))


def test_of_a_longer_prompt_only_what_is_new_is_read(inner: BranchingEngine) -> None:
    engine, longer = _engine(inner), np.concatenate([_prompt(100), _prompt(7, 1)])
    assert _says_as_alone(engine, _prompt(100))
    assert _says_as_alone(engine, longer)
    assert _says_as_alone(engine, longer)
    assert inner.read == [100, 7, 1]


def test_another_question_about_the_same_goes_on_from_where_they_part(inner: BranchingEngine) -> None:
    engine = _engine(inner)
    for seed in (1, 2, 1):
        assert _says_as_alone(engine, np.concatenate([_prompt(100), _prompt(9, seed)]))
    assert inner.read == [109, 9, 1]


def test_how_much_of_a_prompt_was_known_is_told_whatever_stands_before_the_engine(inner: BranchingEngine) -> None:
    engine = FallbackEngine([Way("fake", lambda: _engine(inner))])
    prompts = [np.concatenate([_prompt(100), _prompt(9, seed)]) for seed in (1, 2)]
    states = [engine.prefill([prompt])[1] for prompt in (prompts[0], prompts[1], prompts[1], _prompt(80, 3))]
    assert [state.known for state in states] == [0, 100, 108, 0]
    assert engine.prefill(prompts)[1].known == 0
    assert engine.step(states[1], np.zeros(1, np.int64))[1].known == 0


def test_an_answer_and_its_usage_say_how_much_of_the_prompt_was_known(inner: BranchingEngine, tmp_path: Path) -> None:
    session = Session(write_bundle(tmp_path), Tokenizer(tmp_path / "tokenizer.json"), _engine(inner))
    asked = ["word " * 80 + end for end in ("first", "second")]
    first, second = (session.chat([{"role": "user", "content": text}], max_tokens=1) for text in asked)
    assert (first.cached_tokens, inner.read[0]) == (0, first.prompt_tokens)
    assert second.cached_tokens == second.prompt_tokens - inner.read[1] > 80
    assert usage(second)["prompt_tokens_details"]["cached_tokens"] == second.cached_tokens


def test_short_and_foreign_beginnings_are_read_anew(inner: BranchingEngine) -> None:
    engine = _engine(inner)
    for prompt in (_prompt(100), _prompt(100, 1), _prompt(20), np.concatenate([_prompt(20), _prompt(80, 2)])):
        assert _says_as_alone(engine, prompt)
    assert inner.read == [100, 100, 20, 100]


def test_a_batch_is_read_as_ever(inner: BranchingEngine) -> None:
    engine = _engine(inner)
    engine.prefill([_prompt(100)])
    engine.prefill([_prompt(100), _prompt(90)])
    assert inner.read == [100, 100, 90]


def test_what_was_not_used_for_longest_is_forgotten_first(inner: BranchingEngine) -> None:
    engine = _engine(inner)
    for seed in range(ENTRIES):
        engine.prefill([_prompt(100, seed)])
    engine.prefill([_prompt(100, 0)])
    engine.prefill([_prompt(100, ENTRIES)])
    inner.read.clear()
    engine.prefill([_prompt(100, 0)])
    engine.prefill([_prompt(100, 1)])
    assert inner.read == [1, 100]


def test_no_more_memory_is_taken_than_allowed(inner: BranchingEngine) -> None:
    one = 100 * (1000 + 4 * HIDDEN)
    engine = _engine(inner, 1000, 2 * one)
    for seed in (0, 1, 2, 2, 1, 0):
        engine.prefill([_prompt(100, seed)])
    assert inner.read == [100, 100, 100, 1, 1, 100]


def test_of_what_is_too_large_to_be_kept_no_copy_is_made(inner: BranchingEngine) -> None:
    engine = _engine(inner, 1000, 100 * (1000 + 4 * HIDDEN) - 1)
    inner.lost = True  # branching would fail
    assert _says_as_alone(engine, _prompt(100))
    assert _says_as_alone(engine, _prompt(100))
    assert inner.read == [100, 100]


def test_an_engine_that_lost_its_states_reads_all_anew(inner: BranchingEngine) -> None:
    engine = _engine(inner)
    engine.prefill([_prompt(100)])
    inner.lost = True
    with pytest.raises(EngineError):
        engine.prefill([_prompt(100)])
    inner.lost = False
    assert _says_as_alone(engine, _prompt(100))
    assert inner.read == [100, 100, 100]


def test_engines_that_cannot_keep_a_beginning_and_no_memory_for_it_leave_it_as_it_is(inner: BranchingEngine) -> None:
    plain = FakeEngine()
    assert with_prefixes(plain, 1) is plain
    assert with_prefixes(inner, 1, 0) is inner
