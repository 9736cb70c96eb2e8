"""Segments -> subtitles: SubRip (.srt), WebVTT (.vtt), and text with the time before each segment.

A segment is longer than what a screen shows at once, so it becomes cues of two lines. Only the segment's own times are known:
its cues share them by their letters. SubRip has no standard, and follows its common reading; WebVTT is
https://www.w3.org/TR/webvtt1/.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from html import escape
from textwrap import wrap

from .replies import Segment

WIDTH = 42  # characters of a line
LINES = 2  # of a cue


@dataclass(frozen=True)
class Cue:
    """What is shown from `start` to `end`, in seconds."""

    start: float
    end: float
    lines: tuple[str, ...]


def cues(segments: Iterable[Segment]) -> Iterator[Cue]:
    """Cues in order; segments without words have none."""
    for segment in segments:
        lines = wrap(segment.text, WIDTH, break_long_words=False, break_on_hyphens=False)
        blocks = [tuple(lines[first : first + LINES]) for first in range(0, len(lines), LINES)]
        letters = [sum(map(len, block)) for block in blocks]
        rate = (segment.end - segment.start) / max(1, sum(letters))
        for number, block in enumerate(blocks):
            start, end = (segment.start + rate * sum(letters[:stop]) for stop in (number, number + 1))
            yield Cue(start, end, block)


def srt(segments: Iterable[Segment]) -> Iterator[str]:
    """A SubRip file, a cue at a time: "1\\n00:00:00,000 --> 00:00:04,500\\nwords\\n\\n"."""
    for number, cue in enumerate(cues(segments), 1):
        # No way to escape is known to all players; an arrow alone could be taken for a line of times.
        yield f"{number}\n{_times(cue, ',')}\n{_joined(cue, lambda line: line.replace('-->', '->'))}\n\n"


def vtt(segments: Iterable[Segment]) -> Iterator[str]:
    """A WebVTT file: its header, then a cue at a time."""
    yield "WEBVTT\n\n"
    for cue in cues(segments):
        yield f"{_times(cue, '.')}\n{_joined(cue, lambda line: escape(line, quote=False))}\n\n"


def stamped(segment: Segment) -> str:
    """A segment as a line of text behind its start: "[02:05] words", with hours where there are any."""
    hours, minutes, seconds, _ = _parts(segment.start)
    clock = f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes:02}:{seconds:02}"
    return f"[{clock}] {' '.join(segment.text.split())}".rstrip()


def _joined(cue: Cue, escaped: Callable[[str], str]) -> str:
    return "\n".join(map(escaped, cue.lines))


def _times(cue: Cue, point: str) -> str:
    return " --> ".join(_clock(seconds, point) for seconds in (cue.start, cue.end))


def _clock(seconds: float, point: str) -> str:
    """Time as 00:00:00,000; of hours as many digits as they have, two at least."""
    hours, minutes, whole, thousandths = _parts(seconds)
    return f"{hours:02}:{minutes:02}:{whole:02}{point}{thousandths:03}"


def _parts(seconds: float) -> tuple[int, int, int, int]:
    """Hours, minutes, seconds and thousandths, rounded to the nearest thousandth once and for all."""
    whole, thousandths = divmod(round(seconds * 1000), 1000)
    minutes, rest = divmod(whole, 60)
    return minutes // 60, minutes % 60, rest, thousandths
