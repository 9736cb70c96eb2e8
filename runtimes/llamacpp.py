"""llama.cpp: runs the decoder of a bundle's `gguf` artifacts, in a process of its own.

Audio comes as embeddings from an engine that computes them exactly. llama.cpp's own audio path averages pairs of Voxtral's
encoder frames, which the model does not, so it is not taken.
"""

import weakref
from collections.abc import Iterable, Mapping, Sequence
from copy import copy
from dataclasses import asdict
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..targets import gguf_blocks, gguf_file
from ..targets.contract import EngineError, Float32, Int64
from ..targets.manifest import Manifest
from .base import Engine, Sequences
from .llamacpp_api import library
from .llamacpp_context import CACHE_TYPES, MAX_SEQUENCES, Opening
from .llamacpp_process import Process
from .options import Options, check_options
from .processor import physical_cores
from .refusal import Refusal
from .registry import installed

PINNED = "2026.10.11549"
_EMBEDDING = "token_embd.weight"


class LlamaCpp:
    """llama.cpp on the CPU, as package xllamacpp brings it."""

    name = "llamacpp"
    target = "gguf"
    package = "xllamacpp"
    computes = ("float32",)
    encoderless: str | None = "its own audio encoder averages pairs of frames, which the model does not"

    def usable(self) -> str | None:
        found = installed(self.package)
        if found is None:
            return Refusal(
                "package xllamacpp is not installed. Install it with", "package", 'pip install "ossicle[gguf]"'
            )
        if found != PINNED:
            reason = (
                f"xllamacpp {found} is installed, and its C interface is known at {PINNED} alone. Install that with"
            )
            return Refusal(reason, "package", f'pip install "xllamacpp=={PINNED}"')
        try:
            library()
        except EngineError as reason:
            again = f'pip install --force-reinstall "xllamacpp=={PINNED}"'
            return Refusal(f"{reason}. Install it with", "package", again)
        return None

    def open(self, folder: Path, manifest: Manifest, options: Options) -> Engine:
        """Open a bundle's decoder; audio comes as embeddings from another runtime's encoder."""
        opening = self.opening(folder, manifest, options)
        embedding = gguf_file.read(Path(opening.path))
        process = Process(asdict(opening))
        try:
            return LlamaCppEngine(process, embedding, self.kept(manifest), options.adapters)
        except BaseException:
            process.close()
            raise

    def open_decoder(self, folder: Path, manifest: Manifest, options: Options) -> Engine:
        return self.open(folder, manifest, options)

    def opening(self, folder: Path, manifest: Manifest, options: Options) -> Opening:
        """What the child is to open.

        Raises:
            EngineError: the engine is missing, the bundle has no decoder for it, or an option is not possible here.
        """
        if reason := self.usable():
            raise EngineError(f"engine '{self.name}' cannot be used: {reason}")
        kept = self.kept(manifest)
        check_options(
            self.name,
            options,
            kv_caches=tuple(CACHE_TYPES),
            flash_attention=True,
            adapters=tuple(kept),
            computes=self.computes,
        )
        return Opening(
            path=str(_decoder_file(folder, manifest)),
            threads=options.threads or physical_cores(),
            cache=options.kv_cache or "float32",
            flash_attention=_flash_attention(options),
            adapters=[str(folder / path) for path in kept.values()],
            widened=options.compute == "float32",
        )

    def kept(self, manifest: Manifest) -> dict[str, str]:
        """The file of each adapter that a bundle keeps, in the order in which they are opened."""
        return {one.name: one.file.path for one in manifest.runtime_adapters if one.target == self.target}


