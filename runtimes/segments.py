"""Transcriptions of recordings of any length: one prompt where a recording fits into the context, else segment by segment.

A segment is a stretch of the recording (runtimes/stretches.py) that is transcribed by itself and given as soon as it is found.
Memory does not grow with the recording.
"""

from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, fields, replace
from itertools import islice
from math import ceil
from numbers import Integral, Real
from typing import Generic, TypeVar, cast

from ..targets.contract import Cancelled, OssicleError, PromptError
from ..targets.manifest import AudioFormat
from .audio import audio_blocks, audio_seconds
from .generate import Decoding
from .messages import Clip
from .prompt import Prompts
from .replies import Reply, Segment, Timings, Transcription
from .stretches import SHORTEST, Sound, Stretch, sound, stretches

P = TypeVar("P")  # a prompt ready for the decoder

# Told seconds done, and seconds in all (None: the recording does not say).
Progress = Callable[[float, float | None], None]


@dataclass(frozen=True)
class Asked:
    """What a transcription is to be: the language spoken if it is known, and how its tokens are chosen."""

    language: str | None
    how: Decoding


@dataclass(frozen=True)
class Transcriber(Generic[P]):
    """Transcribes with what a session can do for one prompt: `hear` makes it, `answer` and `pieces` reply.

    `answer` takes prompts to decode together, and as `pieces` the number of the first of them among all of the caller's.
    """

    audio: AudioFormat
    prompts: Prompts
    engine: Callable[[], str]
    hear: Callable[[Clip, str | None, Decoding], P]
    answer: Callable[[Sequence[P], Decoding, int], Sequence[Reply]]
    pieces: Callable[[P, Decoding, int], Generator[str, None, Reply]]

    def transcribe(self, clips: Sequence[Clip], asked: Asked, first: int) -> list[Transcription]:
        """Transcriptions of recordings, the short ones together; `first` is the number of the first recording."""
        are_long = [self.is_long(clip, asked.language) for clip in clips]
        short = [
            self.hear(clip, asked.language, asked.how) for clip, long in zip(clips, are_long, strict=True) if not long
        ]
        replies = iter(self.answer(short, asked.how, first) if short else ())
        return [
            self._whole(clip, asked, len(clips)) if long else alone(next(replies), asked.language)
            for clip, long in zip(clips, are_long, strict=True)
        ]

    def _whole(self, clip: Clip, asked: Asked, together: int) -> Transcription:
        seconds = 0.0

        def reached(done: float, _: float | None) -> None:
            nonlocal seconds
            seconds = done

        found = list(self.segments(clip, asked, together=together, progress=reached))
        return joined(found, self.engine(), asked.language, seconds)

    def segments(
        self,
        clip: Clip,
        asked: Asked,
        *,
        seconds: float | None = None,
        pause: float | None = None,
        together: int = 1,
        progress: Progress | None = None,
    ) -> Iterator[Segment]:
        """Segments of a recording, `together` of them found at a time.

        Raises:
            PromptError: a setting is not possible.
            AudioError: the recording cannot be read.
        """
        if not isinstance(together, Integral) or together < 1:
            raise PromptError(f"together {together} is not possible (it can be: 1 or more).")
        found = self._stretches(clip, asked.language, seconds, pause)
        told = self._telling(progress, self._seconds(clip))
        return self._segments(self._heard(found, asked, together), asked, told)

    def stream(self, clip: Clip, asked: Asked, progress: Progress | None = None) -> Generator[str, None, Reply]:
        """Pieces of text of a recording, whether it is long or not."""
        if self.is_long(clip, asked.language):
            found = self._stretches(clip, asked.language)
            told = self._telling(progress, self._seconds(clip))
            return self._long_pieces(self._heard(found, asked, 1), asked, told)
        return self._short_pieces(self.hear(clip, asked.language, asked.how), asked)

    def is_long(self, clip: Clip, language: str | None) -> bool:
        """Whether a recording is longer than the context; one that does not say how long it is counts as long."""
        seconds, most = self._seconds(clip), self.prompts.most_windows(language)
        if seconds is None or not most:
            return most > 0
        return ceil(seconds * self.audio.sample_rate) > most * self.audio.hop * self.audio.window_frames

    def _telling(self, progress: Progress | None, length: float | None) -> Callable[[int], float]:
        """Takes how many samples of a recording of `length` seconds are done; says so, and gives it, in seconds."""

        def told(samples: int) -> float:
            done = samples / self.audio.sample_rate
            done = done if length is None else min(done, length)
            if progress is not None:
                progress(done, length)
            return done

        return told

    def _seconds(self, clip: Clip) -> float | None:
        return audio_seconds(clip.source, rate=clip.rate, target_rate=self.audio.sample_rate)

    def _stretches(
        self, clip: Clip, language: str | None, seconds: float | None = None, pause: float | None = None
    ) -> Iterator[Stretch]:
        rate = self.audio.sample_rate
        window = self.audio.hop * self.audio.window_frames / rate
        most = max(1, self.prompts.most_windows(language)) * window
        if seconds is not None and not (isinstance(seconds, Real) and 1 <= seconds <= most):
            raise PromptError(f"segments of {seconds} seconds are not possible (they can be: 1 to {most:.0f}).")
        if pause is not None and not (isinstance(pause, Real) and pause >= SHORTEST):
            raise PromptError(f"a pause of {pause} seconds is not possible (it can be: {SHORTEST} or more).")
        blocks = audio_blocks(clip.source, rate=clip.rate, target_rate=rate)
        return stretches(blocks, rate, int((seconds or window) * rate), pause)

    def _heard(self, read: Iterator[Stretch], asked: Asked, together: int) -> Iterator["_Batch[P]"]:
        """Stretches ready for the decoder; of those without any sound the model is not asked."""
        reached = 0
        while True:
            with _located(reached / self.audio.sample_rate):
                if not (batch := list(islice(read, together))):
                    return
                sounds = [found for stretch in batch if (found := sound(stretch, self.audio.sample_rate))]
                prompts = [self.hear(Clip(one.samples), asked.language, asked.how) for one in sounds]
            start, reached = reached, batch[-1].start + len(batch[-1].samples)
            yield _Batch(start, reached, sounds, prompts)

    def _segments(
        self, batches: Iterable["_Batch[P]"], asked: Asked, told: Callable[[int], float]
    ) -> Iterator[Segment]:
        rate, number = self.audio.sample_rate, 0
        for batch in batches:
            with _located(batch.start / rate):
                replies = self.answer(batch.prompts, asked.how, number) if batch.prompts else ()
            number += len(replies)
            for one, reply in zip(batch.sounds, replies, strict=True):
                yield _segment(one.start / rate, one.end / rate, reply)
            told(batch.end)

    def _short_pieces(self, prompt: P, asked: Asked) -> Generator[str, None, Reply]:
        reply = yield from self.pieces(prompt, asked.how, 0)
        return alone(reply, asked.language)

    def _long_pieces(
        self, batches: Iterable["_Batch[P]"], asked: Asked, told: Callable[[int], float]
    ) -> Generator[str, None, Reply]:
        rate, text, seconds = self.audio.sample_rate, "", 0.0
        segments: list[Segment] = []
        for batch in batches:
            for one, prompt in zip(batch.sounds, batch.prompts, strict=True):
                reply = yield from _behind(text, self.pieces(prompt, asked.how, len(segments)))
                text = reply.text or text
                segments.append(_segment(one.start / rate, one.end / rate, reply))
            seconds = told(batch.end)
        return joined(segments, self.engine(), asked.language, seconds)


