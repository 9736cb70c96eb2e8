"""Recordings as the original's processors take them."""

import io

import numpy as np

from ..targets.contract import AudioError
from .speech import Clip


def check(clip: Clip) -> None:
    """Refuse what cannot be asked for as a transcription; of the file its header is read.

    Raises:
        AudioError: it is no recording, holds none, or its language is none.
    """
    import soundfile

    try:
        frames = soundfile.info(clip.file).frames
    except (OSError, soundfile.SoundFileError) as reason:
        raise _unreadable(clip, reason) from reason
    _check_length(clip, frames)
    _check_language(clip)


def wav(clip: Clip) -> bytes:
    """The clip as mistral-common takes it: a mono WAV file of float32, at its own rate."""
    import soundfile

    try:
        samples, rate = soundfile.read(clip.file, dtype="float32", always_2d=True)
    except (OSError, soundfile.SoundFileError) as reason:
        raise _unreadable(clip, reason) from reason
    _check_length(clip, len(samples))
    if not np.isfinite(samples).all():
        raise AudioError(f"'{clip.file}' holds samples that are not numbers. Take it out of the speech list")
    buffer = io.BytesIO()
    soundfile.write(buffer, samples.mean(axis=1), rate, format="WAV", subtype="FLOAT")
    return buffer.getvalue()


def _check_language(clip: Clip) -> None:
    from mistral_common.protocol.transcription.request import TranscriptionRequest
    from pydantic import ValidationError

    try:
        TranscriptionRequest(audio=b"", language=clip.language)
    except ValidationError as reason:
        raise AudioError(
            f"'{clip.name}': {clip.language!r} is no language (it can be a code of ISO 639-1, such as en). Correct the list"
        ) from reason


def _check_length(clip: Clip, samples: int) -> None:
    if not samples:
        raise AudioError(f"'{clip.file}' holds no samples. Take it out of the speech list")


def _unreadable(clip: Clip, reason: Exception) -> AudioError:
    said = str(reason).rstrip(".")
    return AudioError(f"'{clip.file}' cannot be read: {said}. Recordings are to be WAV, FLAC, OGG or MP3")
