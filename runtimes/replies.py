"""Answers: their text, what they took, and the same while they are being found."""

from collections.abc import Generator, Iterator
from dataclasses import dataclass

from ..targets.contract import EngineError
from .generate import Finish
from .tools import ToolCall


@dataclass(frozen=True)
class Timings:
    """Where the time went, in seconds. Of what a batch did together, each recording has its share by tokens."""

    audio: float  # length of the recordings themselves
    encode: float  # reading, log-mel and audio encoder
    prefill: float
    decode: float
    tokens: int  # of the answer

    @property
    def tokens_per_second(self) -> float:
        return self.tokens / self.decode if self.decode else 0.0

    @property
    def real_time_factor(self) -> float:
        """Seconds of work per second of audio; 0 without audio."""
        return (self.encode + self.prefill + self.decode) / self.audio if self.audio else 0.0


@dataclass(frozen=True)
class Reply:
    """An answer. `finish` "length": it ended at `max_tokens` or at the end of the context, "tool_calls": with calls."""

    text: str
    tokens: tuple[int, ...]
    engine: str
    finish: Finish
    timings: Timings
    prompt_tokens: int = 0  # those of the audio among them
    audio_tokens: int = 0  # of the prompt
    cached_tokens: int = 0  # of the prompt, not read again: an earlier one began with them
    tool_calls: tuple[ToolCall, ...] = ()  # whole ones, in order; the text is what stands before them


@dataclass(frozen=True)
class Segment:
    """A stretch of a recording with its words; `start` and `end` in seconds from the recording's beginning.

    The model gives no times of its own: a segment is the stretch that was transcribed by itself.
    """

    start: float
    end: float
    text: str
    tokens: tuple[int, ...]
    finish: Finish
    timings: Timings
    prompt_tokens: int = 0
    audio_tokens: int = 0
    cached_tokens: int = 0


@dataclass(frozen=True)
class Transcription(Reply):
    """The words of a recording; `segments` are its stretches in order, one where it fits into the context.

    The text is that of the segments, with a space between two where neither brings one.
    """

    language: str | None = None
    segments: tuple[Segment, ...] = ()


class Stream(Iterator[str]):
    """An answer piece by piece. Pieces hold whole characters only and add up to the text; `close` gives the rest up."""

    def __init__(self, pieces: Generator[str, None, Reply]) -> None:
        self._pieces = pieces
        self._reply: Reply | None = None

    def __next__(self) -> str:
        try:
            return next(self._pieces)
        except StopIteration as end:
            self._reply = self._reply or end.value
            raise

    @property
    def reply(self) -> Reply:
        """The whole answer, once the last piece has come.

        Raises:
            EngineError: it has not.
        """
        if self._reply is None:
            raise EngineError("the answer has not come to its end. Take its pieces first: for piece in stream")
        return self._reply

    def close(self) -> None:
        """Give up what has not come yet; the session is free for other work."""
        self._pieces.close()
