"""Audio in, text out: what a user holds in hand.

with ossicle.load("bundle") as session:
    print(session.transcribe("speech.wav", language="en").text)
"""

from collections import OrderedDict
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b
from pathlib import Path
from time import perf_counter
from types import TracebackType
from typing import Any, Self, Unpack, overload

import numpy as np

from ..kernels.logmel import log_mel
from ..targets.contract import EngineError, Float32, PromptError
from ..targets.manifest import Manifest
from .audio import AudioSource, load_audio
from .base import BoundedEngine, Engine, Listener
from .constraints import Rules
from .fallback import parts
from .generate import Decoding, Row, Settings, decoding, grow, start_row
from .languages import calls_marker
from .messages import Clip, clips, read_messages
from .plans import Stage
from .prompt import Prompts
from .replies import Reply, Segment, Stream, Timings, Transcription
from .segments import Asked, Progress, Transcriber
from .shared import SharedEngine, shared
from .tokens import Tokenizer
from .tools import Tool, ToolCall, ToolChoice, read_calls, read_choice, read_tools

TOKENIZER = "tokenizer.json"
BATCH = 8  # recordings decoded together
REMEMBERED = 16  # windows whose audio embeddings are kept


@dataclass(frozen=True)
class Prepared:
    """A prompt ready for the decoder: its ids, their embeddings with the audio in place, and what that took."""

    ids: tuple[int, ...]
    embeddings: Float32  # [sequence, hidden]
    audio_seconds: float
    seconds: float


