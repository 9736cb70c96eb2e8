"""A checkpoint's weights under a recipe: which format each tensor gets, and its integers, made once for every target."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from functools import cached_property, partial

import numpy as np

from ..kernels import kquants
from ..targets.contract import (
    CheckpointError,
    Float32,
    Override,
    QuantizedRows,
    QuantizedTensor,
    Recipe,
    TensorSource,
    UInt8,
    WeightFormat,
)
from ..targets.gguf_mixes import fitting, in_layers, queries
from . import quantizers
from .checkpoint import Checkpoint
from .families import Family, family
from .quantized import Quantized

_BLOCK = 1 << 22  # elements of a row block


@dataclass(frozen=True)
class Weights:
    """The `WeightStore` of one checkpoint and recipe; `family` says to which part of the recipe a tensor belongs.

    `importances` are by canonical name; a tensor that is not among them has none. `made` are the integers that were made
    beforehand, and what was folded into other tensors for them.
    """

    tensors: Mapping[str, TensorSource]
    recipe: Recipe
    family: Family
    tied: bool = False
    importances: Mapping[str, Float32] = field(default_factory=dict, repr=False)
    made: Quantized | None = field(default=None, repr=False)

    def source(self, name: str) -> TensorSource:
        return self.tensors[name] if self.made is None else self.made.folded(self.tensors[name])

    def format(self, name: str) -> WeightFormat:
        """The recipe's format for a matrix of one of its parts, as far as its rows fit; the recipe's float for all else.

        A matrix may be stored in narrower floats than the recipe computes in.
        """
        floats = WeightFormat(32 if self.recipe.compute == "float32" else 16)
        part = self._part(name)
        if part is None:
            return floats
        form: WeightFormat = self._overridden.get(name) or getattr(self.recipe, part)
        if form.is_float and not form.kind:
            return form if form.bits < floats.bits else floats
        return fitting(form, self.tensors[name].shape[-1])

    def importance(self, name: str) -> Float32 | None:
        return self.importances.get(name)

    def quantizer(self, name: str) -> str:
        """What finds the tensor's integers: one of `quantizers.QUANTIZERS`."""
        return self._choice.part(self.family.part(name))

    def quantized(self, name: str) -> QuantizedTensor:
        source, form = self.source(name), self.format(name)
        shape = source.shape[0], source.shape[1]
        if self.made is not None and name in self.made.formats:
            return QuantizedTensor(name, shape, form, partial(self.made.blocks, name))
        quantizer = quantizers.without_inputs(self.quantizer(name))
        weighed = self.importance(name)
        return QuantizedTensor(name, shape, form, lambda: _blocks(source, form, quantizer, weighed))

    def packed(self, name: str, start: int, stop: int) -> UInt8:
        if self.made is not None and name in self.made.formats:
            return self.made.packed(name, start, stop)
        values = self.source(name).rows(start, stop)
        return kquants.quantize(values, self.format(name).kind, self.importance(name))

    def _part(self, name: str) -> str | None:
        """The part of the recipe that a matrix belongs to. An embedding of blocks that is the head is stored as the head."""
        part = self.family.part(name)
        if part is None or not (self.family.linear(name) or part == "embedding"):
            return None
        if part == "embedding" and self.tied and self.recipe.embedding.kind:
            return "lm_head"
        return "encoder" if part == "projector" else part

    @cached_property
    def _choice(self) -> quantizers.Choice:
        return quantizers.Choice.of(self.recipe.quantizer)

    @cached_property
    def _overridden(self) -> Mapping[str, WeightFormat]:
        """The format of every tensor that an override of the recipe fits."""
        found: dict[str, WeightFormat] = {}
        for override in self.recipe.overrides:
            names = [name for name in self.tensors if self._part(name) == override.part]
            found = dict.fromkeys(_chosen(override, names, self._shared), override.format) | found
        return found

    @cached_property
    def _shared(self) -> int:
        """How many query heads of the decoder share a head of keys and values."""
        return queries({name: self.tensors[name].shape[0] for name in self.tensors if self._part(name) == "decoder"})


def weights_of(checkpoint: Checkpoint, recipe: Recipe) -> Weights:
    """The weights of an opened checkpoint under a recipe."""
    model = family(checkpoint.family)
    weights = Weights(checkpoint.tensors, recipe, model, checkpoint.tied, checkpoint.importances, checkpoint.quantized)
    return replace(weights, tied=checkpoint.tied and not _head_apart(weights))


def _head_apart(weights: Weights) -> bool:
    """Whether the head's integers are found otherwise than the embedding's, so that they are not the same numbers."""
    embedding, head = weights.family.EMBEDDING, weights.family.LM_HEAD
    if weights.made is not None and head in weights.made.formats:
        return True
    if not quantizers.groupwise_integers(weights.format(head)):
        return False
    by = weights.quantizer(head)
    return by != weights.quantizer(embedding) or (by == "mse" and weights.importance(head) is not None)


def _chosen(override: Override, names: list[str], shared: int) -> list[str]:
    """Those of a part's tensors that an override is for, where so many query heads share a head of keys and values."""
    named = [name for name in names if fnmatchcase(name, override.tensors)]
    layers = {name: int(found[1]) for name in named if (found := re.search(r"\.(\d+)\.", name))}
    if not layers:
        return named if override.layers == "all" else []
    count = len(set(layers.values()))
    return [name for name, layer in layers.items() if in_layers(override.layers, layer, count, shared)]


def _blocks(
    source: TensorSource, form: WeightFormat, quantizer: str, importance: Float32 | None
) -> Iterator[QuantizedRows]:
    rows, columns = source.shape
    height = max(1, _BLOCK // columns)
    for start in range(0, rows, height):
        values = source.rows(start, min(start + height, rows))
        try:
            yield quantizers.rows(start, np.ascontiguousarray(values), form, quantizer, importance)
        except ValueError as reason:
            raise CheckpointError(
                f"tensor '{source.name}' cannot be stored as {form.name}: rows {start} to {start + len(values)}: {reason}. "
                "Repair the checkpoint, or build with --quant fp32"
            ) from reason
