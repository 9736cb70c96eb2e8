"""What a bundle takes, before anything is built: sizes, and memory by part. compiler/forecast.py has speeds.

docs/plan.md has the formulas. Sizes come from the shapes of the weights, so that neither weights nor torch are needed: a folder
that holds only a configuration is enough.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from ..targets import needs, sizes
from ..targets.contract import STAGE_PARTS, BuildError, Float32, Recipe, RecipeError, WeightFormat
from .assignment import assign, serving
from .checkpoint import Checkpoint, configured
from .families import Family, family
from .quantize import Weights


@dataclass(frozen=True)
class Shape:
    """A tensor that is known by its shape alone."""

    name: str
    shape: tuple[int, ...]
    dtype: str = "bfloat16"

    def rows(self, start: int, stop: int) -> Float32:
        raise BuildError(f"'{self.name}' has no numbers here: rows {start} to {stop} were asked for of a plan")


@dataclass(frozen=True)
class Model:
    """What a plan is made for: a family's model of these sizes."""

    name: str
    family: Family = field(repr=False)
    config: Mapping[str, Any] = field(repr=False)
    tied: bool

    @cached_property
    def tensors(self) -> dict[str, Shape]:
        return {name: Shape(name, shape) for name, shape in self.family.parameters(self.config).items()}

    @cached_property
    def stages(self) -> dict[str, list[str]]:
        """The canonical names of each stage's weights."""
        part = {name: self.family.part(name) for name in self.tensors}
        held = {stage: (*parts, *(["projector"] if "encoder" in parts else [])) for stage, parts in STAGE_PARTS.items()}
        return {stage: [name for name in self.tensors if part[name] in parts] for stage, parts in held.items()}


@dataclass(frozen=True)
class Matrices:
    """How many numbers of a part's matrices, that activations are multiplied with, are stored in a format."""

    part: str  # "encoder" with its projector, "decoder", "lm_head"
    format: WeightFormat
    numbers: int


@dataclass(frozen=True)
class Size:
    """What a bundle of one target and recipe takes, in bytes.

    `stored` is by the stages that it is built of, those of another target that serve it among them; `encoder`, `embedding`
    and `decoder` are what its engines hold, `decoder` what a step reads of it.
    """

    target: str
    recipe: str
    stored: Mapping[str, int]
    encoder: int
    embedding: int
    decoder: int
    kv_per_token: int
    working: int
    layers: int  # of the decoder
    matrices: tuple[Matrices, ...] = field(repr=False)
    prepared: int  # tokens that a sequence of it may have
    adapters: int = 0  # those kept for run time

    @property
    def total(self) -> int:
        return sum(self.stored.values()) + self.adapters

    @property
    def bits(self) -> float:
        """Bits that the numbers of its matrices have: the more, the less they differ from the original's."""
        return sum(one.numbers * sizes.bits(one.format) for one in self.matrices)

    def kept(self, context: int) -> int:
        """Tokens that keys and values are kept of where a context of so many is asked for."""
        return min(context, self.prepared)

    def memory(self, context: int) -> int:
        """Bytes that running it takes with a context of so many tokens, each adapter held once."""
        weights = self.encoder + self.embedding + self.decoder + self.adapters
        return weights + self.kv_per_token * context + self.working


def described(location: str | Path) -> Model:
    """The model that a checkpoint's folder or hub id describes; its configuration is enough.

    Raises:
        CheckpointError: there is none.
    """
    name, found, config = configured(location)
    return Model(name, found, config, found.tied(config))


def model_of(checkpoint: Checkpoint) -> Model:
    """The model that a checkpoint holds."""
    return Model(checkpoint.name, family(checkpoint.family), checkpoint.config, checkpoint.tied)


def plan(model: Model, targets: Sequence[str], recipes: Sequence[Recipe], adapters: int = 0) -> list[Size]:
    """The size of every recipe in every target that holds it, with run-time adapters of so many numbers where it keeps any.

    Raises:
        RecipeError: none of the targets holds any of the recipes.
    """
    found = [
        _whole(model, target, recipe, adapters) for recipe in recipes for target in targets if holds(target, recipe)
    ]
    if not found:
        told = ", ".join(f"'{recipe.name}'" for recipe in recipes)
        raise RecipeError(
            f"none of the targets {', '.join(targets)} holds {told}. See which holds what: ossicle targets"
        )
    return found


def _whole(model: Model, target: str, recipe: Recipe, adapters: int) -> Size:
    """The size of a bundle as `ossicle build` makes it."""
    one = size(model, target, recipe, sizes.positions(target, recipe))
    return replace(one, adapters=sizes.adapter_bytes(target, adapters, recipe))


def holds(target: str, recipe: Recipe) -> bool:
    """Whether a target has a place for what a recipe stores, whether or not what writes it is installed."""
    try:
        assign((target,), recipe)
    except RecipeError:
        return False
    except BuildError:
        return True
    return True


def size(model: Model, target: str, recipe: Recipe, context: int, targets: Sequence[str] = ()) -> Size:
    """What a bundle of one target takes, whose tables are prepared for `context` tokens.

    Of `targets` in the same bundle, one may serve it with its audio encoder.
    """
    weights = Weights(model.tensors, recipe, model.family, model.tied)
    stored = {
        f"{name} {stage}": sizes.stage_bytes(name, stage, model.stages[stage], recipe, weights)
        for name, stage in serving(target, targets or (target,), recipe)
    }
    text = model.family.text_format(model.config, {})
    width = 2 if sizes.computes_in(target, recipe) == "float16" else 4
    stored[f"{target} decoder"] += sizes.table_width(target, width) * min(context, text.context) * text.head_dim
    embedding = sizes.embedding_bytes(target, model.family.EMBEDDING, recipe, weights)
    decoder = stored[f"{target} decoder"] - (embedding if target == "gguf" else 0)
    decoder += sizes.unfolded_bytes(target, model.stages["decoder"], weights)
    hearing = next(name for name in stored if name.endswith("audio_encoder"))
    encoder = stored[hearing] + sizes.unfolded_bytes(hearing.split()[0], model.stages["audio_encoder"], weights)
    kept = 2 * text.layers * text.kv_heads * text.head_dim * width
    held = tuple(_matrices(model, weights))
    working, prepared = _working(model, width), min(text.context, sizes.positions(target, recipe))
    return Size(target, recipe.name, stored, encoder, embedding, decoder, kept, working, text.layers, held, prepared)


def _matrices(model: Model, weights: Weights) -> Iterator[Matrices]:
    counted: dict[tuple[str, WeightFormat], int] = {}
    for name in filter(model.family.linear, model.tensors):
        part = model.family.part(name)
        key = "encoder" if part == "projector" else str(part), weights.format(name)
        counted[key] = counted.get(key, 0) + math.prod(model.tensors[name].shape)
    for (held, form), numbers in counted.items():
        yield Matrices(held, form, numbers)


def _working(model: Model, width: int) -> int:
    tall = {
        stage: needs.tallest({name: model.tensors[name].shape for name in names})
        for stage, names in model.stages.items()
    }
    return max(needs.working(stage, rows, width) for stage, rows in tall.items())
