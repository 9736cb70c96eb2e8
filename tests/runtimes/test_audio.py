"""Recordings of every kind become one kind of waveform, and what is none is refused by name."""

import os
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from ossicle.runtimes.audio import audio_seconds, load_audio, readable_formats
from ossicle.targets.contract import AudioError, Float32


def _tone(rate: int = 16000, seconds: float = 1.0) -> Float32:
    return np.asarray(0.5 * np.sin(2 * np.pi * 440 * np.arange(int(rate * seconds)) / rate), np.float32)


@pytest.mark.parametrize("suffix", ["wav", "flac", "ogg", "mp3", "aiff"])
def test_formats_are_read(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"tone.{suffix}"
    soundfile.write(path, _tone(), 16000)
    samples = load_audio(path)
    assert samples.dtype == np.float32
    assert len(samples) == pytest.approx(16000, abs=1200)
    assert np.sqrt((samples**2).mean()) == pytest.approx(0.5 / np.sqrt(2), rel=0.05)


@pytest.mark.parametrize("subtype", ["PCM_U8", "PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE", "ULAW"])
def test_sample_formats_are_read(tmp_path: Path, subtype: str) -> None:
    soundfile.write(tmp_path / "tone.wav", _tone(), 16000, subtype=subtype)
    assert np.abs(load_audio(tmp_path / "tone.wav") - _tone()).max() < 0.02


@pytest.mark.parametrize("rate", [8000, 11025, 22050, 44100, 48000, 96000])
def test_rates_are_converted(tmp_path: Path, rate: int) -> None:
    soundfile.write(tmp_path / "tone.wav", _tone(rate), rate, subtype="FLOAT")
    samples = load_audio(tmp_path / "tone.wav")
    assert len(samples) == pytest.approx(16000, abs=2)
    middle = slice(2000, 14000)
    assert np.abs(samples[:16000][middle] - _tone()[middle]).max() < 1e-3
    np.testing.assert_array_equal(load_audio(_tone(rate), rate=rate), samples)


def test_channels_are_averaged(tmp_path: Path) -> None:
    stereo = np.stack([_tone(), np.zeros(16000, np.float32)], axis=1)
    soundfile.write(tmp_path / "stereo.wav", stereo, 16000, subtype="FLOAT")
    for samples in (load_audio(tmp_path / "stereo.wav"), load_audio(stereo), load_audio(stereo.T)):
        np.testing.assert_allclose(samples, _tone() / 2, atol=1e-7)


@pytest.mark.parametrize("dtype", [np.int16, np.int32, np.float64, np.float16])
def test_arrays_of_other_types_are_scaled(dtype: type) -> None:
    scale = 2.0 ** (8 * np.dtype(dtype).itemsize - 1) if np.dtype(dtype).kind == "i" else 1.0
    samples = load_audio((_tone() * scale).astype(dtype))
    assert samples.dtype == np.float32
    assert np.abs(samples - _tone()).max() < 1e-3


def test_open_files_and_bytes_are_read(tmp_path: Path) -> None:
    path = tmp_path / "tone.wav"
    soundfile.write(path, _tone(), 16000)
    expected = load_audio(path)
    with path.open("rb") as stream:
        np.testing.assert_array_equal(load_audio(stream), expected)
    np.testing.assert_array_equal(load_audio(path.read_bytes()), expected)
    np.testing.assert_array_equal(load_audio(BytesIO(path.read_bytes())), expected)
    np.testing.assert_array_equal(load_audio(str(path)), expected)


def test_a_recording_longer_than_a_block_is_whole(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "long.wav", _tone(seconds=40.0), 16000, subtype="FLOAT")
    np.testing.assert_array_equal(load_audio(tmp_path / "long.wav"), _tone(seconds=40.0))


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(AudioError, match=r"nothing\.wav.*does not exist"):
        load_audio(tmp_path / "nothing.wav")
    with pytest.raises(AudioError, match="is not a file"):
        load_audio(tmp_path)
    with pytest.raises(AudioError, match="does not exist"):
        load_audio("a" * 5000)


@pytest.mark.parametrize("name", ["text.wav", "text.raw", "text"])
def test_text_is_refused_with_what_can_be_read(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("this is no recording at all\n" * 20)
    with pytest.raises(AudioError, match=rf"{name}.*cannot be read.*FLAC.*WAV.*ffmpeg"):
        load_audio(tmp_path / name)


def test_zero_length_is_refused(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "empty.wav", np.zeros(0, np.float32), 16000)
    with pytest.raises(AudioError, match=r"empty\.wav.*zero length"):
        load_audio(tmp_path / "empty.wav")
    (tmp_path / "void.wav").touch()
    with pytest.raises(AudioError, match=r"void\.wav"):
        load_audio(tmp_path / "void.wav")
    for shape in ((0,), (0, 2)):
        with pytest.raises(AudioError, match="zero length"):
            load_audio(np.zeros(shape, np.float32))


def test_what_float32_cannot_hold_the_power_of_is_refused() -> None:
    samples = _tone()
    samples[7] = -1e30
    with pytest.raises(AudioError, match=r"the array .* holds samples of up to 1e\+30, and full scale is 1"):
        load_audio(samples)
    with pytest.raises(AudioError, match="not numbers"):
        load_audio(np.full(9, 1e300))


def test_a_name_that_is_no_unicode_is_read(tmp_path: Path) -> None:
    path = tmp_path / os.fsdecode(b"t\xf6ne.wav")
    soundfile.write(os.fsencode(path), _tone(), 16000, format="WAV")
    assert len(load_audio(path)) == 16000


def test_a_file_that_is_closed_or_open_as_text_is_refused(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "tone.wav", _tone(), 16000)
    with (tmp_path / "tone.wav").open(encoding="latin-1") as text, pytest.raises(AudioError, match="TextIOWrapper"):
        load_audio(text)  # type: ignore[arg-type]
    with (tmp_path / "tone.wav").open("rb") as closed:
        pass
    for read in (load_audio, audio_seconds):
        with pytest.raises(AudioError, match=r"tone\.wav' is closed"):
            read(closed)
    reader, writer = os.pipe()
    os.close(writer)
    with open(reader, "rb") as pipe, pytest.raises(AudioError, match=r"a pipe .* Give its bytes"):
        load_audio(pipe)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_a_number_is_refused(value: float) -> None:
    samples = _tone()
    samples[7] = value
    with pytest.raises(AudioError, match="1 of 16000 samples"):
        load_audio(samples)


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        (np.zeros((2, 3, 4), np.float32), "is no recording"),
        (np.zeros((500, 500), np.float32), "is no recording"),
        (np.array(1.0), "is no recording"),
        (np.zeros(10, complex), "holds complex128"),
        (np.zeros(10, bool), "holds bool"),
        (3.5, "of type float"),
        (None, "of type NoneType"),
    ],
)
def test_what_is_no_recording_is_refused(source: object, reason: str) -> None:
    with pytest.raises(AudioError, match=reason):
        load_audio(source)  # type: ignore[arg-type]


@pytest.mark.parametrize("rate", [0, -8000, "16k"])
def test_impossible_rates_are_refused(rate: Any) -> None:
    with pytest.raises(AudioError, match=f"rate of {rate} Hz"):
        load_audio(_tone(), rate=rate)


def test_raw_samples_are_not_among_the_formats() -> None:
    assert "RAW" not in readable_formats()


def test_resampling_keeps_what_is_below_half_the_rate_and_nothing_above() -> None:
    """7 kHz pass, 9 kHz, which would be heard as 7, do not: within 1 % and -60 dB."""
    times = np.arange(48000) / 48000
    for hertz, low, high in ((7000, 0.495, 0.505), (9000, 0.0, 0.0005)):
        tone = np.asarray(0.5 * np.sin(2 * np.pi * hertz * times), np.float32)
        middle = load_audio(tone, rate=48000)[4000:12000]
        assert low <= np.sqrt(2 * (middle**2).mean()) <= high
