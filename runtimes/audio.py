"""Any recording -> the waveform that the front end takes: float32, mono, at the model's rate; whole, or block by block."""

from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO, TextIOBase
from numbers import Real
from os import PathLike, fsencode, fspath
from os.path import exists, isfile
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from ..targets.contract import AudioError, Float32

# A path, an open binary file, the bytes of a file, or samples [samples] or [samples, channels] or [channels, samples].
AudioSource = str | PathLike[str] | BinaryIO | bytes | NDArray[Any]

MOST_CHANNELS = 64
BLOCK = 1 << 18  # samples read at a time
LOUDEST = 1e12  # where 1 is full scale: above it float32 cannot hold the power of a frame
UNKNOWN = 1 << 60  # samples: libsndfile's word for a length that no header tells


def load_audio(source: AudioSource, *, rate: int | None = None, target_rate: int = 16000) -> Float32:
    """The recording as float32 [samples] at `target_rate`, channels averaged, integers scaled to -1 .. 1.

    `rate` is that of an array of samples (taken as `target_rate` where not given); a file knows its own.

    Raises:
        AudioError: it cannot be read, holds nothing, or holds what is no sound.
    """
    return np.concatenate(list(audio_blocks(source, rate=rate, target_rate=target_rate)))


def audio_blocks(source: AudioSource, *, rate: int | None = None, target_rate: int = 16000) -> Iterator[Float32]:
    """What `load_audio` gives, to the bit, in blocks [samples] of some seconds: a recording may have any length.

    Raises:
        AudioError: as `load_audio`, once the fault is come to.
    """
    name, known_rate, taken, given = _name(source), 0, 0, 0
    resampled = _Resampled(name, target_rate)
    for known_rate, block in _raw_blocks(source, name, target_rate if rate is None else rate):
        _check_numbers(block, name, taken / _possible(known_rate, name))
        taken += len(block)
        for part in resampled.add(block, known_rate):
            given += len(part)
            yield part
    if not taken:
        raise AudioError(f"{name} holds no samples: a recording of zero length. Record it again.")
    rest = resampled.rest()
    if not given + sum(map(len, rest)):
        raise AudioError(f"{name} is too short: {taken} samples at {known_rate} Hz. Record it again.")
    yield from rest


def audio_seconds(source: AudioSource, *, rate: int | None = None, target_rate: int = 16000) -> float | None:
    """Length of a recording by its header, which is all that is read; None: the header does not say.

    Raises:
        AudioError: it is no recording.
    """
    if isinstance(source, np.ndarray):
        return len(_by_channels(source, _name(source))) / _possible(
            target_rate if rate is None else rate, _name(source)
        )
    with _recording(source, _name(source), again=True) as recording:
        frames, known_rate = recording.frames, recording.samplerate
    return frames / known_rate if 0 <= frames < UNKNOWN else None


def readable_formats() -> tuple[str, ...]:
    """Names of the file formats that can be read, such as "FLAC"."""
    import soundfile

    return tuple(sorted(set(soundfile.available_formats()) - {"RAW"}))


def _name(source: AudioSource) -> str:
    if isinstance(source, str | PathLike):
        return f"'{fspath(source)}'"
    if isinstance(source, np.ndarray):
        return f"the array of shape {source.shape}"
    file = getattr(source, "name", None)
    return f"'{file}'" if isinstance(file, str) else "the audio data"


def _opened(source: Any, name: str) -> Any:
    """What soundfile takes for it: the path of a file that is there, or an object with `read`."""
    if isinstance(source, bytes | bytearray | memoryview):
        return BytesIO(source)
    if hasattr(source, "read") and not isinstance(source, TextIOBase):
        if getattr(source, "closed", False):
            raise AudioError(f"{name} is closed. Give a file that is open.")
        if hasattr(source, "seekable") and not source.seekable():
            raise AudioError(f"{name} is a pipe or the like, and is gone through once. Give its bytes: file.read()")
        return source
    if not isinstance(source, str | PathLike):
        raise AudioError(
            f"audio of type {type(source).__name__} cannot be read (it can be: a path, an open binary file, bytes, "
            "a numpy array)."
        )
    if not exists(source):
        raise AudioError(f"{name} does not exist. Give the path of a recording.")
    if not isfile(source):
        raise AudioError(f"{name} is not a file. Give the path of a recording.")
    return fsencode(source)  # since soundfile itself refuses names that are no Unicode


