"""What a runtime is: an engine's name, whether it can be used here, and how it opens a bundle."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from math import isfinite
from pathlib import Path
from typing import Any, Protocol, Self, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from ..targets.contract import EngineError, Float32, Int64
from ..targets.manifest import Manifest
from ..targets.probe import Proof

ADAPTING = "onnxruntime, llamacpp"  # engines that add adapters as they run


@dataclass(frozen=True)
class Options:
    """How an engine is to run; each refuses what it cannot do.

    `kv_cache` is what keys and values are kept in: "float32", "float16", "int8", "int4" where the engine has it, "" its exact
    default. `adapters` are those that a bundle keeps for run time, by name, each with how much of it is added. `compute` is
    what products are computed in where the engine has a choice: "float32", "" its default.
    """

    threads: int = 0  # 0: as many as the machine has cores
    provider: str = "cpu"
    kv_cache: str = ""
    flash_attention: bool | None = None  # None: the engine's exact default
    adapters: Mapping[str, float] = field(default_factory=dict)
    compute: str = ""


@dataclass
class Sequences:
    """The decoder's state for a batch of sequences: the engine's own cache, and how many tokens each row holds.

    Of a prompt, `known` tokens did not have to be read: an earlier one began with them.
    """

    lengths: list[int]
    cache: Any = field(repr=False)
    known: int = 0


@dataclass(frozen=True)
class KeyValues:
    """What a decoder remembers of one row, in the form in which engines hand it to each other.

    Both are [layers, key heads, tokens, head_dim], float32 or float16, the first token first. Keys are rotated, by the
    rotation of halves and from position 0: the numbers that ONNX and OpenVINO artifacts keep.
    """

    keys: NDArray[Any]
    values: NDArray[Any]

    @classmethod
    def of(cls, arrays: Sequence[NDArray[Any]]) -> Self:
        """From arrays [key heads, tokens, head_dim]: each layer's keys and values in turns."""
        return cls(np.stack(arrays[::2]), np.stack(arrays[1::2]))

    @property
    def tokens(self) -> int:
        return int(self.keys.shape[2])

    @property
    def nbytes(self) -> int:
        return int(self.keys.nbytes + self.values.nbytes)

    def first(self, tokens: int) -> Self:
        """What it remembers of its first tokens, in the same memory."""
        return replace(self, keys=self.keys[:, :, :tokens], values=self.values[:, :, :tokens])

    def arrays(self) -> list[NDArray[Any]]:
        """Arrays [key heads, tokens, head_dim]: each layer's keys and values in turns."""
        return [array for layer in zip(self.keys, self.values, strict=True) for array in layer]


class Encoder(Protocol):
    """An opened audio encoder, for an engine that has none of its own."""

    @property
    def name(self) -> str:
        """What runs it, for example "onnxruntime-cpu"."""

    def encode(self, mel: Float32) -> Float32:
        """Audio embeddings [windows, tokens, hidden] of log-mel windows [windows, mel bins, frames]."""

    def close(self) -> None: ...


class Engine(Protocol):
    """An opened bundle. Not thread-safe: one caller at a time. A state given to `extend` or `step` is used up by it."""

    @property
    def name(self) -> str:
        """What runs it, for example "onnxruntime-cpu"."""

    def encode(self, mel: Float32) -> Float32:
        """Audio embeddings [windows, tokens, hidden] of log-mel windows [windows, mel bins, frames]."""

    def embed(self, ids: Int64) -> Float32:
        """Token embeddings [sequence, hidden] of token ids [sequence]."""

    def prefill(self, prompts: Sequence[Float32]) -> tuple[Float32, Sequences]:
        """Logits [batch, vocabulary] after each prompt [sequence, hidden] (lengths may differ), and the state."""

    def extend(self, state: Sequences, prompt: Float32) -> tuple[Float32, Sequences]:
        """Logits [1, vocabulary] after `prompt` [sequence, hidden] continues a state of one row."""

    def step(self, state: Sequences, tokens: Int64) -> tuple[Float32, Sequences]:
        """Logits [batch, vocabulary] after one more token [batch] for each row, and the state after it."""

    def keep(self, state: Sequences, rows: Sequence[int]) -> Sequences:
        """The state of these rows alone."""

    def score(self, prompt: Float32, last: int = 0) -> Float32:
        """Logits [last, vocabulary] at the last positions of a prompt [sequence, hidden]; 0: at all of them."""

    def close(self) -> None:
        """Give the engine's memory back."""


