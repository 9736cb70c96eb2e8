"""A recipe: the format of each part of a model, and what is asked of the result."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from .weights import WeightFormat

# The stages of an audio-language model, and the parts of a recipe that each stores.
STAGE_PARTS: Mapping[str, tuple[str, ...]] = {
    "audio_encoder": ("encoder",),
    "embed_tokens": ("embedding",),
    "decoder": ("decoder", "lm_head"),
}
STAGES = tuple(STAGE_PARTS)


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
