"""The nouns that cross rooms.

Errors, all under `OssicleError`, each naming the thing refused, the reason, what is possible and the command that helps:

    OssicleError
    ├── CheckpointError      a checkpoint cannot be read, or does not hold what its family needs
    │   └── AdapterError     an adapter cannot be read, or does not fit the checkpoint
    ├── RecipeError          a precision is unknown, or a target cannot hold it
    ├── BuildError           a bundle cannot be written
    ├── BundleError          a bundle is missing, incomplete, corrupted or too new
    ├── AudioError           a recording cannot be read or used
    ├── PromptError          a conversation or an option of one cannot be followed
    ├── EngineError          an engine is missing, or failed
    ├── CorpusError          a corpus cannot be read, or its run cannot be begun or gone on with
    ├── ServerError          a server cannot be started as asked
    ├── SweepError           a sweep cannot be begun or gone on with
    ├── PushError            a bundle cannot be uploaded
    └── VerificationError    an artifact does not compute what the original does
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

Float32 = NDArray[np.float32]
Float16 = NDArray[np.float16]
UInt8 = NDArray[np.uint8]
Int64 = NDArray[np.int64]

# The stages of an audio-language model, and the parts of a recipe that each stores.
STAGE_PARTS: Mapping[str, tuple[str, ...]] = {
    "audio_encoder": ("encoder",),
    "embed_tokens": ("embedding",),
    "decoder": ("decoder", "lm_head"),
}
STAGES = tuple(STAGE_PARTS)


class OssicleError(Exception):
    """Whatever ossicle refuses or fails at, said in one message for the user."""


class CheckpointError(OssicleError):
    """A checkpoint cannot be read, or does not hold what its family needs."""


class AdapterError(CheckpointError):
    """An adapter cannot be read, or does not fit the checkpoint."""


class RecipeError(OssicleError):
    """A precision is unknown, or a target cannot hold it."""


class BuildError(OssicleError):
    """A bundle cannot be written."""


class BundleError(OssicleError):
    """A bundle is missing, incomplete, corrupted or written by a newer ossicle."""


class AudioError(OssicleError):
    """A recording cannot be read or used."""


class PromptError(OssicleError):
    """A conversation, or an option of one, cannot be followed."""


class EngineError(OssicleError):
    """An engine is missing, or failed."""


class CorpusError(OssicleError):
    """A corpus cannot be read, or its run cannot be begun or gone on with."""


class ServerError(OssicleError):
    """A server cannot be started as asked."""


class SweepError(OssicleError):
    """A sweep cannot be begun or gone on with."""


class PushError(OssicleError):
    """A bundle cannot be uploaded."""


class Cancelled(OssicleError):  # noqa: N818 - no error: what the caller asked for
    """The caller gave up what it had asked for."""


class VerificationError(OssicleError):
    """An artifact does not compute what the original does."""


class TensorSource(Protocol):
    """One tensor of a checkpoint, read row by row and never whole unless asked for."""

    @property
    def name(self) -> str:
        """Canonical name, the one transformers gives the parameter in memory."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def dtype(self) -> str:
        """How it is stored: "float32", "float16" or "bfloat16"."""

    def rows(self, start: int, stop: int) -> Float32:
        """Elements [start:stop] along the first axis, float32, shape (stop - start, *shape[1:])."""


@dataclass(frozen=True)
class WeightFormat:
    """How the numbers of a weight are stored.

    Without a `kind`, `bits` 32 and 16 are IEEE floats, and 8 and 4 are groupwise integers along the last axis: `group`
    neighbours share one float16 scale (and one zero point unless `symmetric`). A `kind` names a format of its own:
    "bfloat16", "float8_e4m3fn" with a float16 scale for every row, "palette4" with a table of levels for every few rows, or
    one of GGUF's blocks of `group` neighbours, whose levels have so many bits ("Q4_K", "Q6_K", ...).
    """

    bits: Literal[32, 16, 8, 6, 5, 4, 3]
    group: int = 0
    symmetric: bool = True
    kind: str = ""

    @property
    def is_float(self) -> bool:
        return self.bits >= 16

    @property
    def is_block(self) -> bool:
        """Whether it is one of GGUF's own block formats."""
        return bool(self.kind) and self.group > 0

    @property
    def name(self) -> str:
        if self.kind:
            return self.kind
        if self.is_float:
            return f"float{self.bits}"
        return f"int{self.bits}-g{self.group}" + ("" if self.symmetric else "-asymmetric")


