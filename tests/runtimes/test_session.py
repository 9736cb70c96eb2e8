"""Sessions, on a runtime of numpy alone: what is said of a batch, a stream, a setting and a damaged bundle holds."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from ossicle.runtimes.bench import bench
from ossicle.runtimes.generate import Settings
from ossicle.runtimes.opening import load
from ossicle.runtimes.session import Session
from ossicle.targets import manifest
from ossicle.targets.contract import AudioError, BundleError, Cancelled, EngineError, Float32, PromptError
from ossicle.tests.fakes import HIDDEN, FakeEngine, FakeRuntime, write_bundle

RECORDING = Path("recording.wav")


def _noise(seconds: float, seed: int = 0) -> Float32:
    return np.asarray(np.random.default_rng(seed).normal(0, 0.1, int(16000 * seconds)), np.float32)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bundle")
    write_bundle(folder)
    return folder


@pytest.fixture(scope="module")
def runtime() -> FakeRuntime:
    return FakeRuntime()


@pytest.fixture(scope="module")
def session(bundle: Path, runtime: FakeRuntime) -> Iterator[Session]:
    with load(bundle, engine=runtime) as opened:
        yield opened


def _conversation(*parts: Any) -> list[dict[str, Any]]:
    return [{"role": "user", "content": list(parts)}]


def test_a_transcription_says_all_about_itself(session: Session) -> None:
    result = session.transcribe(_noise(2.0), language="en", max_tokens=5)
    assert (len(result.tokens), result.finish, result.engine, result.language) == (5, "length", "fake-cpu", "en")
    assert result.timings.audio == 2.0
    assert result.timings.tokens == 5
    assert min(result.timings.encode, result.timings.prefill, result.timings.decode) > 0
    assert result.timings.real_time_factor > 0
    assert result.timings.tokens_per_second > 0


def test_a_file_and_its_samples_give_the_same(session: Session, tmp_path: Path) -> None:
    soundfile.write(tmp_path / RECORDING, _noise(2.0), 16000, subtype="FLOAT")
    assert session.transcribe(tmp_path / RECORDING).tokens == session.transcribe(_noise(2.0)).tokens


def test_a_batch_gives_what_each_recording_gives_alone_in_order(session: Session) -> None:
    recordings = [_noise(seconds, seed) for seed, seconds in enumerate([1, 31, 2, 61, 3, 1, 1, 30, 2, 5])]
    together = session.transcribe(recordings, max_tokens=40)
    alone = [session.transcribe(recording, max_tokens=40) for recording in recordings]
    assert [result.tokens for result in together] == [result.tokens for result in alone]
    assert [result.text for result in together] == [result.text for result in alone]
    assert [result.timings.audio for result in together] == [1, 31, 2, 61, 3, 1, 1, 30, 2, 5]
    assert len({result.tokens for result in together}) > 1


def test_a_batch_shrinks_as_its_rows_end(session: Session, runtime: FakeRuntime) -> None:
    engine = runtime.opened[-1]
    recordings = [_noise(1, seed) for seed in range(6)]
    ends = [result.tokens[3] for result in session.transcribe(recordings, max_tokens=10)]
    engine.batches.clear()
    results = session.transcribe(recordings, max_tokens=10, stop_tokens=ends[:1])
    assert engine.batches[0] > engine.batches[-1]
    assert engine.batches == sorted(engine.batches, reverse=True)
    assert results[0].finish == "stop"
    assert ends[0] not in results[0].tokens


def test_an_empty_list_gives_an_empty_list(session: Session) -> None:
    assert session.transcribe([]) == []


def test_a_stream_adds_up_to_the_answer(session: Session) -> None:
    whole = session.transcribe(_noise(1.0), max_tokens=30)
    pieces = list(session.stream(_noise(1.0), max_tokens=30))
    assert "".join(pieces) == whole.text
    assert len(pieces) > 1
    messages = _conversation({"type": "text", "text": "which room?"}, {"type": "audio", "audio": _noise(1.0)})
    answer = session.chat(messages, max_tokens=30)
    assert "".join(session.stream(messages, max_tokens=30)) == answer.text


def test_a_stream_has_its_answer_at_its_end(session: Session) -> None:
    stream = session.stream(_noise(1.0), max_tokens=3)
    with pytest.raises(EngineError, match="has not come to its end"):
        _ = stream.reply
    text = "".join(stream)
    assert (stream.reply.text, len(stream.reply.tokens), stream.reply.finish) == (text, 3, "length")
    assert stream.reply.timings.audio == 1.0


def test_a_closed_stream_gives_nothing_more_and_the_session_goes_on(session: Session) -> None:
    whole = session.transcribe(_noise(1.0), max_tokens=30)
    stream = session.stream(_noise(1.0), max_tokens=30)
    assert whole.text.startswith(next(stream))
    stream.close()
    assert list(stream) == []
    with pytest.raises(EngineError):
        _ = stream.reply
    assert session.transcribe(_noise(1.0), max_tokens=30).text == whole.text


def test_what_is_not_wanted_any_more_is_given_up(session: Session) -> None:
    asked: list[int] = []

    def cancelled() -> bool:
        asked.append(1)
        return len(asked) > 4

    with pytest.raises(Cancelled):
        session.transcribe(_noise(1.0), max_tokens=30, cancelled=cancelled)
    assert len(asked) == 5
    with pytest.raises(Cancelled):
        session.transcribe(_noise(1.0), cancelled=lambda: True)


def test_a_stream_refuses_before_it_starts(session: Session) -> None:
    with pytest.raises(AudioError):
        session.stream("nothing.wav")
    with pytest.raises(PromptError, match="no language"):
        session.stream(_conversation({"type": "text", "text": "hi"}), language="en")


def test_a_chat_may_hold_no_audio(session: Session) -> None:
    reply = session.chat([{"role": "user", "content": "hello"}], max_tokens=3)
    assert len(reply.tokens) == 3
    assert reply.timings.real_time_factor == 0


@pytest.fixture
def recorded(bundle: Path) -> Iterator[tuple[Session, list[Float32]]]:
    """A session and the prompts that its engine was given."""
    prompts: list[Float32] = []

    class Recorder(FakeEngine):
        def prefill(self, prompts_: Any) -> Any:
            prompts.extend(prompts_)
            return super().prefill(prompts_)

    class Runtime(FakeRuntime):
        engine = Recorder

    with load(bundle, engine=Runtime()) as session:
        yield session, prompts


def test_audio_embeddings_take_the_places_of_the_audio_tokens(recorded: tuple[Session, list[Float32]]) -> None:
    session, prompts = recorded
    session.transcribe(_noise(31.0), max_tokens=1)
    np.testing.assert_array_equal(prompts[0][3:753], session.embed_audio(_noise(31.0)).reshape(750, -1))


def test_a_chat_hears_its_clips_where_they_stand(recorded: tuple[Session, list[Float32]]) -> None:
    session, prompts = recorded
    clips = [_noise(1.0, 1), _noise(31.0, 2)]
    parts = [{"type": "audio", "audio": clip} for clip in clips]
    session.chat(_conversation({"type": "text", "text": "first"}, parts[0], parts[1]), max_tokens=1)
    session.chat(_conversation(parts[1], parts[0]), max_tokens=1)
    first, second = (session.embed_audio(clip).reshape(-1, HIDDEN) for clip in clips)
    forward, backward = prompts
    np.testing.assert_array_equal(forward[-752 - 375 : -752], first)
    np.testing.assert_array_equal(forward[-751:-1], second)
    np.testing.assert_array_equal(backward[3:753], second)
    np.testing.assert_array_equal(backward[754:-1], first)


def test_a_stop_string_ends_the_text_before_it(session: Session) -> None:
    whole = session.transcribe(_noise(1.0), max_tokens=60).text
    stop = whole[10:13]
    result = session.transcribe(_noise(1.0), max_tokens=60, stop=stop)
    assert result.text == whole[: whole.index(stop)]
    assert result.finish == "stop"
    assert "".join(session.stream(_noise(1.0), max_tokens=60, stop=[stop])) == result.text


def test_a_seed_gives_the_same_answer_again(session: Session) -> None:
    def draw(seed: int) -> tuple[int, ...]:
        return session.transcribe(_noise(1.0), max_tokens=20, temperature=1.0, seed=seed).tokens

    assert draw(1) == draw(1)
    assert draw(1) != draw(2)


def test_rows_of_a_batch_draw_from_their_own_streams(session: Session) -> None:
    same = [_noise(1.0)] * 10
    results = session.transcribe(same, max_tokens=20, temperature=1.0, seed=1)
    assert len({result.tokens for result in results}) == 10


def test_repetition_is_penalized(session: Session) -> None:
    tokens = session.transcribe(_noise(1.0), max_tokens=60, repetition_penalty=50.0).tokens
    assert len(set(tokens)) == len(tokens)


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"max_tokens": 0}, "max_tokens 0"),
        ({"temperature": -1.0}, "temperature -1"),
        ({"top_p": 2.0, "min_p": 3.0}, "top_p 2.0.*min_p 3.0"),
        ({"stop": ""}, "stop ''"),
        ({"heat": 1}, "settings heat are unknown .*temperature"),
        ({"max_tokens": "5"}, "max_tokens '5' .*a whole number"),
        ({"seed": 1.5}, "seed 1.5 .*a whole number"),
        ({"temperature": "hot"}, "temperature 'hot' .*a number"),
        ({"stop": ["a", 5]}, r"stop \['a', 5\] .*a list of texts"),
        ({"stop_tokens": 5}, "stop_tokens 5 .*a list of tokens' ids"),
        ({"cancelled": True}, "cancelled True .*a function"),
        ({"language": 5}, "language 5"),
        ({"grammar": "\ud800"}, "grammar .*in Unicode"),
    ],
)
def test_impossible_settings_are_refused(session: Session, settings: Any, reason: str) -> None:
    with pytest.raises(PromptError, match=reason):
        session.transcribe(_noise(1.0), **settings)


def test_settings_of_none_say_nothing(session: Session) -> None:
    nothing: dict[str, Any] = dict.fromkeys(Settings.__annotations__)
    assert session.transcribe(_noise(1.0), **nothing).tokens == session.transcribe(_noise(1.0)).tokens


@pytest.mark.parametrize("settings", [{"seconds": "x"}, {"pause": "x"}, {"together": 1.5}])
def test_segments_of_impossible_settings_are_refused(session: Session, settings: Any) -> None:
    with pytest.raises(PromptError, match=r"(is|are) not possible"):
        session.segments(_noise(1.0), **settings)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"threads": "2"}, "threads '2'"),
        ({"context": 1.5}, "context 1.5"),
        ({"prefixes": "x"}, "prefixes 'x'"),
        ({"adapters": ["x"]}, r"adapters \['x'\]"),
        ({"engine": None}, "engine None .*onnxruntime"),
    ],
)
def test_impossible_options_are_refused(bundle: Path, options: Any, reason: str) -> None:
    with pytest.raises(EngineError, match=reason):
        load(bundle, **{"engine": FakeRuntime()} | options)


def test_a_text_that_is_no_unicode_is_refused(session: Session) -> None:
    with pytest.raises(PromptError, match=r"no Unicode: 'what\\ud800"):
        session.chat(_conversation({"type": "text", "text": "what\ud800"}))


def test_an_answer_ends_with_the_context(session: Session) -> None:
    result = session.transcribe(_noise(300.0), max_tokens=10**6, stop_tokens=())
    assert len(result.tokens) + 3755 <= 4096
    assert result.finish == ("length" if len(result.tokens) + 3755 == 4096 else "stop")


def test_too_long_a_conversation_is_refused_with_numbers(session: Session) -> None:
    with pytest.raises(PromptError, match=r"11 windows .* 4096"):
        session.chat(_conversation({"type": "audio", "audio": _noise(301.0)}, {"type": "text", "text": "which room?"}))


def test_score_gives_the_logits_that_choose_each_token(session: Session) -> None:
    tokens = session.transcribe(_noise(1.0), max_tokens=12).tokens
    logits = session.score(_noise(1.0), tokens)
    assert logits.shape == (12, 512)
    assert logits.argmax(axis=1).tolist() == list(tokens)
    assert session.score(_noise(1.0), []).shape == (0, 512)
    with pytest.raises(PromptError, match="5000 tokens"):
        session.score(_noise(1.0), [7] * 5000)


def test_logits_that_are_no_numbers_are_refused(bundle: Path) -> None:
    class Broken(FakeEngine):
        def prefill(self, prompts: Any) -> Any:
            logits, state = super().prefill(prompts)
            return logits * np.float32(np.nan), state

    class Runtime(FakeRuntime):
        engine = Broken

    with load(bundle, engine=Runtime()) as session, pytest.raises(EngineError, match="no numbers"):
        session.transcribe(_noise(1.0))


def test_a_closed_session_answers_nothing(bundle: Path) -> None:
    runtime = FakeRuntime()
    with load(bundle, engine=runtime) as session:
        pass
    assert runtime.opened[0].closed
    session.close()
    with pytest.raises(EngineError, match="closed"):
        session.transcribe(_noise(1.0))


def test_a_damaged_bundle_is_refused(tmp_path: Path) -> None:
    write_bundle(tmp_path)
    (tmp_path / "model.fake").write_bytes(b"fakE")
    with pytest.raises(BundleError, match=r"model\.fake does not match"):
        load(tmp_path, engine=FakeRuntime())
    load(tmp_path, engine=FakeRuntime(), check=False).close()
    (tmp_path / "model.fake").write_bytes(b"")
    with pytest.raises(BundleError, match=r"model\.fake has 0 bytes"):
        load(tmp_path, engine=FakeRuntime(), check=False)
    (tmp_path / "tokenizer.json").unlink()
    with pytest.raises(BundleError, match=r"tokenizer\.json is missing"):
        load(tmp_path, engine=FakeRuntime())


def test_impossible_threads_are_refused(bundle: Path) -> None:
    for threads in (-1, 100_000):
        with pytest.raises(EngineError, match=f"threads {threads} is not possible .it can be: 0 for all cores, to "):
            load(bundle, engine=FakeRuntime(), threads=threads)


@pytest.mark.parametrize(("setting", "possible"), [("kv_cache", "float32, .*int4"), ("compute", "float32")])
def test_what_no_engine_has_is_refused_before_any_is_tried(
    bundle: Path, monkeypatch: pytest.MonkeyPatch, setting: str, possible: str
) -> None:
    monkeypatch.setattr("ossicle.runtimes.opening._ranked", pytest.fail)
    options: dict[str, Any] = {setting: "bf16"}
    with pytest.raises(EngineError, match=f"^{setting} 'bf16' is not possible .it can be: {possible}."):
        load(bundle, **options)
    with pytest.raises(EngineError, match="compute 'bf16' is not possible"):
        bench(bundle, compute="bf16")
    for options in ({"budget": float("inf")}, {"budget": 0}, {"context": 0}):
        with pytest.raises(EngineError, match=r"(budget|context) \w+ is not possible"):
            bench(bundle, **options)


def test_no_bundle_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="is not a bundle"):
        load(tmp_path / "nothing")
    (tmp_path / "a.wav").write_bytes(b"")
    with pytest.raises(BundleError, match=r"a\.wav' is a file"):
        load(tmp_path / "a.wav")


def test_a_bundle_that_failed_verification_is_refused_unless_asked_for(tmp_path: Path) -> None:
    written = write_bundle(tmp_path)
    for passed in (True, False):
        entry = {"passed": passed, "failed": [] if passed else ["kl"]}
        manifest.write(tmp_path, replace(written, verification={"fake": entry}))
        if passed:
            load(tmp_path, engine=FakeRuntime()).close()
    with pytest.raises(BundleError, match=r"failed verification for target fake \(kl\)"):
        load(tmp_path, engine=FakeRuntime())
    load(tmp_path, engine=FakeRuntime(), allow_failed=True).close()


def test_a_recording_heard_before_is_not_encoded_again(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encoded: list[int] = []
    encode = FakeEngine.encode
    monkeypatch.setattr(FakeEngine, "encode", lambda self, mel: encoded.append(len(mel)) or encode(self, mel))
    with load(bundle, engine=FakeRuntime()) as session:
        first, again = (session.transcribe(_noise(2), rate=16000).text for _ in range(2))
        assert (first, encoded) == (again, [1])
        session.transcribe(_noise(2, seed=1), rate=16000)
        assert encoded == [1, 1]