class LlamaCppEngine:
    """An opened bundle; `adapters` are those that the process has opened, `scales` how much of some of them is added."""

    name = "llamacpp-cpu"

    def __init__(
        self,
        process: Process,
        contents: gguf_file.Contents,
        adapters: Iterable[str] = (),
        scales: Mapping[str, float] = MappingProxyType({}),
    ) -> None:
        self.adapters = tuple(adapters)
        self._scales = [scales.get(name, 0.0) for name in self.adapters]
        self._process = process
        self._closing = weakref.finalize(self, process.close)
        self._embedding = contents.tensors[_EMBEDDING].type, contents.bytes_of(_EMBEDDING)
        self._numbers = _Numbers()
        self._whole: Engine | None = None

    def adapted(self, adapters: Mapping[str, float]) -> Engine:
        view = copy(self)
        view._scales = [adapters.get(name, 0.0) for name in self.adapters]
        view._whole = self  # the process ends with the engine that it was opened for
        return view

    def encode(self, mel: Float32) -> Float32:
        raise EngineError(
            f"engine 'llamacpp' takes {len(mel)} windows of audio from an exact encoder ({LlamaCpp.encoderless}), and the "
            "bundle has none that can be opened here. Build one beside it: ossicle build CHECKPOINT --target onnx,gguf"
        )

    def embed(self, ids: Int64) -> Float32:
        kind, stored = self._embedding
        return gguf_blocks.unpack(stored[np.asarray(ids, np.int64)], kind)

    def prefill(self, prompts: Sequence[Float32]) -> tuple[Float32, Sequences]:
        state = Sequences([0] * len(prompts), self._taken(len(prompts)))
        return self._advance(state, [len(prompt) for prompt in prompts], np.concatenate(prompts))

    def extend(self, state: Sequences, prompt: Float32) -> tuple[Float32, Sequences]:
        if len(state.lengths) != 1:
            raise EngineError(f"engine '{self.name}' cannot extend {len(state.lengths)} rows at once (it can: 1).")
        return self._advance(state, [len(prompt)], prompt)

    def step(self, state: Sequences, tokens: Int64) -> tuple[Float32, Sequences]:
        return self._advance(state, [1] * len(state.lengths), np.asarray(tokens, np.int32))

    def keep(self, state: Sequences, rows: Sequence[int]) -> Sequences:
        held, kept = self._held(state), self._taken(len(rows))
        lengths = [state.lengths[row] for row in rows]
        pairs = [
            [held.numbers[row], number, length] for row, number, length in zip(rows, kept.numbers, lengths, strict=True)
        ]
        self._process.call("copy", {"pairs": pairs, "free": self._numbers.forgotten()})
        return Sequences(lengths, kept)

    def branch(self, state: Sequences, tokens: int) -> Sequences:
        return self.keep(Sequences([tokens], self._held(state)), [0])

    def score(self, prompt: Float32, last: int = 0) -> Float32:
        held = self._taken(1)
        return self._decode([[held.numbers[0], 0, len(prompt), last or len(prompt)]], prompt)

    def close(self) -> None:
        self._closing()
        self.__dict__.pop("_embedding", None)  # a mapped file

    def _advance(self, state: Sequences, counts: Sequence[int], values: NDArray[Any]) -> tuple[Float32, Sequences]:
        held = self._held(state)
        parts = [
            [number, length, count, 1]
            for number, length, count in zip(held.numbers, state.lengths, counts, strict=True)
        ]
        logits = self._decode(parts, values)
        lengths = [length + count for length, count in zip(state.lengths, counts, strict=True)]
        return logits, Sequences(lengths, held)

    def _decode(self, parts: list[list[int]], values: NDArray[Any]) -> Float32:
        message = {"parts": parts, "free": self._numbers.forgotten(), "scales": self._scales}
        values = values if values.ndim == 1 else np.asarray(values, np.float32)
        return np.asarray(self._process.call("decode", message, [values])[1][0], np.float32)

    def _taken(self, count: int) -> "_Held":
        """Numbers for new sequences, of a child that is running."""
        self._process.start()
        return self._numbers.take(count, self._process.lives)

    def _held(self, state: Sequences) -> "_Held":
        held: _Held = state.cache
        if held.life != self._process.lives or self._process.pid is None:
            raise EngineError(
                "engine 'llamacpp' ended since these sequences were begun, and they are lost. Begin them again: prefill"
            )
        return held


class _Held:
    """The numbers that the child knows some sequences by, theirs as long as this is referred to."""

    def __init__(self, numbers: list[int], life: int) -> None:
        self.numbers = numbers
        self.life = life


class _Numbers:
    """Which of the child's sequence numbers are taken."""

    def __init__(self) -> None:
        self._life = 0
        self._free = list(range(MAX_SEQUENCES))
        self._stale: list[int] = []  # free, and the child has yet to forget what they held
        self._dropped: list[tuple[int, int]] = []  # (life, number); appended to whenever a `_Held` goes

    def take(self, count: int, life: int) -> _Held:
        """Numbers of sequences that hold nothing once the child has forgotten what `forgotten` says.

        Raises:
            EngineError: there are not as many.
        """
        if life != self._life:
            self._life, self._free, self._stale = life, list(range(MAX_SEQUENCES)), []
        self._collect()
        if count > len(self._free):
            raise EngineError(
                f"engine 'llamacpp' cannot begin {count} more sequences (it can: {len(self._free)} of {MAX_SEQUENCES})."
            )
        numbers, self._free = self._free[:count], self._free[count:]
        held = _Held(numbers, life)
        weakref.finalize(held, self._dropped.extend, [(life, number) for number in numbers])
        return held

    def forgotten(self) -> list[int]:
        """Numbers that nobody referred to any more, for the child to forget before all else."""
        self._collect()
        stale, self._stale = self._stale, []
        return stale

    def _collect(self) -> None:
        dropped = [self._dropped.pop() for _ in range(len(self._dropped))]
        numbers = sorted(number for life, number in dropped if life == self._life)
        self._free += numbers
        self._stale += numbers


def _flash_attention(options: Options) -> bool:
    """Whether to take it: where it is asked for, and where nothing else has integers for values."""
    integers = options.kv_cache.startswith("int")
    if integers and options.flash_attention is False:
        raise EngineError(
            f"llama.cpp keeps kv_cache '{options.kv_cache}' with flash attention alone (without it: float32, float16). "
            "Leave flash_attention out, or turn it on"
        )
    return integers if options.flash_attention is None else options.flash_attention


def _decoder_file(folder: Path, manifest: Manifest) -> Path:
    artifacts = [a for a in manifest.artifacts if (a.target, a.stage) == ("gguf", "decoder")]
    files = [file.path for artifact in artifacts for file in artifact.files]
    if not files:
        held = ", ".join(f"{a.stage} for {a.target}" for a in manifest.artifacts) or "nothing"
        raise EngineError(
            f"engine 'llamacpp' needs 'decoder' for target gguf, and bundle '{folder}' has none "
            f"(it has: {held}). Build it with: ossicle build CHECKPOINT --target onnx,gguf"
        )
    return folder / files[0]  # llama.cpp finds the others of a split model beside its first


RUNTIME = LlamaCpp()
