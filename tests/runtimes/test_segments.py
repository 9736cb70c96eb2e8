"""Long recordings on a runtime of numpy alone: where they are cut, what their segments say, and that memory does not grow."""

import struct
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from ossicle.runtimes.opening import load
from ossicle.runtimes.segments import between
from ossicle.runtimes.session import Session
from ossicle.runtimes.stretches import Stretch, sound, stretches
from ossicle.targets.contract import AudioError, Cancelled, EngineError, Float32, PromptError
from ossicle.tests.fakes import FakeRuntime, write_bundle

RATE = 16000


def _noise(seconds: float, seed: int = 0, loudness: float = 0.1) -> Float32:
    return np.asarray(np.random.default_rng(seed).normal(0, loudness, int(RATE * seconds)), np.float32)


def _quiet(seconds: float) -> Float32:
    return _noise(seconds, 7, 1e-4)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    write_bundle(folder := tmp_path_factory.mktemp("bundle"))
    return folder


@pytest.fixture(scope="module")
def session(bundle: Path) -> Iterator[Session]:
    with load(bundle, engine=FakeRuntime()) as opened:
        yield opened


@pytest.mark.parametrize("block", [1000, 7777, 10**6])
def test_stretches_are_the_whole_recording_in_order(block: int) -> None:
    samples = np.concatenate([_noise(3.3, 1), _quiet(0.5), _noise(9.4, 2)])
    found = list(stretches((samples[i : i + block] for i in range(0, len(samples), block)), RATE, 4 * RATE))
    assert np.array_equal(np.concatenate([one.samples for one in found]), samples)
    assert [one.start for one in found] == [0, *np.cumsum([len(one.samples) for one in found[:-1]])]
    assert max(len(one.samples) for one in found) <= 4 * RATE


@pytest.mark.parametrize("begin", [5.4, 7.0, 9.1])
def test_a_stretch_ends_in_the_pause_of_its_last_seconds(begin: float) -> None:
    samples = np.concatenate([_noise(begin, 1), _quiet(0.5), _noise(9.0, 2)])
    first = next(stretches(iter([samples]), RATE, 10 * RATE))
    assert begin + 0.1 < len(first.samples) / RATE < begin + 0.4


def test_the_longest_of_the_pauses_is_taken_and_none_before_the_last_seconds() -> None:
    parts = [_noise(2), _quiet(2), _noise(3), _quiet(0.3), _noise(1), _quiet(0.6), _noise(9)]
    first = next(stretches(iter([np.concatenate(parts)]), RATE, 10 * RATE))
    assert 8.4 < len(first.samples) / RATE < 8.8


def test_a_pause_that_is_asked_for_ends_a_stretch() -> None:
    parts = [_quiet(1), _noise(2), _quiet(0.4), _noise(2), _quiet(1), _noise(2), _quiet(3)]
    found = list(stretches(iter([np.concatenate(parts)]), RATE, 10 * RATE, pause=0.8))
    assert [round(len(one.samples) / RATE, 1) for one in found] == [5.9, 5.5]


def test_sound_is_found_between_quiet_with_some_of_it_around() -> None:
    found = sound(Stretch(RATE, np.concatenate([_quiet(2), _noise(1), _quiet(3)])), RATE)
    assert found is not None
    assert (found.start / RATE, found.end / RATE) == pytest.approx((3.0, 4.0), abs=0.02)
    assert len(found.samples) / RATE == pytest.approx(1.6, abs=0.04)


@pytest.mark.parametrize("samples", [np.zeros(0, np.float32), np.zeros(99, np.float32), np.zeros(RATE, np.float32)])
def test_nothing_sounds_in_digital_silence(samples: Float32) -> None:
    assert sound(Stretch(0, samples), RATE) is None


