"""Adapters chosen by request: every answer is that of a model with them merged, whatever was asked before or between."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ossicle.runtimes.adapters import adapted, key, names
from ossicle.runtimes.fallback import FallbackEngine, Way
from ossicle.runtimes.mixed import MixedEngine
from ossicle.runtimes.opening import load
from ossicle.runtimes.prefixes import with_prefixes
from ossicle.runtimes.session import Session
from ossicle.targets.contract import EngineError, Float32, PromptError
from ossicle.tests.fakes import HIDDEN, FakeEngine, FakeRuntime, demo_tokenizer, write_bundle
from ossicle.tests.runtimes.fake_adapters import SHIFTS, Adapting, Branching, Merged, shift_of

CHOICES: Sequence[dict[str, float] | None] = (
    {"legal": 1.0},
    {},
    {"polite": 0.5, "short": -1.0},
    None,
    {"short": 1.0},
    {"polite": 1.0, "legal": 0.0},
)
LARGE = 1 << 40


def noise(seed: int, rows: int = 0) -> Float32:
    shape = (rows, HIDDEN) if rows else 16000
    return np.random.default_rng(seed).normal(0, 1 if rows else 0.1, shape).astype(np.float32)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("bundle")
    return write_bundle(folder), demo_tokenizer(folder)


def test_answers_of_any_order_are_those_of_merged_models(bundle: Any) -> None:
    session = Session(*bundle, FallbackEngine([Way("fake", lambda: with_prefixes(Adapting(*SHIFTS), 1, LARGE))]))
    assert session.adapters == tuple(SHIFTS)
    for number, choice in enumerate([*CHOICES, *reversed(CHOICES)]):
        alone = Session(*bundle, Merged(shift_of(choice)))
        sound = noise(number % 2)
        settings: Any = {} if choice is None else {"adapters": choice}
        ours = session.transcribe(sound, rate=16000, max_tokens=8, **settings)
        assert ours.tokens == alone.transcribe(sound, rate=16000, max_tokens=8).tokens
        np.testing.assert_array_equal(session.score(sound, [5, 6], adapters=choice), alone.score(sound, [5, 6]))


def test_streams_of_several_callers_interleave(bundle: Any) -> None:
    session = Session(*bundle, Adapting(*SHIFTS))
    others = [session.share() for _ in CHOICES]
    expected = [
        Session(*bundle, Merged(shift_of(choice))).transcribe(noise(1), rate=16000, max_tokens=12) for choice in CHOICES
    ]
    streams = [
        one.stream(noise(1), rate=16000, max_tokens=12, **({} if choice is None else {"adapters": choice}))
        for one, choice in zip(others, CHOICES, strict=True)
    ]
    texts = [""] * len(streams)
    for _ in range(14):
        for number, stream in enumerate(streams):
            texts[number] += next(stream, "")
    assert texts == [one.text for one in expected]
    assert len(set(texts)) > 3


@pytest.mark.parametrize("kind", [Adapting, Branching])
def test_a_beginning_is_gone_on_from_with_the_same_adapters_alone(kind: type[Adapting]) -> None:
    inner = kind(*SHIFTS)
    engine = with_prefixes(inner, 1, LARGE)
    prompt, same = noise(1, 100), {"legal": 1.0}
    for choice in (same, {"polite": 1.0}, same, None, {"legal": 1, "short": 0}, {"legal": 0.5}):
        found, _ = adapted(engine, choice).prefill([prompt])
        if kind is Branching:  # what the other hands over is its last state, wherever it is cut
            np.testing.assert_array_equal(found, Merged(shift_of(choice)).prefill([prompt])[0])
    assert inner.read == [100, 100, 1, 100, 1, 100]


def test_where_an_engine_fails_the_next_goes_on_with_the_same_adapters() -> None:
    first, second = Adapting(*SHIFTS, name="first"), Adapting(*SHIFTS, name="second")
    first.fails = 2
    engine = FallbackEngine([Way("first", lambda: first), Way("second", lambda: second)])
    view, merged = adapted(engine, {"legal": 1.0}), Merged(SHIFTS["legal"])
    ours, expected = view.prefill([noise(1, 9)]), merged.prefill([noise(1, 9)])
    for token in (4, 5, 6, 7):
        ours, expected = view.step(ours[1], np.array([token])), merged.step(expected[1], np.array([token]))
        np.testing.assert_array_equal(ours[0], expected[0])
    assert (engine.name, first.closed) == ("second", True)


def test_asking_for_what_an_engine_lacks_costs_no_engine() -> None:
    first, second = Adapting("legal", name="first"), FakeEngine()
    first.fails = 0
    engine = FallbackEngine([Way("first", lambda: first), Way("second", lambda: second)])
    view = adapted(engine, {"legal": 1.0})
    with pytest.raises(PromptError, match=r"no adapter 'legl' in this bundle \(near it: legal; it has: legal\)"):
        adapted(engine, {"legl": 1.0})
    _, state = view.prefill([noise(1, 9)])
    assert engine.name == "first"
    with pytest.raises(PromptError, match="'fake-cpu' has none of the adapters"):
        view.step(state, np.array([4]))
    assert (engine.name, second.closed) == ("fake-cpu", False)


def test_a_reader_without_adapters_leaves_prompts_to_the_decoder() -> None:
    reader, decoder = Adapting(name="reader"), Adapting(*SHIFTS, name="decoder")
    engine = MixedEngine(FakeEngine(), reader, decoder)
    assert names(engine) == tuple(SHIFTS)
    for choice in ({"legal": 1.0}, {}):
        found, _ = adapted(engine, choice).prefill([noise(1, 9)])
        np.testing.assert_array_equal(found, Merged(shift_of(choice)).prefill([noise(1, 9)])[0])
    assert (reader.read, decoder.read) == ([9], [9])


def test_a_reader_with_the_same_adapters_hands_over_what_it_read_with_them() -> None:
    reader, decoder = Adapting(*SHIFTS, name="reader"), Adapting(*SHIFTS, name="decoder")
    view, merged = adapted(MixedEngine(FakeEngine(), reader, decoder), {"short": 0.5}), Merged(shift_of({"short": 0.5}))
    ours, expected = view.prefill([noise(1, 9)]), merged.prefill([noise(1, 9)])
    ours, expected = view.step(ours[1], np.array([4])), merged.step(expected[1], np.array([4]))
    np.testing.assert_array_equal(ours[0], expected[0])
    assert (reader.read, decoder.read) == ([9], [])


def test_what_no_engine_has_is_refused_before_one_is_opened(tmp_path: Path) -> None:
    write_bundle(tmp_path)
    runtime = FakeRuntime()
    with pytest.raises(
        EngineError, match=r"no adapter 'legal' in this bundle \(it has: none; keep one in it: ossicle build"
    ):
        load(tmp_path, engine=runtime, adapters={"legal": 1.0})
    assert runtime.opened == []


def test_a_closed_session_answers_nothing_with_adapters_either(bundle: Any) -> None:
    session = Session(*bundle, Adapting(*SHIFTS))
    stream = session.stream(noise(1), rate=16000, adapters={"legal": 1.0})
    next(stream)
    session.close()
    with pytest.raises(EngineError, match="the session is closed"):
        list(stream)


@pytest.mark.parametrize(
    ("adapters", "said"),
    [
        ({"legal": float("inf")}, "no scale inf for adapter 'legal'"),
        ({"legal": -1e30}, r"no scale -1e\+30 for adapter 'legal' \(it can be: from -100 to 100\)"),
        ({"other": 1.0}, r"no adapter 'other' in this bundle \(it has: legal, polite, short; keep one"),
        (["legal"], r"adapters \['legal'\] are not possible"),
        ({"legal": "much"}, r"adapters \{'legal': 'much'\} are not possible"),
    ],
)
def test_what_cannot_be_chosen(bundle: Any, adapters: Any, said: str) -> None:
    session = Session(*bundle, Adapting(*SHIFTS))
    with pytest.raises(PromptError, match=said):
        session.stream([{"role": "user", "content": "hello"}], adapters=adapters)


def test_an_engine_without_any_says_so(bundle: Any) -> None:
    session = Session(*bundle, FakeEngine())
    assert session.adapters == ()
    assert session.transcribe(noise(1), rate=16000, max_tokens=3, adapters={}).tokens
    with pytest.raises(
        PromptError, match=r"'fake-cpu' has none of the adapters asked for \(legal\).*these add them: onnx"
    ):
        session.transcribe(noise(1), rate=16000, adapters={"legal": 1.0})


def test_what_adds_nothing_is_no_choice_of_its_own() -> None:
    assert key({"b": 1, "a": 0.5, "c": 0}) == (("a", 0.5), ("b", 1.0))