@contextmanager
def _recording(source: Any, name: str, *, again: bool = False) -> Iterator[Any]:
    """An open soundfile, whose faults are said as `AudioError`; `again`: an open file is left as it was, to be read anew."""
    import soundfile

    file = _opened(source, name)
    try:
        place = source.tell() if again and hasattr(source, "read") else None
        with soundfile.SoundFile(file) as recording:
            yield recording
        if place is not None:
            source.seek(place)
    except (soundfile.LibsndfileError, TypeError, OSError) as reason:
        why = reason.error_string if isinstance(reason, soundfile.LibsndfileError) else str(reason)
        raise AudioError(
            f"{name} cannot be read as audio: {why.strip().rstrip('.')}. "
            f"It can be: {', '.join(readable_formats())}. Convert it with: ffmpeg -i INPUT OUTPUT.wav"
        ) from reason


def _raw_blocks(source: AudioSource, name: str, array_rate: int) -> Iterator[tuple[int, Float32]]:
    """The rate, and blocks [samples] at that rate, channels averaged."""
    if isinstance(source, np.ndarray):
        samples = _by_channels(source, name)
        for start in range(0, len(samples), BLOCK):
            yield array_rate, _mono(samples[start : start + BLOCK], name)
        return
    with _recording(source, name) as recording:
        while len(block := recording.read(BLOCK, dtype="float32", always_2d=True)):
            yield recording.samplerate, block.mean(axis=1)


def _by_channels(samples: NDArray[Any], name: str) -> NDArray[Any]:
    """The same samples as [samples, channels]."""
    if samples.ndim == 1:
        return samples[:, None]
    if samples.ndim == 2 and 0 < min(samples.shape) <= MOST_CHANNELS:
        return samples if np.argmin(samples.shape) == 1 else samples.T
    if not samples.size:
        return np.zeros((0, 1), np.float32)
    raise AudioError(f"{name} is no recording (it can be: [samples], [samples, channels] or [channels, samples]).")


def _mono(samples: NDArray[Any], name: str) -> Float32:
    scaled = _scaled(samples, name)
    return scaled[:, 0] if scaled.shape[1] == 1 else np.asarray(scaled.mean(axis=1), np.float32)


def _scaled(samples: NDArray[Any], name: str) -> Float32:
    kind, bits = samples.dtype.kind, 8 * samples.dtype.itemsize
    if kind == "f":
        with np.errstate(over="ignore"):  # what float32 cannot hold is refused as no number
            return samples.astype(np.float32)
    if kind == "i" or samples.dtype == np.uint8:
        middle = 128.0 if kind == "u" else 0.0
        return ((samples - middle) / 2.0 ** (bits - 1)).astype(np.float32)
    raise AudioError(f"{name} holds {samples.dtype} (it can hold: floats, signed integers, uint8).")


def _check_numbers(samples: Float32, name: str, second: float) -> None:
    strange = samples.size - int(np.isfinite(samples).sum())
    if strange:
        where = f" from second {second:.0f} on" if second else ""
        raise AudioError(
            f"{name} holds {strange} of {samples.size} samples{where} that are not numbers (NaN or infinite). "
            "Record or convert it again."
        )
    loudest = float(np.abs(samples).max(initial=0.0))
    if loudest > LOUDEST:
        raise AudioError(
            f"{name} holds samples of up to {loudest:.3g}, and full scale is 1. Record or convert it again."
        )


def _possible(rate: int, name: str) -> int:
    if not isinstance(rate, Real) or not rate > 0:
        raise AudioError(f"{name} cannot have a rate of {rate} Hz (it can be: any number above 0).")
    return rate


class _Resampled:
    """Blocks at another rate: a filter that remembers what came before, since it reaches across their borders."""

    def __init__(self, name: str, target_rate: int) -> None:
        self._name = name
        self._target_rate = target_rate
        self._filter: Any = None

    def add(self, block: Float32, rate: int) -> list[Float32]:
        if rate == self._target_rate:
            return [block]
        if self._filter is None:
            self._filter = self._new_filter(rate)
        return _filled(self._filter.resample_chunk(block))

    def rest(self) -> list[Float32]:
        """What the filter still holds once the last block has come."""
        if self._filter is None:
            return []
        return _filled(self._filter.resample_chunk(np.zeros(0, np.float32), last=True))

    def _new_filter(self, rate: int) -> Any:
        import soxr

        try:
            return soxr.ResampleStream(rate, self._target_rate, 1, dtype="float32", quality="HQ")
        except (ValueError, RuntimeError) as reason:
            raise AudioError(
                f"{self._name} cannot be resampled from {rate} to {self._target_rate} Hz: {reason}."
            ) from reason


def _filled(block: Float32) -> list[Float32]:
    return [block] if len(block) else []
