"""A long recording -> stretches that fit a window of the audio encoder, cut where it is quiet."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..targets.contract import Float32

SEARCH = 5.0  # seconds at the end of a window in which it may be cut
PAUSE = SHORTEST = 0.2  # seconds over which loudness is averaged: less than a pause, more than a consonant's closure
MARGIN = 0.3  # seconds of quiet that are left around sound
FRAME = 0.01  # seconds of one measurement
FAINT = 1e-9  # mean power of full scale 1: 90 dB below it, less than the last bit of a 16-bit recording says


@dataclass(frozen=True)
class Stretch:
    """A part of a recording: `start` in samples from the recording's beginning, and its samples [samples]."""

    start: int
    samples: Float32


@dataclass(frozen=True)
class Sound:
    """What sounds of a stretch: from `start` to `end`, in samples of the recording; in `samples` some quiet is around it."""

    start: int
    end: int
    samples: Float32


def stretches(blocks: Iterable[Float32], rate: int, longest: int, pause: float | None = None) -> Iterator[Stretch]:
    """All samples of a recording, in order, at most `longest` together; holds one stretch and one block at a time.

    A stretch ends in the middle of the first silence of `pause` seconds, and else, where it is as long as it may be, in the
    middle of the longest quiet place of its last 5 seconds: where the power averaged over 0.2 s is within 3 dB of the
    lowest there. So no word is cut where there is a pause to be found.
    """
    held, start = np.zeros(0, np.float32), 0
    for block in blocks:
        held = np.concatenate([held, block])
        while len(held) > longest:
            end = _silence(held[:longest], rate, pause) or quiet_place(held[:longest], rate)
            yield Stretch(start, held[:end])
            start, held = start + end, held[end:]
    while len(held):
        end = _silence(held, rate, pause) or len(held)
        yield Stretch(start, held[:end])
        start, held = start + end, held[end:]


def quiet_place(samples: Float32, rate: int) -> int:
    """Where samples are to be cut, in samples: a place in their last 5 seconds, or in their last half if they are short."""
    first = max(len(samples) - int(SEARCH * rate), len(samples) // 2)
    mean = _averaged(_powers(samples[first:], rate))
    if not len(mean):
        return len(samples)  # too short to have a quiet place
    begin, end = _longest_run(mean <= 2 * max(float(mean.min()), FAINT))
    middle = (begin + end - 1 + _pause_frames()) / 2
    return min(first + round(middle * _hop(rate)), len(samples))


def sound(stretch: Stretch, rate: int) -> Sound | None:
    """The sound of a stretch; None: there is none.

    Sound is what is 6 dB above the quietest 0.2 s, or within 20 dB of the loudest moment.
    """
    frames = np.flatnonzero(_sounds(_powers(stretch.samples, rate)))
    if not len(frames):
        return None
    length, margin = len(stretch.samples), round(MARGIN * rate)
    begin, end = int(frames[0]) * _hop(rate), min((int(frames[-1]) + 1) * _hop(rate), length)
    around = stretch.samples[max(0, begin - margin) : end + margin]
    return Sound(stretch.start + begin, stretch.start + end, around)


def _silence(samples: Float32, rate: int, pause: float | None) -> int | None:
    """The middle of the first silence of so many seconds behind some sound, in samples; None: there is none."""
    if pause is None:
        return None
    sounds = np.flatnonzero(_sounds(_powers(samples, rate)))
    ends = np.append(sounds[1:], -(-len(samples) // _hop(rate)))
    gaps = np.flatnonzero((ends - sounds - 1) * FRAME >= pause) if len(sounds) else sounds
    if not len(gaps) or ends[gaps[0]] * _hop(rate) >= len(samples):
        return None
    return int(sounds[gaps[0]] + 1 + ends[gaps[0]]) * _hop(rate) // 2


def _sounds(powers: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Which frames are sound."""
    loudest, mean = float(powers.max(initial=0.0)), _averaged(powers)
    quietest = float(mean.min(initial=loudest))
    return powers > max(min(4 * quietest, loudest / 100), loudest / 10000, FAINT)


def _powers(samples: Float32, rate: int) -> NDArray[np.float64]:
    """Mean power of each 10 ms, the last one filled up with silence."""
    hop = _hop(rate)
    frames = np.pad(samples, (0, -len(samples) % hop)).reshape(-1, hop)
    return np.asarray(np.einsum("ij,ij->i", frames, frames, dtype=np.float64) / hop, np.float64)


def _averaged(powers: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mean power over each run of frames as long as a pause; [0] where there are fewer."""
    sums = np.concatenate([[0.0], np.cumsum(powers)])
    width = _pause_frames()
    return np.asarray(np.maximum(sums[width:] - sums[:-width], 0.0) / width, np.float64)


def _longest_run(marks: NDArray[np.bool_]) -> tuple[int, int]:
    """Begin and end of the longest run of marks; the later of two."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], marks.astype(np.int8), [0]])))
    runs = edges.reshape(-1, 2)
    lengths = runs[:, 1] - runs[:, 0]
    begin, end = runs[len(runs) - 1 - int(np.argmax(lengths[::-1]))]
    return int(begin), int(end)


def _pause_frames() -> int:
    return round(PAUSE / FRAME)


def _hop(rate: int) -> int:
    return max(1, round(FRAME * rate))