@pytest.mark.parametrize("seconds", [0.001, 0.05, 1.0])
def test_steady_noise_sounds_from_its_beginning_to_its_end(seconds: float) -> None:
    found = sound(Stretch(0, _noise(seconds)), RATE)
    assert found is not None
    assert (found.start, found.end) == (0, int(RATE * seconds))


def _three_parts() -> Float32:
    return np.concatenate([_noise(28, 1), _quiet(1), _noise(27, 2), _quiet(1), _noise(5, 3)])


def test_segments_say_what_each_part_says_alone(session: Session) -> None:
    found = list(session.segments(_three_parts(), max_tokens=20))
    assert [(round(one.start), round(one.end)) for one in found] == [(0, 28), (29, 56), (57, 62)]
    cut = [_three_parts()[int(RATE * a) : int(RATE * b)] for a, b in ((0, 28.3), (28.7, 56.3), (56.7, 62))]
    assert [one.text for one in found] == [session.transcribe(part, max_tokens=20).text for part in cut]
    assert all(one.timings.audio > 0 and one.audio_tokens == 375 for one in found)


def test_segments_decoded_together_are_the_same(session: Session) -> None:
    alone = list(session.segments(_three_parts(), max_tokens=20, temperature=1.0))
    together = list(session.segments(_three_parts(), max_tokens=20, temperature=1.0, together=2))
    assert [one.tokens for one in together] == [one.tokens for one in alone]


@pytest.mark.parametrize("suffix", ["wav", "flac"])
def test_a_file_at_another_rate_has_the_same_segments_as_its_bytes(
    session: Session, tmp_path: Path, suffix: str
) -> None:
    samples = np.repeat(_three_parts()[::2, None], 2, axis=1)
    soundfile.write(path := tmp_path / f"long.{suffix}", samples, RATE // 2)
    with path.open("rb") as file:
        found = [list(session.segments(source, max_tokens=5)) for source in (path, path.read_bytes(), file)]
    assert len(found[0]) == 3
    assert len({tuple((one.start, one.tokens) for one in segments) for segments in found}) == 1


def test_progress_goes_from_segment_to_segment_to_the_end(session: Session) -> None:
    told: list[tuple[float, float | None]] = []
    for number, one in enumerate(
        session.segments(_three_parts(), max_tokens=1, progress=lambda done, total: told.append((done, total)))
    ):
        assert len(told) == number
        assert not told or told[-1][0] <= one.start
    assert told[-1] == (62.0, 62.0)
    assert len(told) == 3


def test_progress_ends_at_the_length_of_a_recording_of_another_rate(session: Session) -> None:
    told: list[tuple[float, float | None]] = []
    odd = np.random.default_rng(0).normal(0, 0.1, 16001).astype(np.float32)
    list(session.segments(odd, rate=48000, max_tokens=1, progress=lambda *done: told.append(done)))
    assert told[-1] == (16001 / 48000, 16001 / 48000)  # though it is resampled to a little more


def test_a_recording_longer_than_the_context_is_transcribed_by_segments(session: Session) -> None:
    long = np.concatenate([_noise(27.0, seed) if part == 0 else _quiet(1.0) for seed in range(12) for part in (0, 1)])
    found = session.transcribe(long, max_tokens=20)
    segments = list(session.segments(long, max_tokens=20))
    assert len(found.segments) == len(segments) == 12
    assert [one.tokens for one in found.segments] == [one.tokens for one in segments]
    assert found.tokens == tuple(token for one in segments for token in one.tokens)
    assert found.timings.tokens == len(found.tokens)
    assert sum(one.timings.audio for one in segments) < found.timings.audio == len(long) / 16000  # silence and all
    assert (found.prompt_tokens, found.finish) == (sum(one.prompt_tokens for one in segments), "length")
    pieces = session.stream(long, max_tokens=20)
    assert "".join(pieces) == pieces.reply.text == found.text
    assert pieces.reply.timings.audio == found.timings.audio


def test_what_fits_into_the_context_is_one_prompt_and_one_segment(session: Session) -> None:
    found = session.transcribe(_noise(300), max_tokens=3)
    assert (found.audio_tokens, len(found.segments)) == (3750, 1)
    assert (found.segments[0].start, found.segments[0].end, found.segments[0].text) == (0.0, 300.0, found.text)
    first, long, last = session.transcribe([_noise(1), _noise(301), _noise(2)], max_tokens=3)
    assert (first.timings.audio, last.timings.audio, len(long.segments)) == (1.0, 2.0, 11)


@pytest.mark.parametrize(
    ("before", "after", "space"), [("a", "b", " "), ("a ", "b", ""), ("a", " b", ""), ("", "b", ""), ("a", "", "")]
)
def test_texts_are_parted_by_one_space(before: str, after: str, space: str) -> None:
    assert between(before, after) == space


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"seconds": 0.5}, "1 to 300"),
        ({"seconds": 301}, "1 to 300"),
        ({"pause": 0.0}, "0.2 or more"),
        ({"pause": float("nan")}, "0.2 or more"),
        ({"together": 0}, "1 or more"),
        ({"max_tokens": 0}, "above 0"),
    ],
)
def test_impossible_settings_are_refused_at_once(session: Session, settings: Any, reason: str) -> None:
    with pytest.raises(PromptError, match=reason):
        session.segments(_noise(1), **settings)
    with pytest.raises(AudioError, match="does not exist"):
        session.segments("nothing.wav")


