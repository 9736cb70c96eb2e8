"""A comparison's clips by language and by length: word errors and divergence of each group."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from ..targets.contract import AudioError
from .figures import Comparison
from .speech import Clip, Speech, word_errors

LENGTHS = ((5.0, "up to 5 s"), (10.0, "5 to 10 s"), (30.0, "10 to 30 s"), (60.0, "30 to 60 s"), (1e9, "over 60 s"))


@dataclass(frozen=True)
class Group:
    """Some clips of a comparison; `wer` and `wer_original` are None where nobody wrote down what is said."""

    name: str
    clips: int
    wer: float | None
    wer_original: float | None
    kl: float  # mean over positions, nats


def seconds(clip: Clip) -> float:
    """The length of a recording.

    Raises:
        AudioError: it cannot be read.
    """
    import soundfile

    try:
        return float(soundfile.info(clip.file).duration)
    except (OSError, soundfile.SoundFileError) as reason:
        raise AudioError(f"'{clip.file}' cannot be read: {reason}. Take it out of the speech list") from reason


def by_language(clips: Sequence[Comparison], speech: Speech) -> list[Group]:
    """A group for each language that the list of recordings names."""
    spoken = {clip.name: clip.language or "not told" for clip in speech.clips}
    return _groups(clips, lambda clip: spoken.get(clip.clip, "not told"), sorted(set(spoken.values())))


def by_length(clips: Sequence[Comparison], speech: Speech) -> list[Group]:
    """A group for each range of lengths in which there are recordings."""
    ranges = {clip.name: next(name for most, name in LENGTHS if seconds(clip) <= most) for clip in speech.clips}
    return _groups(clips, lambda clip: ranges.get(clip.clip, ""), [name for _, name in LENGTHS])


def _groups(clips: Sequence[Comparison], name_of: Callable[[Comparison], str], names: Iterable[str]) -> list[Group]:
    held = [(name, [clip for clip in clips if name_of(clip) == name]) for name in names]
    return [_group(name, some) for name, some in held if some]


def _group(name: str, clips: Sequence[Comparison]) -> Group:
    positions = sum(clip.positions for clip in clips)
    said = [said for clip in clips for said in clip.said if said.question is None]
    known: list[tuple[str, Any]] = [(one.expected, one) for one in said if one.expected is not None]
    return Group(
        name,
        len(clips),
        word_errors((expected, one.artifact) for expected, one in known).rate if known else None,
        word_errors((expected, one.original) for expected, one in known).rate if known else None,
        sum(clip.kl * clip.positions for clip in clips) / positions if positions else 0.0,
    )