class Session:
    """An opened bundle. Not thread-safe: one caller at a time, each with its own (`share`). A context manager, to be closed."""

    def __init__(self, manifest: Manifest, tokenizer: Tokenizer, engine: Engine, context: int | None = None) -> None:
        self.manifest = manifest
        self._tokenizer = tokenizer
        self._open_engine: SharedEngine | None = shared(engine)
        self._heard: OrderedDict[bytes, Float32] = OrderedDict()
        room = engine.context if isinstance(engine, BoundedEngine) else manifest.text.context
        built = int(manifest.recipe.get("context", manifest.text.context))
        self._context = min(manifest.text.context, built, room, context or room)
        tokens = engine.tokens_per_window if isinstance(engine, Listener) else manifest.audio.tokens_per_window
        self._prompts = Prompts(tokenizer, manifest.text, tokens, self._context)
        self._transcriber = Transcriber(
            manifest.audio, self._prompts, lambda: self.engine, self._hear, self._answer, self._pieces
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
        asked = Asked(language, self._how(settings))
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
        asked = Asked(language, self._how(settings))
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
        how = self._how(settings, offered, tool_choice, several=parallel_tool_calls)
        return self._answer([self._converse(messages, how, offered)], how)[0]

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
        how = self._how(settings, offered, tool_choice, several=parallel_tool_calls)
        if isinstance(source, list | tuple):
            if language is not None or rate is not None:
                raise PromptError("a conversation has no language or rate of its own (only a transcription has).")
            return Stream(self._pieces(self._converse(source, how, offered), how))
        if offered:
            raise PromptError("a transcription calls no tools (only a conversation does).")
        return Stream(self._transcriber.stream(Clip(source, rate), Asked(language, how), progress))

    def score(self, audio: AudioSource, tokens: Sequence[int], *, language: str | None = None) -> Float32:
        """Logits [len(tokens), vocabulary] from which each of `tokens` would be chosen as the transcript of `audio`.

        Raises:
            PromptError: the tokens do not fit into the context.
        """
        prompt = self._hear(Clip(audio), language, decoding()).embeddings
        if len(tokens) > self._context - len(prompt):
            raise PromptError(f"{len(tokens)} tokens cannot be scored (at most: {self._context - len(prompt)}).")
        answer = self._engine.embed(np.asarray(tokens, np.int64))
        # The last position chooses what follows the tokens: nobody asked for it.
        return self._engine.score(np.concatenate([prompt, answer]), len(tokens) + 1)[:-1]

    def log_mel(self, audio: AudioSource, *, rate: int | None = None) -> Float32:
        """Log-mel windows [windows, mel bins, frames] of a recording, float32."""
        return self._windows(self._samples(Clip(audio, rate)))

    def embed_audio(self, audio: AudioSource, *, rate: int | None = None) -> Float32:
        """Audio embeddings [windows, tokens per window, hidden] of a recording, float32."""
        return self._encode(self._samples(Clip(audio, rate)))

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
        self._heard.clear()

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

    def _samples(self, clip: Clip) -> Float32:
        return load_audio(clip.source, rate=clip.rate, target_rate=self.manifest.audio.sample_rate)

    def _windows(self, samples: Float32) -> Float32:
        audio = self.manifest.audio
        return log_mel(
            samples,
            rate=audio.sample_rate,
            fft=audio.fft,
            hop=audio.hop,
            bins=audio.mel_bins,
            window_frames=audio.window_frames,
        )

    def _hear(self, clip: Clip, language: str | None, how: Decoding) -> Prepared:
        started = perf_counter()
        samples = self._samples(clip)
        ids = self._prompts.transcription(self._count([samples])[0], language)
        return self._prepare(ids, [samples], how, started)

    def _how(
        self, settings: Settings, tools: Sequence[Tool] = (), choice: ToolChoice = "auto", *, several: bool = True
    ) -> Decoding:
        """The settings of an answer, with the rules that they and the tools set for its tokens."""
        how, chosen = decoding(**settings), read_choice(choice, tools, several=several)
        if how.language is None and not tools:
            return how
        text = self.manifest.text
        stop = (*text.stop_tokens, *how.stop_tokens)
        rules = Rules(self._tokenizer, text, stop, text=how.language, choice=chosen if tools else None)
        return replace(how, rules=rules)

    def _converse(self, messages: Sequence[Mapping[str, Any]], how: Decoding, tools: Sequence[Tool] = ()) -> Prepared:
        started = perf_counter()
        turns = read_messages(messages)
        heard = [self._samples(clip) for clip in clips(turns)]
        return self._prepare(self._prompts.chat(turns, self._count(heard), tools), heard, how, started)

    def _count(self, heard: Sequence[Float32]) -> list[int]:
        """Windows of each recording; an engine that listens itself says how many it makes of one."""
        if isinstance(self._engine, Listener):
            return [len(self._encode(clip)) for clip in heard]
        samples = self.manifest.audio.hop * self.manifest.audio.window_frames
        return [-(-len(clip) // samples) for clip in heard]

    def _prepare(self, ids: Sequence[int], heard: Sequence[Float32], how: Decoding, started: float) -> Prepared:
        """The prompt is checked against the context by now: only what fits is encoded."""
        embeddings = np.array(self._engine.embed(np.asarray(ids, np.int64)))
        if heard:
            places = np.asarray(ids) == self.manifest.text.audio_token
            audio = np.concatenate([self._encode(samples, how) for samples in heard])
            embeddings[places] = audio.reshape(-1, embeddings.shape[1])
        seconds = sum(map(len, heard)) / self.manifest.audio.sample_rate
        return Prepared(tuple(ids), embeddings, seconds, perf_counter() - started)

    def _encode(self, samples: Float32, how: Decoding | None = None) -> Float32:
        """Audio embeddings; kept for a while, since a conversation hands its recordings over at every turn."""
        if how is not None:
            how.check_wanted()
        key = blake2b(np.ascontiguousarray(samples).data, digest_size=16).digest()
        if key not in self._heard:
            self._heard[key] = self._embedded(samples)
        self._heard.move_to_end(key)
        while len(self._heard) > 1 and sum(map(len, self._heard.values())) > REMEMBERED:
            self._heard.popitem(last=False)
        return self._heard[key]

    def _embedded(self, samples: Float32) -> Float32:
        if isinstance(self._engine, Listener):
            return self._engine.hear(samples)
        return self._engine.encode(self._windows(samples))

    def _row(self, prepared: Prepared, how: Decoding, number: int) -> Row:
        text = self.manifest.text
        return start_row(
            self._tokenizer,
            how,
            prepared.ids,
            context=self._context,
            stop=text.stop_tokens,
            vocabulary=text.vocabulary,
            row=number,
        )

    def _pieces(self, prepared: Prepared, how: Decoding, number: int = 0) -> Generator[str, None, Reply]:
        how.check_wanted()
        row, started = self._row(prepared, how, number), perf_counter()
        logits, state = self._engine.prefill([prepared.embeddings])
        prefilled = perf_counter()
        for _, piece in grow(self._engine, [row], logits, state):
            if piece:
                yield piece
        return self._reply(prepared, row, prefilled - started, perf_counter() - prefilled)

    def _answer(self, batch: Sequence[Prepared], how: Decoding, first: int = 0) -> list[Reply]:
        """Answers of prompts decoded together; `first` is the number of the first among all of the caller's."""
        rows = [self._row(prepared, how, first + i) for i, prepared in enumerate(batch)]
        started = perf_counter()
        logits, state = self._engine.prefill([prepared.embeddings for prepared in batch])
        prefilled = perf_counter()
        for _ in grow(self._engine, rows, logits, state):
            pass
        prefill, decode = prefilled - started, perf_counter() - prefilled
        return [
            self._reply(prepared, row, prefill * share, decode * part)
            for prepared, row, share, part in zip(
                batch,
                rows,
                _shares([len(prepared.ids) for prepared in batch]),
                _shares([len(row.tokens) for row in rows]),
                strict=True,
            )
        ]

    def _reply(self, prepared: Prepared, row: Row, prefill: float, decode: float) -> Reply:
        timings = Timings(prepared.audio_seconds, prepared.seconds, prefill, decode, len(row.tokens))
        return Reply(
            "".join(row.pieces),
            tuple(row.tokens),
            self.engine,
            row.finish or "stop",
            timings,
            prompt_tokens=len(prepared.ids),
            audio_tokens=prepared.ids.count(self.manifest.text.audio_token),
            tool_calls=self._calls(prepared, row),
        )

    def _calls(self, prepared: Prepared, row: Row) -> tuple[ToolCall, ...]:
        form = self.manifest.text.tools
        if form is None or not row.calling:
            return ()
        begin = row.tokens.index(calls_marker(self._tokenizer, form))
        seed = blake2b(np.asarray((*prepared.ids, *row.tokens), np.int64).tobytes()).digest()
        return read_calls(self._tokenizer.decode(row.tokens[begin:], specials=True), form, seed)


def _shares(counts: Sequence[int]) -> list[float]:
    total = sum(counts)
    return [count / total if total else 1 / len(counts) for count in counts]
