"""Audio in, text out: what a user holds in hand.

with ossicle.load("bundle") as session:
    print(session.transcribe("speech.wav", language="en").text)
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self, Unpack, overload

import numpy as np

from ..targets.contract import EngineError, Float32, PromptError
from ..targets.manifest import Manifest
from .adapters import adapted
from .answering import Answerer
from .audio import AudioSource
from .base import BoundedEngine, Engine, Listener
from .fallback import parts
from .generate import Settings, decoding
from .messages import Clip
from .plans import Stage
from .preparing import Preparer
from .prompt import Prompts
from .replies import Reply, Segment, Stream, Transcription
from .segments import Asked, Progress, Transcriber
from .shared import SharedEngine, shared
from .tokens import Tokenizer
from .tools import ToolChoice, read_tools

TOKENIZER = "tokenizer.json"
BATCH = 8  # recordings decoded together


class Session:
    """An opened bundle. Not thread-safe: one caller at a time, each with its own (`share`). A context manager, to be closed."""

    def __init__(self, manifest: Manifest, tokenizer: Tokenizer, engine: Engine, context: int | None = None) -> None:
        self.manifest = manifest
        self._tokenizer = tokenizer
        self._open_engine: SharedEngine | None = shared(engine)
        room = engine.context if isinstance(engine, BoundedEngine) else manifest.text.context
        built = int(manifest.recipe.get("context", manifest.text.context))
        self._context = min(manifest.text.context, built, room, context or room)
        tokens = engine.tokens_per_window if isinstance(engine, Listener) else manifest.audio.tokens_per_window
        prompts = Prompts(tokenizer, manifest.text, tokens, self._context)
        self._prompt = Preparer(manifest, prompts, lambda: self._engine)
        self._answer = Answerer(manifest.text, tokenizer, self._context, lambda: self._engine)
        self._transcriber = Transcriber(
            manifest.audio,
            prompts,
            lambda: self.engine,
            self._prompt.hear,
            self._answer.answer,
            self._answer.pieces,
        )

    @property
    def engine(self) -> str:
        """What runs it, for example "onnxruntime-cpu"."""
        return self._engine.name

    @property
    def stages(self) -> dict[Stage, str]:
        """What runs each stage, for example {"encoder": "openvino-cpu", "prefill": "openvino-cpu", "decoder": ...}."""
        return parts(self._engine)

    @overload
    def transcribe(
        self, audio: AudioSource, *, language: str | None = None, rate: int | None = None, **settings: Unpack[Settings]
    ) -> Transcription: ...

    @overload
    def transcribe(
        self,
        audio: list[AudioSource] | list[str] | list[Path] | list[Float32],
        *,
        language: str | None = None,
        rate: int | None = None,
        **settings: Unpack[Settings],
    ) -> list[Transcription]: ...

    def transcribe(
        self, audio: Any, *, language: str | None = None, rate: int | None = None, **settings: Unpack[Settings]
    ) -> Transcription | list[Transcription]:
        """The words of a recording, or of each in a list, in order.

        `language` is a code of two letters ("en"), None lets the model decide; `rate` is that of arrays of samples, in Hz.
        A recording longer than the context is transcribed as `segments` does it, and the settings hold for each segment.

        Raises:
            AudioError: a recording cannot be used.
            PromptError: a setting is not possible.
        """
        asked = Asked(language, self._answer.how(settings))
        clips = [Clip(source, rate) for source in (audio if isinstance(audio, list) else [audio])]
        results: list[Transcription] = []
        for start in range(0, len(clips), BATCH):
            results += self._transcriber.transcribe(clips[start : start + BATCH], asked, start)
        return results if isinstance(audio, list) else results[0]

    def segments(
        self,
        audio: AudioSource,
        *,
        language: str | None = None,
        rate: int | None = None,
        seconds: float | None = None,
        pause: float | None = None,
        together: int = 1,
        progress: Progress | None = None,
        **settings: Unpack[Settings],
    ) -> Iterator[Segment]:
        """The words of a recording of any length, with their times, segment by segment as each is found.

        Memory does not grow with the recording. A segment is at most `seconds` long (None: a window of the audio encoder, which
        costs as much where it is not full) and ends where it is quiet. Silence around what sounds is left out.

        Args:
            pause: a silence of so many seconds ends a segment too: closer times, for more work.
            together: segments decoded in one batch: sooner in all, each of them later.
            progress: told the seconds done, and the seconds in all (None: the recording does not say).

        Raises:
            AudioError: the recording cannot be used; what comes before a damaged place is given first.
            PromptError: a setting is not possible.
        """
        asked = Asked(language, self._answer.how(settings))
        return self._transcriber.segments(
            Clip(audio, rate), asked, seconds=seconds, pause=pause, together=together, progress=progress
        )

    def chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        tool_choice: ToolChoice = "auto",
        parallel_tool_calls: bool = True,
        **settings: Unpack[Settings],
    ) -> Reply:
        """The answer to a conversation of texts and recordings; what messages look like: runtimes/messages.py.

        `tools` are functions that the answer may call, as OpenAI's: runtimes/tools.py. `tool_choice` is "auto", "none",
        "required" or {"type": "function", "function": {"name": NAME}}; calls are in the reply's `tool_calls`, and their
        arguments hold to the function's schema. With `parallel_tool_calls` there may be several.

        Raises:
            AudioError: a recording cannot be used.
            PromptError: the conversation, a tool or a setting is not possible, or it is longer than the context.
        """
        offered = read_tools(tools)
        how = self._answer.how(settings, offered, tool_choice, several=parallel_tool_calls)
        return self._answer.answer([self._prompt.converse(messages, how, offered)], how)[0]

    def stream(
        self,
        source: AudioSource | Sequence[Mapping[str, Any]],
        *,
        language: str | None = None,
        rate: int | None = None,
        tools: Sequence[Mapping[str, Any]] | None = None,
        tool_choice: ToolChoice = "auto",
        parallel_tool_calls: bool = True,
        progress: Progress | None = None,
        **settings: Unpack[Settings],
    ) -> Stream:
        """What `transcribe` gives for a recording, or `chat` for a list of messages, piece by piece as it is found.

        Pieces are text alone; calls of tools are in the reply at the end. `progress` is told how far a long recording is, as
        by `segments`.

        Raises:
            AudioError: a recording cannot be used.
            PromptError: the conversation or a setting is not possible, or the conversation is longer than the context.
        """
        offered = read_tools(tools)
        how = self._answer.how(settings, offered, tool_choice, several=parallel_tool_calls)
        if isinstance(source, list | tuple):
            if language is not None or rate is not None:
                raise PromptError("a conversation has no language or rate of its own (only a transcription has).")
            return Stream(self._answer.pieces(self._prompt.converse(source, how, offered), how))
        if offered:
            raise PromptError("a transcription calls no tools (only a conversation does).")
        return Stream(self._transcriber.stream(Clip(source, rate), Asked(language, how), progress))

    @property
    def adapters(self) -> tuple[str, ...]:
        """The adapters that may be chosen at every request, by name."""
        return self._engine.adapters

    def score(
        self,
        audio: AudioSource,
        tokens: Sequence[int],
        *,
        language: str | None = None,
        adapters: Mapping[str, float] | None = None,
    ) -> Float32:
        """Logits [len(tokens), vocabulary] from which each of `tokens` would be chosen as the transcript of `audio`.

        Raises:
            PromptError: the tokens do not fit into the context, or there is no such adapter.
        """
        engine = adapted(self._engine, adapters)
        prompt = self._prompt.hear(Clip(audio), language, decoding()).embeddings
        if len(tokens) > self._context - len(prompt):
            raise PromptError(f"{len(tokens)} tokens cannot be scored (at most: {self._context - len(prompt)}).")
        answer = engine.embed(np.asarray(tokens, np.int64))
        # The last position chooses what follows the tokens: nobody asked for it.
        return engine.score(np.concatenate([prompt, answer]), len(tokens) + 1)[:-1]

    def log_mel(self, audio: AudioSource, *, rate: int | None = None) -> Float32:
        """Log-mel windows [windows, mel bins, frames] of a recording, float32."""
        return self._prompt.windows(self._prompt.samples(Clip(audio, rate)))

    def embed_audio(self, audio: AudioSource, *, rate: int | None = None) -> Float32:
        """Audio embeddings [windows, tokens per window, hidden] of a recording, float32."""
        return self._prompt.encode(self._prompt.samples(Clip(audio, rate)))

    def share(self) -> "Session":
        """Another session over the same weights, for another thread; calls of their engine take turns, in order.

        Each is closed by itself, and the last one gives the engine's memory back.
        """
        return Session(self.manifest, self._tokenizer, self._engine.another(), self._context)

    def close(self) -> None:
        """Give the engine's memory back, if no other session shares it. A closed session answers nothing more."""
        if self._open_engine is not None:
            self._open_engine.close()
        self._open_engine = None
        self._prompt.forget()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def _engine(self) -> SharedEngine:
        if self._open_engine is None:
            raise EngineError("the session is closed. Open another with ossicle.load(bundle).")
        return self._open_engine
