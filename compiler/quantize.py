"""A checkpoint's weights under a recipe: which format each tensor gets, and its integers, made once for every target."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from ..kernels import groupwise
from ..targets.contract import (
    CheckpointError,
    QuantizedRows,
    QuantizedTensor,
    Recipe,
    TensorSource,
    WeightFormat,
)
from .families import Family

_BLOCK = 1 << 22  # elements of a row block


@dataclass(frozen=True)
class Weights:
    """The `WeightStore` of one checkpoint and recipe; `family` says to which part of the recipe a tensor belongs."""

    tensors: Mapping[str, TensorSource]
    recipe: Recipe
    family: Family

    def source(self, name: str) -> TensorSource:
        return self.tensors[name]

    def format(self, name: str) -> WeightFormat:
        """The recipe's format for a matrix of one of its parts; the recipe's float for all else."""
        floats = WeightFormat(32 if self.recipe.compute == "float32" else 16)
        part = self.family.part(name)
        if part is None or not (self.family.linear(name) or part == "embedding"):
            return floats
        form: WeightFormat = getattr(self.recipe, "encoder" if part == "projector" else part)
        return floats if form.is_float else form

    def quantized(self, name: str) -> QuantizedTensor:
        source, form = self.tensors[name], self.format(name)
        return QuantizedTensor(name, (source.shape[0], source.shape[1]), form, lambda: _blocks(source, form))


def _blocks(source: TensorSource, form: WeightFormat) -> Iterator[QuantizedRows]:
    rows, columns = source.shape
    height = max(1, _BLOCK // columns)
    for start in range(0, rows, height):
        values = source.rows(start, min(start + height, rows))
        try:
            yield _quantize(start, np.ascontiguousarray(values), form)
        except ValueError as reason:
            raise CheckpointError(
                f"tensor '{source.name}' cannot be stored as {form.name}: rows {start} to {start + len(values)}: {reason}. "
                "Repair the checkpoint, or build with --quant fp32"
            ) from reason


def _quantize(start: int, values: np.ndarray, form: WeightFormat) -> QuantizedRows:
    if form.symmetric:
        codes, scales = groupwise.quantize_symmetric(values, form.bits, form.group)
        return QuantizedRows(start, codes, scales, None)
    codes, scales, zero_points = groupwise.quantize_asymmetric(values, form.bits, form.group)
    return QuantizedRows(start, codes, scales, zero_points)
