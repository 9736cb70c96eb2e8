"""What a runtime is: an engine's name, whether it can be used here, and how it opens a bundle."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from ..targets.contract import EngineError, Float32, Int64
from ..targets.manifest import Manifest
from ..targets.probe import Proof
from .handing import KeyValues
from .options import Options


@dataclass
class Sequences:
    """The decoder's state for a batch of sequences: the engine's own cache, and how many tokens each row holds.

    Of a prompt, `known` tokens did not have to be read: an earlier one began with them.
    """

    lengths: list[int]
    cache: Any = field(repr=False)
    known: int = 0


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