@runtime_checkable
class Listener(Engine, Protocol):
    """An engine with a front end of its own: it takes recordings, where others take log-mel windows."""

    tokens_per_window: int

    def hear(self, samples: Float32) -> Float32:
        """Audio embeddings [windows, tokens, hidden] of a recording [samples] at the bundle's rate."""


@runtime_checkable
class BoundedEngine(Engine, Protocol):
    """An engine whose artifacts have room for so many tokens, whatever the model itself could take."""

    context: int


@runtime_checkable
class HandingEngine(Engine, Protocol):
    """An engine whose states leave it and enter it, so that one engine reads a prompt and another answers it."""

    def give(self, state: Sequences) -> list[KeyValues]:
        """What the state remembers, row by row, in memory of its own; the state itself is not used up."""

    def take(self, rows: Sequence[KeyValues]) -> Sequences:
        """A state that remembers what these rows do.

        Raises:
            EngineError: they are of another model.
        """


@runtime_checkable
class WrappingEngine(Engine, Protocol):
    """An engine that stands before another and lets it do the work."""

    @property
    def engine(self) -> Engine:
        """The one that it stands before."""


@runtime_checkable
class BranchingEngine(Engine, Protocol):
    """An engine in which a sequence can begin as another did, with nothing copied."""

    def branch(self, state: Sequences, tokens: int) -> Sequences:
        """The first tokens of a state of one row, for another sequence; the state itself is not used up."""


@runtime_checkable
class AdaptingEngine(Engine, Protocol):
    """An engine that adds adapters to its decoder as it runs, others for every caller, over one set of weights."""

    @property
    def adapters(self) -> Sequence[str]:
        """The adapters that it has, by name."""

    def adapted(self, adapters: Mapping[str, float]) -> Engine:
        """The same engine with so much of each of these added, and of no other: a view, which is closed with the engine.

        A state goes on in a view of the adapters that it was begun with, and in no other. Embeddings of tokens and of audio
        are the same in all. Whether it has the adapters is asked before: runtimes/adapters.py.
        """


class Runtime(Protocol):
    """One engine as a kind: what it is called, what it runs, whether it works here."""

    name: str  # the word the user types: "onnxruntime"
    target: str  # the artifacts it opens: "onnx"
    package: str  # what brings the engine: "onnxruntime"

    def usable(self) -> str | None:
        """Why it cannot be used here, with the command that would help; None where it can."""

    def open(self, folder: Path, manifest: Manifest, options: Options) -> Engine:
        """Open a bundle's artifacts of this runtime's target.

        Raises:
            EngineError: the engine is missing, or it refused an artifact.
        """


@runtime_checkable
class InexactRuntime(Runtime, Protocol):
    """A runtime that does not compute what the model does: it runs where it is named, and is never chosen."""

    inexact: str  # what it does otherwise


@runtime_checkable
class ProvingRuntime(Runtime, Protocol):
    """A runtime that may stand in for the engine that its artifacts are made for; then it proves, and is never chosen."""

    @property
    def proof(self) -> Proof:
        """What running it here says of its artifacts."""

    def absent(self) -> str | None:
        """Why the engine itself does not run here, with what would help; None where it does."""


@runtime_checkable
class ProviderRuntime(Runtime, Protocol):
    """A runtime that computes on one of several providers."""

    def providers(self) -> Mapping[str, str | None]:
        """What speaks against each provider here, by name; None: nothing."""


@runtime_checkable
class ComputingRuntime(Runtime, Protocol):
    """A runtime whose decoder has a choice of what products are computed in."""

    computes: tuple[str, ...]  # what `Options.compute` may be beside ""


@runtime_checkable
class EncoderRuntime(Runtime, Protocol):
    """A runtime that also opens the audio encoder of a bundle alone."""

    def open_encoder(self, folder: Path, manifest: Manifest, options: Options) -> Encoder:
        """Open the audio encoder of this runtime's target.

        Raises:
            EngineError: the engine is missing, or it refused the artifact.
        """


