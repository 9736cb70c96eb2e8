"""What the original made of a clip, and its place on disk: several recipes are verified against one reading."""

import json
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..targets.contract import Float32, VerificationError
from .speech import Clip
from .written import refused, whole


@dataclass(frozen=True)
class Reply:
    """What the original said to one prompt about a clip: a transcription, or the answer to `question`.

    `tokens` are its greedy choice, the stop token included; row i of `logits` [len(tokens), vocabulary] is what it
    chose tokens[i] from. Answers to questions carry no logits.
    """

    language: str | None
    question: str | None
    text: str
    tokens: tuple[int, ...]
    logits: Float32 | None = field(default=None, repr=False)


@dataclass(frozen=True)
class Reading:
    """All that the original makes of one clip.

    `logmel` [windows, mel bins, frames], `audio` [windows, tokens per window, hidden].
    """

    clip: Clip
    logmel: Float32 = field(repr=False)
    audio: Float32 = field(repr=False)
    replies: tuple[Reply, ...]


@dataclass(frozen=True)
class Utterance:
    """A recording and the tokens round it, its transcript included; from the last `scored` of them a model is to go on.

    `logmel` [windows, mel bins, frames].
    """

    logmel: Float32 = field(repr=False)
    tokens: tuple[int, ...]
    scored: int

    @property
    def sound(self) -> NDArray[np.bool_]:
        """Which frames [windows, frames] have any: the others are at the least of the log-mel, as what fills up a window is."""
        return np.asarray((self.logmel > self.logmel.min(initial=np.inf)).any(axis=1))


def reading_at(path: Path, clip: Clip) -> Reading:
    """The reading of a clip that `keep` put into a file.

    Raises:
        VerificationError: the file is gone, or damaged.
    """
    reading = load(path, clip)
    if reading is None:
        raise VerificationError(f"the original's reading '{path}' was changed while it was needed. Verify again")
    return reading


def load(path: Path, clip: Clip) -> Reading | None:
    """The reading kept at `path`, or None where there is none that can be read."""
    try:
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as archive:
            replies = json.loads(archive["document"].tobytes())
            logits = [archive.get(f"logits{i}") for i in range(len(replies))]
            logmel, audio = archive["logmel"], archive["audio"]
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None
    entries = zip(replies, logits, strict=True)
    return Reading(
        clip, logmel, audio, tuple(Reply(**(e | {"tokens": tuple(e["tokens"])}), logits=x) for e, x in entries)
    )


def save(path: Path, reading: Reading) -> None:
    """Write a reading as one npz archive: its arrays, and a JSON document of all else."""
    replies = [{key: value for key, value in vars(reply).items() if key != "logits"} for reply in reading.replies]
    arrays: dict[str, NDArray[Any]] = {
        f"logits{i}": reply.logits for i, reply in enumerate(reading.replies) if reply.logits is not None
    }
    document = np.frombuffer(json.dumps(replies).encode(), np.uint8)
    arrays |= {"document": document, "logmel": reading.logmel, "audio": reading.audio}
    write_archive(path, arrays)


def write_archive(path: Path, arrays: Mapping[str, NDArray[Any]]) -> None:
    """Write arrays as one npz archive, whole or not at all."""
    with whole(path) as partial, refused(path), partial.open("wb") as stream:
        np.savez_compressed(stream, allow_pickle=False, **arrays)