@dataclass(frozen=True)
class QuantizedRows:
    """Consecutive rows of a quantized matrix [N, K] in groups of g along K; the last group may be short.

    Row start + i, column j holds (codes[i, j] - zero) * scales[i, j // g], where zero is zero_points[i, j // g], or
    2 ** (bits - 1) where the format is symmetric.
    """

    start: int
    codes: UInt8  # [rows, K], 0 .. 2 ** bits - 1
    scales: Float16  # [rows, ceil(K / g)], positive
    zero_points: UInt8 | None  # [rows, ceil(K / g)]; None where the format is symmetric


@dataclass(frozen=True)
class QuantizedTensor:
    """A matrix [N, K] of groupwise integers, independent of any runtime, handed over in row blocks.

    `blocks()` starts anew at each call and gives the same numbers each time, so every target stores the same bits.
    """

    name: str
    shape: tuple[int, int]
    format: WeightFormat
    blocks: Callable[[], Iterator[QuantizedRows]] = field(repr=False)


@dataclass(frozen=True)
class Thresholds:
    """How far an artifact may be from the original before `verify` fails it. None: measured, not judged."""

    logmel: float = 1e-4  # largest absolute difference
    embeddings: float | None = None  # relative error, Frobenius
    logits: float | None = None  # largest absolute difference, teacher-forced
    kl: float = 1e-6  # mean KL divergence in nats per token
    kl_clip: float | None = None  # the same, of the worst clip alone
    embeddings_stored: float | None = (
        None  # as `embeddings`, from the original with its weights rounded as the recipe's
    )
    kl_stored: float | None = None  # as `kl_clip`, from the same
    top1: float = 1.0  # share of positions whose most likely token is the original's
    same_text: bool = False  # greedy text equal on every clip
    wer: float = 0.0  # word error rate may exceed the original's by this much (0.01 = one point)


@dataclass(frozen=True)
class Override:
    """Some matrices of a part that get another format than the part.

    `tensors` is a shell pattern on canonical names. `layers` is a rule of `gguf_mixes.in_layers`, or numbers of layers with
    commas between them.
    """

    part: str
    tensors: str
    format: WeightFormat
    layers: str = "all"


@dataclass(frozen=True)
class Recipe:
    """Which format each part of a model is stored in, what it computes in, and what is asked of the result."""

    name: str
    encoder: WeightFormat  # linear layers of the audio encoder and the projector
    embedding: WeightFormat
    decoder: WeightFormat
    lm_head: WeightFormat
    compute: Literal["float32", "float16"] = "float32"  # activations, and weights that are not matrices
    integer_activations: bool = False  # engines may quantize activations to int8 in matrix products
    attention: Literal["fused", "standard"] = "fused"  # GroupQueryAttention, or ONNX's own Attention
    context: int = 32768  # longest sequence, in tokens, that the artifact is prepared for
    thresholds: Thresholds = Thresholds()
    quantizer: str = "nearest"  # how the integers of groupwise formats are found: see compiler/quantizers.py
    overrides: tuple[Override, ...] = ()  # of several that fit a tensor the first counts

    def main_format(self, stage: str) -> WeightFormat:
        """What most of a stage's matrices are stored in."""
        form: WeightFormat = getattr(self, STAGE_PARTS[stage][0])
        return form

    def formats(self, stages: Sequence[str] = STAGES) -> list[tuple[str, WeightFormat]]:
        """Every format that these stages store, behind the part or the tensors that it is for."""
        parts = [part for stage in stages for part in STAGE_PARTS[stage]]
        named: list[tuple[str, WeightFormat]] = [(part, getattr(self, part)) for part in parts]
        return named + [(f"'{one.tensors}'", one.format) for one in self.overrides if one.part in parts]