@runtime_checkable
class DecoderRuntime(Runtime, Protocol):
    """A runtime that also opens a bundle without its audio encoder, for audio embeddings from elsewhere."""

    def open_decoder(self, folder: Path, manifest: Manifest, options: Options) -> Engine:
        """Open all but the audio encoder of this runtime's target; what it gives refuses to `encode`.

        Raises:
            EngineError: the engine is missing, or it refused the artifact.
        """


@runtime_checkable
class EncoderlessRuntime(Runtime, Protocol):
    """A runtime that has no exact audio encoder of its own; another's is opened beside it."""

    encoderless: str | None  # why it has none; None: it has one after all


def encoder_lacking(runtime: Runtime) -> str | None:
    """Why a runtime has no audio encoder of its own; None where it has one."""
    return runtime.encoderless if isinstance(runtime, EncoderlessRuntime) else None


def opened_without_encoder(engine: str) -> EngineError:
    """What an engine answers to audio that was opened as a decoder alone."""
    return EngineError(f"engine '{engine}' was opened without its audio encoder. Open the whole bundle: ossicle.load")


def proof(runtime: Runtime) -> Proof:
    """What running it here says of its artifacts: of an ordinary one, that their engine executed them."""
    return runtime.proof if isinstance(runtime, ProvingRuntime) else "executed"


def check_handed(engine: str, rows: Sequence[KeyValues], layers: int, heads: int, head_dim: int) -> None:
    """Refuse rows that another model's decoder has made.

    Raises:
        EngineError: their sizes are not those of this engine's decoder.
    """
    for row in rows:
        if {row.keys.shape, row.values.shape} != {(layers, heads, row.tokens, head_dim)}:
            raise EngineError(
                f"engine '{engine}' takes keys and values [{layers}, {heads}, tokens, {head_dim}] of a row, and was given "
                f"{list(row.keys.shape)} and {list(row.values.shape)}. Hand over between engines of one bundle alone"
            )
    if not rows:
        raise EngineError(f"engine '{engine}' was given no rows to go on with (it needs: 1 or more).")


def check_options(
    engine: str,
    options: Options,
    *,
    providers: Sequence[str] = ("cpu",),
    kv_caches: Sequence[str] = (),
    flash_attention: bool = False,
    adapters: Sequence[str] | None = None,
    computes: Sequence[str] = (),
) -> None:
    """Refuse what an engine is asked for and cannot do; what it can is said here, `adapters` None: none at run time.

    Raises:
        EngineError: listing everything that it cannot do, and what it can.
    """
    faults = []
    if options.provider not in providers:
        faults.append(f"no provider '{options.provider}' here (it has: {', '.join(providers)})")
    if options.kv_cache and options.kv_cache not in kv_caches:
        faults.append(f"no kv_cache '{options.kv_cache}' (it has: {', '.join(kv_caches) or 'its own alone'})")
    if options.flash_attention is not None and not flash_attention:
        faults.append("no choice of flash_attention")
    faults += compute_faults(options.compute, computes)
    faults += adapter_faults(options.adapters, adapters)
    if faults:
        raise EngineError(f"engine '{engine}' has {'; '.join(faults)}. See what this machine has: ossicle doctor")


def compute_faults(wanted: str, computes: Sequence[str]) -> list[str]:
    """What speaks against computing products in a type, of those that an engine has a choice of."""
    if wanted in ("", *computes):
        return []
    return [f"no compute '{wanted}' (it has: {', '.join(computes) or 'what the bundle says alone'})"]


def adapter_faults(wanted: Mapping[str, float], held: Sequence[str] | None) -> list[str]:
    """What speaks against adding so much of each adapter, of those that are held; None: none are added at run time."""
    if wanted and held is None:
        return [
            f"no adapters at run time (these have: {ADAPTING}; or merge them: ossicle build CHECKPOINT --adapter PATH)"
        ]
    faults = [
        f"no adapter '{name}' in this bundle ({_held(name, held or ())})" for name in wanted if name not in (held or ())
    ]
    return faults + [f"no scale {scale} for adapter '{name}'" for name, scale in wanted.items() if not isfinite(scale)]


def _held(name: str, held: Sequence[str]) -> str:
    """Which adapters there are, and how there would be this one."""
    if near := get_close_matches(name, held, n=3):
        return f"near it: {', '.join(near)}; it has: {', '.join(held)}"
    build = "keep one in it: ossicle build CHECKPOINT --target onnx,gguf --runtime-adapter PATH"
    return f"it has: {', '.join(held) or 'none'}; {build}"
