"""The quantizers by name: how the integers of groupwise formats are found. docs/quality.md compares them.

They are written here: libraries for GPTQ, AWQ and HQQ hold a model whole, and store formats of their own.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from ..kernels import groupwise, rounding
from ..kernels.rounding import Codes
from ..targets.contract import Float32, QuantizedRows, Recipe, RecipeError, WeightFormat


@dataclass(frozen=True)
class Quantizer:
    """`on_inputs`: it has to see what a matrix is multiplied with, so that its integers are made by `ossicle quantize`.

    `scaled`: sizes of channels are moved into what comes before a matrix (AWQ). `solved`: rounding is made good in the columns
    that follow (GPTQ). `otherwise` finds the integers of a matrix whose inputs nobody saw.
    """

    on_inputs: bool = False
    scaled: bool = False
    solved: bool = False
    otherwise: str = "mse"


QUANTIZERS: Mapping[str, Quantizer] = {
    "nearest": Quantizer(otherwise="nearest"),
    "mse": Quantizer(),
    "hqq": Quantizer(otherwise="hqq"),
    "gptq": Quantizer(on_inputs=True, solved=True),
    "awq": Quantizer(on_inputs=True, scaled=True),
    "awq-gptq": Quantizer(on_inputs=True, scaled=True, solved=True),
}
AT_ONCE = tuple(name for name, one in QUANTIZERS.items() if not one.on_inputs)
ON_INPUTS = tuple(name for name, one in QUANTIZERS.items() if one.on_inputs)


def chosen(recipe: Recipe, quantizer: str | None, quantized: Path | None) -> Recipe:
    """The recipe with this quantizer, or with that of a file of quantized weights.

    Raises:
        RecipeError: there is no such quantizer, it needs such a file, or the recipe has no groupwise integers for it.
        BuildError: the file is none.
    """
    from . import quantized as files

    name = quantizer or (files.quantizer_of(quantized) if quantized else recipe.quantizer)
    checked(recipe, name)
    if QUANTIZERS[name].on_inputs and quantized is None:
        raise RecipeError(
            f"quantizer '{name}' has to see what each matrix is multiplied with (without: {', '.join(AT_ONCE)}). Make its "
            f"integers once, for every target: ossicle quantize CHECKPOINT --quantizer {name} --quant {recipe.name} "
            "--out FILE; then build with --quantized FILE"
        )
    if quantized and files.quantizer_of(quantized) != name:
        raise RecipeError(
            f"'{quantized}' is of quantizer '{files.quantizer_of(quantized)}', not '{name}'. Leave --quantizer out"
        )
    return replace(recipe, quantizer=name)


def checked(recipe: Recipe, name: str) -> None:
    """Refuse a quantizer that there is not, or that has nothing to do in a recipe.

    Raises:
        RecipeError: so it is.
    """
    if name not in QUANTIZERS:
        raise RecipeError(f"quantizer '{name}' is unknown (there are: {', '.join(QUANTIZERS)}). See docs/quality.md")
    decoder = [recipe.decoder, recipe.lm_head, *(one.format for one in recipe.overrides)]
    if name != "nearest" and not any(map(groupwise_integers, decoder)):
        stored = ", ".join(dict.fromkeys(form.name for form in decoder))
        raise RecipeError(
            f"quantizer '{name}' has no meaning for recipe '{recipe.name}', which stores {stored}: it finds groupwise integers "
            "(those have: int8, int4, int4-asymmetric, int4-g128). K-quants take an importance matrix: --imatrix FILE"
        )


def groupwise_integers(form: WeightFormat) -> bool:
    """Whether a format is one that quantizers find integers for."""
    return not form.is_float and not form.kind


def without_inputs(name: str) -> str:
    """The quantizer of a matrix whose inputs nobody saw."""
    return QUANTIZERS[name].otherwise


def rows(start: int, values: Float32, form: WeightFormat, quantizer: str, importance: Float32 | None) -> QuantizedRows:
    """Rows [start:] of a matrix as groupwise integers.

    Raises:
        ValueError: a weight is not finite, or too large for a float16 scale.
    """
    if quantizer == "nearest":
        return _nearest(start, values, form)
    if quantizer == "hqq":
        return stored(start, rounding.half_quadratic(values, form.bits, form.group, form.symmetric), form)
    return stored(start, rounding.least_squares(values, form.bits, form.group, form.symmetric, importance), form)


def stored(start: int, found: Codes, form: WeightFormat) -> QuantizedRows:
    """Codes as they cross to targets."""
    return QuantizedRows(start, found.codes, found.scales, None if form.symmetric else found.zeros)


def codes(found: QuantizedRows, form: WeightFormat) -> Codes:
    """Codes as kernels have them."""
    middle = np.full(found.scales.shape, 1 << form.bits - 1, np.uint8)
    return Codes(found.codes, found.scales, middle if found.zero_points is None else found.zero_points)


def _nearest(start: int, values: Float32, form: WeightFormat) -> QuantizedRows:
    if form.symmetric:
        coded, scales = groupwise.quantize_symmetric(values, form.bits, form.group)
        return QuantizedRows(start, coded, scales, None)
    return QuantizedRows(start, *groupwise.quantize_asymmetric(values, form.bits, form.group))