@dataclass(frozen=True)
class _Batch(Generic[P]):
    """What sounds between `start` and `end`, in samples of the recording, and the prompts that ask for its words."""

    start: int
    end: int
    sounds: list[Sound]
    prompts: list[P]


def alone(reply: Reply, language: str | None) -> Transcription:
    """The reply to a whole recording as its transcription, of one segment."""
    only = _segment(0.0, reply.timings.audio, reply)
    return Transcription(**vars(reply), language=language, segments=(only,))


def joined(segments: Sequence[Segment], engine: str, language: str | None, seconds: float) -> Transcription:
    """The segments of a recording of so many seconds as one transcription, what they took and their tokens added up."""
    text = ""
    for one in segments:
        text += between(text, one.text) + one.text
    return Transcription(
        text,
        tuple(token for one in segments for token in one.tokens),
        engine,
        "length" if any(one.finish == "length" for one in segments) else "stop",
        replace(_total([one.timings for one in segments]), audio=seconds),
        prompt_tokens=sum(one.prompt_tokens for one in segments),
        audio_tokens=sum(one.audio_tokens for one in segments),
        cached_tokens=sum(one.cached_tokens for one in segments),
        language=language,
        segments=tuple(segments),
    )


def between(before: str, after: str) -> str:
    """What parts two texts: a space where neither is empty or brings one."""
    return " " if before and after and not before[-1].isspace() and not after[0].isspace() else ""


def _segment(start: float, end: float, reply: Reply) -> Segment:
    shared = {field.name for field in fields(Segment)} - {"start", "end"}
    return Segment(start, end, **{name: value for name, value in vars(reply).items() if name in shared})


def _total(timings: Sequence[Timings]) -> Timings:
    return Timings(**{field.name: sum(getattr(one, field.name) for one in timings) for field in fields(Timings)})


def _behind(before: str, pieces: Generator[str, None, Reply]) -> Generator[str, None, Reply]:
    """Pieces that follow a text, the first of them parted from it."""
    with closing(pieces):
        while True:
            try:
                piece = next(pieces)
            except StopIteration as end:
                return cast(Reply, end.value)
            yield between(before, piece) + piece
            before = "" if piece else before


@contextmanager
def _located(second: float) -> Iterator[None]:
    """Faults say at which second of the recording they came."""
    try:
        yield
    except Cancelled:
        raise
    except OssicleError as reason:
        if not second:
            raise
        raise type(reason)(f"{reason} This came at second {second:.0f} of the recording.") from reason