@dataclass(frozen=True)
class Port:
    """An input or output of a stage. A dimension is a number, or the name of one that varies."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]


@dataclass(frozen=True)
class TracedStage:
    """One graph, traced with no weights in memory.

    `program` is a torch.export.ExportedProgram over fake tensors. `weights` says which canonical tensor each of its
    parameters and buffers is; `constants` gives those that no checkpoint holds (rotary tables).
    """

    name: str
    program: Any
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    weights: Mapping[str, str]
    constants: Mapping[str, Float32]


@dataclass(frozen=True)
class Traced:
    """A model as its stages: what every target lowers from."""

    family: str
    stages: tuple[TracedStage, ...]

    def stage(self, name: str) -> TracedStage:
        return next(stage for stage in self.stages if stage.name == name)


class WeightStore(Protocol):
    """Weights by canonical name, as floats or as the recipe's integers, for a target to store."""

    @property
    def tied(self) -> bool:
        """Whether the head is the embedding's own numbers."""

    def source(self, name: str) -> TensorSource: ...

    def format(self, name: str) -> WeightFormat:
        """The format that the recipe gives this tensor."""

    def quantized(self, name: str) -> QuantizedTensor:
        """The tensor in its integer format; the same numbers for every target."""

    def importance(self, name: str) -> Float32 | None:
        """The mean square of what each column of the tensor is multiplied with; None where it was not measured."""


@dataclass(frozen=True)
class BundleFile:
    """A file of a bundle: path relative to the bundle's folder with forward slashes, size in bytes, sha256 in hex."""

    path: str
    size: int
    sha256: str


@dataclass(frozen=True)
class Memory:
    """What running an artifact takes, in bytes: weights, KV cache per token of context, and working space (estimated)."""

    weights: int
    kv_per_token: int = 0
    working: int = 0


@dataclass(frozen=True)
class Artifact:
    """One stage of a model in one target's format: the unit that an engine opens."""

    target: str
    stage: str
    recipe: str
    precision: str
    files: tuple[BundleFile, ...]
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    requirements: Mapping[str, str]  # for example {"engine": "onnxruntime", "version": ">=1.24"}
    memory: Memory


class Progress(Protocol):
    """Told how far a long step is. `total` in the unit named (bytes, tensors, clips); a renderer may ignore it."""

    def start(self, step: str, total: int, unit: str) -> None: ...

    def advance(self, amount: int) -> None: ...


class Target(Protocol):
    """One artifact format."""

    name: str

    def check(self, recipe: Recipe, stages: Sequence[str] = STAGES) -> None:
        """Raise `RecipeError` listing everything that these stages store under the recipe and this format cannot hold."""

    def lower(
        self, stage: TracedStage, recipe: Recipe, weights: WeightStore, folder: Any, progress: Progress
    ) -> Artifact:
        """Write one stage under `folder` (a pathlib.Path) and give back what was written."""


class LowRankUpdate(Protocol):
    """scale * b @ a: what an adapter adds to a matrix [N, K]."""

    @property
    def a(self) -> TensorSource:
        """[r, K]"""

    @property
    def b(self) -> TensorSource:
        """[N, r]"""

    @property
    def scale(self) -> float: ...


@runtime_checkable
class AdapterTarget(Target, Protocol):
    """A format whose engine adds adapters to its artifacts as it runs."""

    def lower_adapter(self, name: str, updates: Mapping[str, LowRankUpdate], recipe: Recipe, folder: Any) -> BundleFile:
        """Write an adapter, its updates by canonical name, under `folder` (a pathlib.Path), where its bundle is made."""
