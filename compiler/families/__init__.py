"""Model families, one file each, found by the `model_type` of a checkpoint's configuration."""

import pkgutil
from collections.abc import Mapping
from importlib import import_module
from typing import Any, Literal, Protocol, cast

from ...targets.contract import CheckpointError, TracedStage
from ...targets.manifest import AudioFormat, TextFormat
from ..folds import Fold

Layout = Literal["huggingface", "mistral"]
Part = Literal["encoder", "projector", "embedding", "decoder", "lm_head"]


class Family(Protocol):
    """What a family is made of: names, shapes, sizes and prompts, all without torch; and its graphs.

    A configuration is the dictionary that transformers' configuration class takes.
    """

    MODEL_TYPE: str
    EMBEDDING: str  # canonical name of the token embedding
    LM_HEAD: str
    STAGES: tuple[str, ...]  # names of its graphs, in the order that data flows

    def huggingface_config(self, document: Mapping[str, Any]) -> dict[str, Any]:
        """A whole configuration of a config.json: what it leaves out is filled in as transformers does."""

    def in_mistral_layout(self, params: Mapping[str, Any]) -> bool:
        """Whether a params.json of Mistral's own layout is this family's."""

    def mistral_config(self, params: Mapping[str, Any]) -> dict[str, Any]:
        """The configuration of such a params.json."""

    def parameters(self, config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
        """Canonical name and shape of everything that a checkpoint has to hold."""

    def canonical(self, name: str, layout: Layout) -> str | None:
        """The canonical name of a stored tensor; None for what is known to be no weight, `name` where nothing fits."""

    def adapted(self, name: str) -> str:
        """The canonical name of a parameter as an adapter names it."""

    def permuted_heads(self, name: str, config: Mapping[str, Any]) -> int | None:
        """Heads of a matrix whose rows Mistral's layout orders for interleaved RoPE; None for all others."""

    def computed(self, name: str, layout: Layout) -> bool:
        """Whether a layout leaves this tensor out since it is a table of sinusoids."""

    def tied(self, config: Mapping[str, Any]) -> bool:
        """Whether the head may be the embedding."""

    def part(self, name: str) -> Part | None:
        """What a tensor belongs to."""

    def linear(self, name: str) -> bool:
        """Whether a tensor is the matrix [out, in] of a linear layer, and so quantizable."""

    def folds(self, config: Mapping[str, Any]) -> tuple[Fold, ...]:
        """Where a channel's size may move from matrices into what comes before them."""

    def text_format(
        self, config: Mapping[str, Any], generation: Mapping[str, Any], tokenizer: int | None = None
    ) -> TextFormat:
        """Sizes and prompts; `tokenizer` is the version of the checkpoint's Tekken vocabulary, None where it has none."""

    def audio_format(self, config: Mapping[str, Any]) -> AudioFormat: ...

    def stages(self, config: Mapping[str, Any], context: int) -> tuple[TracedStage, ...]:
        """Its graphs for up to `context` tokens, traced with torch over fake weights."""


def family(model_type: object) -> Family:
    """The family of a `model_type`.

    Raises:
        CheckpointError: listing the families there are.
    """
    if model_type not in known():
        raise CheckpointError(
            f"model_type {model_type!r} is of no known family (known: {', '.join(known())}). "
            "A new one is a file of compiler/families: see docs/adding-a-family.md"
        )
    return cast(Family, import_module(f".{model_type}", __name__))


def mistral_family(params: Mapping[str, Any]) -> Family:
    """The family that a params.json describes.

    Raises:
        CheckpointError: listing the families there are.
    """
    for model in map(family, known()):
        if model.in_mistral_layout(params):
            return model
    raise CheckpointError(f"params.json describes no known family (known: {', '.join(known())})")


def known() -> tuple[str, ...]:
    """Every `model_type` there is a family for."""
    names = (module.name for module in pkgutil.iter_modules(__path__))
    return tuple(sorted(name for name in names if not name.startswith("_")))
