"""Recordings and conversations -> prompts ready for the decoder: their ids, and embeddings with the audio in place."""

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from time import perf_counter
from typing import Any

import numpy as np

from ..kernels.logmel import log_mel
from ..targets.contract import Float32
from ..targets.manifest import Manifest
from .audio import load_audio
from .base import Engine, Listener
from .generate import Decoding
from .messages import Clip, clips, read_messages
from .prompt import Prompts
from .tools import Tool

REMEMBERED = 16  # windows whose audio embeddings are kept


@dataclass(frozen=True)
class Prepared:
    """A prompt ready for the decoder: its ids, their embeddings with the audio in place, and what that took."""

    ids: tuple[int, ...]
    embeddings: Float32  # [sequence, hidden]
    audio_seconds: float
    seconds: float


class Preparer:
    """Prepares prompts for the engine that `engine` gives."""

    def __init__(self, manifest: Manifest, prompts: Prompts, engine: Callable[[], Engine]) -> None:
        self._manifest = manifest
        self._prompts = prompts
        self._engine = engine
        self._heard: OrderedDict[bytes, Float32] = OrderedDict()

    def samples(self, clip: Clip) -> Float32:
        """A recording's samples [samples] at the model's rate."""
        return load_audio(clip.source, rate=clip.rate, target_rate=self._manifest.audio.sample_rate)

    def windows(self, samples: Float32) -> Float32:
        """Log-mel windows [windows, mel bins, frames] of samples."""
        audio = self._manifest.audio
        return log_mel(
            samples,
            rate=audio.sample_rate,
            fft=audio.fft,
            hop=audio.hop,
            bins=audio.mel_bins,
            window_frames=audio.window_frames,
        )

    def hear(self, clip: Clip, language: str | None, how: Decoding) -> Prepared:
        """The prompt that asks for the words of a recording."""
        started = perf_counter()
        samples = self.samples(clip)
        ids = self._prompts.transcription(self._count([samples])[0], language)
        return self._prepare(ids, [samples], how, started)

    def converse(self, messages: Sequence[Mapping[str, Any]], how: Decoding, tools: Sequence[Tool] = ()) -> Prepared:
        """The prompt of a conversation, in which `tools` may be called."""
        started = perf_counter()
        turns = read_messages(messages)
        heard = [self.samples(clip) for clip in clips(turns)]
        return self._prepare(self._prompts.chat(turns, self._count(heard), tools), heard, how, started)

    def _count(self, heard: Sequence[Float32]) -> list[int]:
        """Windows of each recording; an engine that listens itself says how many it makes of one."""
        if isinstance(self._engine(), Listener):
            return [len(self.encode(clip)) for clip in heard]
        samples = self._manifest.audio.hop * self._manifest.audio.window_frames
        return [-(-len(clip) // samples) for clip in heard]

    def _prepare(self, ids: Sequence[int], heard: Sequence[Float32], how: Decoding, started: float) -> Prepared:
        """The prompt is checked against the context by now: only what fits is encoded."""
        embeddings = np.array(self._engine().embed(np.asarray(ids, np.int64)))
        if heard:
            places = np.asarray(ids) == self._manifest.text.audio_token
            audio = np.concatenate([self.encode(samples, how) for samples in heard])
            embeddings[places] = audio.reshape(-1, embeddings.shape[1])
        seconds = sum(map(len, heard)) / self._manifest.audio.sample_rate
        return Prepared(tuple(ids), embeddings, seconds, perf_counter() - started)

    def encode(self, samples: Float32, how: Decoding | None = None) -> Float32:
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
        engine = self._engine()
        return engine.hear(samples) if isinstance(engine, Listener) else engine.encode(self.windows(samples))

    def forget(self) -> None:
        """Let go of the embeddings that are kept."""
        self._heard.clear()