def test_a_damaged_place_is_told_behind_what_came_before_it(session: Session) -> None:
    samples = _noise(100)
    samples[90 * RATE] = np.nan
    segments = session.segments(samples, max_tokens=3)
    assert next(segments).end <= 30
    with pytest.raises(AudioError, match=r"not numbers .*second [1-9]"):
        list(segments)


def test_an_engine_that_fails_says_at_which_second(bundle: Path) -> None:
    runtime = FakeRuntime()
    with load(bundle, engine=runtime) as session:
        segments = session.segments(_three_parts(), max_tokens=3)
        next(segments)

        def failing(*_: Any) -> Any:
            raise EngineError("engine 'fake' failed.")

        runtime.opened[-1].prefill = failing  # type: ignore[method-assign]
        with pytest.raises(EngineError, match=r"engine 'fake' failed\. .*second 28"):
            next(segments)


def test_what_is_not_wanted_any_more_ends_between_two_tokens(session: Session) -> None:
    wanted = [True]
    segments = session.segments(_three_parts(), max_tokens=3, cancelled=lambda: not wanted[0])
    next(segments)
    wanted[0] = False
    with pytest.raises(Cancelled):
        next(segments)


def _hours(path: Path, hours: int) -> Path:
    """A WAV file of some hours with a second of noise every ten minutes; on the disk it takes the noise alone."""
    size = hours * 3600 * RATE * 2
    layout = struct.pack("<4sIHHIIHH", b"fmt ", 16, 1, 1, RATE, 2 * RATE, 2, 16)
    header = struct.pack("<4sI4s", b"RIFF", 36 + size, b"WAVE") + layout + struct.pack("<4sI", b"data", size)
    with path.open("wb") as file:
        file.write(header)
        for second in range(0, hours * 3600, 600):
            file.seek(len(header) + second * RATE * 2)
            file.write((_noise(1) * 32767).astype("<i2").tobytes())
        file.truncate(len(header) + size)
    return path


def test_hours_take_no_more_memory_than_minutes(session: Session, tmp_path: Path) -> None:
    recording, told = _hours(tmp_path / "hours.wav", 3), [0.0]
    tracemalloc.start()
    try:
        found = list(session.segments(recording, max_tokens=2, progress=lambda done, _: told.append(done)))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert [round(one.start) for one in found] == list(range(0, 3 * 3600, 600))
    assert told[-1] == 3 * 3600
    assert peak < 64 << 20  # three hours are 691 MB of samples
