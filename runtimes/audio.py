"""Any recording -> the waveform that the front end takes: float32, mono, at the model's rate."""

from collections.abc import Callable
from io import BytesIO
from os import PathLike, fspath
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from ..targets.contract import AudioError, Float32

# A path, an open binary file, the bytes of a file, or samples [samples] or [samples, channels] or [channels, samples].
AudioSource = str | PathLike[str] | BinaryIO | bytes | NDArray[Any]

MOST_CHANNELS = 64
BLOCK = 1 << 18  # samples read at a time


def load_audio(source: AudioSource, *, rate: int | None = None, target_rate: int = 16000) -> Float32:
    """The recording as float32 [samples] at `target_rate`, channels averaged, integers scaled to -1 .. 1.

    `rate` is that of an array of samples (taken as `target_rate` where not given); a file knows its own.

    Raises:
        AudioError: it cannot be read, holds nothing, or holds what is no sound.
    """
    name = _name(source)
    if isinstance(source, np.ndarray):
        samples, known_rate = _from_array(source, name), target_rate if rate is None else rate
    else:
        samples, known_rate = _from_file(_opened(source, name), name)
    _check(samples, name)
    return _resample(samples, known_rate, target_rate, name)


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
    if hasattr(source, "read"):
        return source
    if not isinstance(source, str | PathLike):
        raise AudioError(
            f"audio of type {type(source).__name__} cannot be read (it can be: a path, an open binary file, bytes, "
            "a numpy array)."
        )
    if not Path(source).exists():
        raise AudioError(f"{name} does not exist. Give the path of a recording.")
    if not Path(source).is_file():
        raise AudioError(f"{name} is not a file. Give the path of a recording.")
    return Path(source)


def _from_file(file: Any, name: str) -> tuple[Float32, int]:
    import soundfile

    try:
        with soundfile.SoundFile(file) as recording:
            blocks = [block.mean(axis=1) for block in _blocks(recording.read)]
            return np.concatenate([*blocks, np.zeros(0, np.float32)]), recording.samplerate
    except (soundfile.LibsndfileError, TypeError, OSError) as reason:
        raise AudioError(
            f"{name} cannot be read as audio: {str(reason).strip().rstrip('.')}. "
            f"It can be: {', '.join(readable_formats())}. Convert it with: ffmpeg -i INPUT OUTPUT.wav"
        ) from reason


def _blocks(read: Callable[..., Float32]) -> Any:
    while len(block := read(BLOCK, dtype="float32", always_2d=True)):
        yield block


def _from_array(samples: NDArray[Any], name: str) -> Float32:
    if samples.ndim == 1:
        return _scaled(samples, name)
    if samples.ndim == 2 and 0 < min(samples.shape) <= MOST_CHANNELS:
        return np.asarray(_scaled(samples, name).mean(axis=int(np.argmin(samples.shape))), np.float32)
    if not samples.size:
        return np.zeros(0, np.float32)
    raise AudioError(f"{name} is no recording (it can be: [samples], [samples, channels] or [channels, samples]).")


def _scaled(samples: NDArray[Any], name: str) -> Float32:
    kind, bits = samples.dtype.kind, 8 * samples.dtype.itemsize
    if kind == "f":
        return samples.astype(np.float32)
    if kind == "i" or samples.dtype == np.uint8:
        middle = 128.0 if kind == "u" else 0.0
        return ((samples - middle) / 2.0 ** (bits - 1)).astype(np.float32)
    raise AudioError(f"{name} holds {samples.dtype} (it can hold: floats, signed integers, uint8).")


def _check(samples: Float32, name: str) -> None:
    if not samples.size:
        raise AudioError(f"{name} holds no samples: a recording of zero length. Record it again.")
    strange = samples.size - int(np.isfinite(samples).sum())
    if strange:
        raise AudioError(
            f"{name} holds {strange} of {samples.size} samples that are not numbers (NaN or infinite). "
            "Record or convert it again."
        )


def _resample(samples: Float32, rate: int, target_rate: int, name: str) -> Float32:
    if rate == target_rate:
        return samples
    if rate <= 0:
        raise AudioError(f"{name} cannot have a rate of {rate} Hz (it can be: any above 0).")
    import soxr

    try:
        resampled = soxr.resample(samples, rate, target_rate, "HQ")
    except (ValueError, RuntimeError) as reason:
        raise AudioError(f"{name} cannot be resampled from {rate} to {target_rate} Hz: {reason}.") from reason
    if not resampled.size:
        raise AudioError(f"{name} is too short: {samples.size} samples at {rate} Hz. Record it again.")
    return np.asarray(resampled, np.float32)
