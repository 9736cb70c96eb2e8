"""The quantizers by name: how groupwise integers, and the levels of GGUF's blocks, are found. docs/quality.md compares them.

They are written here: libraries for GPTQ, AWQ and HQQ hold a model whole, and store formats of their own.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from ..kernels import groupwise, kquants, rounding
from ..kernels.rounding import Codes
from ..targets.contract import Float32, QuantizedRows, Recipe, RecipeError, UInt8, WeightFormat
from ..targets.recipes import RECIPES

Found = Codes | UInt8  # rows of a matrix as groupwise integers, or as the bytes of GGUF's blocks


@dataclass(frozen=True)
class Quantizer:
    """`on_inputs`: it has to see what a matrix is multiplied with, so that its integers are made by `ossicle quantize`.

    `scaled`: sizes of channels are moved into what comes before a matrix (AWQ). `solved`: rounding is made good in the columns
    that follow (GPTQ). `otherwise` finds the integers of a matrix whose inputs nobody saw; `left` is the share of those
    integers' loss that is left where inputs were seen.
    """

    on_inputs: bool = False
    scaled: bool = False
    solved: bool = False
    otherwise: str = "mse"
    left: float = 1.0


_SOLVED = 0.25  # of what the shipped model's matrices give, GPTQ leaves 0.18 to 0.24 of the error

QUANTIZERS: Mapping[str, Quantizer] = {
    "nearest": Quantizer(otherwise="nearest"),
    "mse": Quantizer(),
    "hqq": Quantizer(otherwise="hqq"),
    "gptq": Quantizer(on_inputs=True, solved=True, left=_SOLVED),
    "awq": Quantizer(on_inputs=True, scaled=True),
    "awq-gptq": Quantizer(on_inputs=True, scaled=True, solved=True, left=_SOLVED),
}
AT_ONCE = tuple(name for name, one in QUANTIZERS.items() if not one.on_inputs)
ON_INPUTS = tuple(name for name, one in QUANTIZERS.items() if one.on_inputs)


PARTS = ("encoder", "projector", "embedding", "decoder", "lm_head")
_LOOKED_UP = "embedding"  # a part that is multiplied with nothing


@dataclass(frozen=True)
class Choice:
    """A quantizer for each part of a model: of its own in `named`, or `otherwise`.

    Its text is what `--quantizer` takes: "gptq", "decoder=gptq,lm_head=hqq", or both, as in "mse,decoder=gptq".
    """

    otherwise: str = "nearest"
    named: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, text: str) -> "Choice":
        """The choice that a text is.

        Raises:
            RecipeError: a quantizer or a part is unknown, is named twice, or cannot go together.
        """
        entries = [entry.strip().rpartition("=")[::2] for entry in text.split(",")]
        parts = [part.strip() for part, _ in entries]
        named = {part: _known(name.strip()) for part, (_, name) in zip(parts, entries, strict=True)}
        if twice := sorted({part for part in parts if parts.count(part) > 1}):
            raise RecipeError(f"quantizer '{text}' says twice what {twice[0] or 'every part'} gets. {_FORM}")
        if unknown := [part for part in parts if part not in ("", *PARTS)]:
            raise RecipeError(f"quantizer '{text}': part '{unknown[0]}' is unknown. {_FORM}")
        if QUANTIZERS[named.get(_LOOKED_UP, "nearest")].on_inputs:
            raise RecipeError(
                f"quantizer '{text}': the embedding is looked up and multiplied with nothing, so that "
                f"'{named[_LOOKED_UP]}' has no meaning for it (possible: {', '.join(AT_ONCE)})"
            )
        return cls(named.pop("", "nearest"), {part: named[part] for part in PARTS if part in named})

    def part(self, part: str | None) -> str:
        """The quantizer of a part."""
        return self.named.get(part or "", self.otherwise)

    @property
    def quantizers(self) -> tuple[str, ...]:
        """Every quantizer that some part gets."""
        return tuple(dict.fromkeys(map(self.part, PARTS)))

    @property
    def on_inputs(self) -> bool:
        """Whether one of them has to see what matrices are multiplied with."""
        return any(QUANTIZERS[name].on_inputs for name in self.quantizers)

    def __str__(self) -> str:
        first = [self.otherwise] if self.otherwise != "nearest" or not self.named else []
        return ",".join([*first, *(f"{part}={name}" for part, name in self.named.items())])


_FORM = f"It is one name for all, or PART=NAME with commas between them (parts: {', '.join(PARTS)})"


def chosen(recipe: Recipe, quantizer: str | None, quantized: Path | None) -> Recipe:
    """The recipe with this quantizer, or with that of a file of quantized weights.

    Raises:
        RecipeError: there is no such quantizer, it needs such a file, or the recipe has no groupwise integers for it.
        BuildError: the file is none.
    """
    from . import quantized as files

    if quantizer is None:
        quantizer = files.quantizer_of(quantized) if quantized else recipe.quantizer
    asked = checked(recipe, quantizer)
    if asked.on_inputs and quantized is None:
        raise RecipeError(
            f"quantizer '{asked}' has to see what each matrix is multiplied with (without: {', '.join(AT_ONCE)}). Make its "
            f"integers once, for every target: ossicle quantize CHECKPOINT --quantizer {asked} {option(recipe.name)} "
            "--out FILE; then build with --quantized FILE"
        )
    if quantized and files.quantizer_of(quantized) != str(asked):
        raise RecipeError(
            f"'{quantized}' is of quantizer '{files.quantizer_of(quantized)}', not '{asked}'. Leave --quantizer out"
        )
    return replace(recipe, quantizer=str(asked))


def checked(recipe: Recipe, text: str) -> Choice:
    """The choice that a text is, where it has something to do in a recipe.

    Raises:
        RecipeError: it has not, or it is no choice.
    """
    choice = Choice.of(text)
    for part, name in choice.named.items():
        _check_meaning(recipe, (part,), name, f"the {part} of ")
    if not choice.named:
        _check_meaning(recipe, ("decoder", "lm_head"), choice.otherwise, "")
    return choice


def option(recipe: str) -> str:
    """How a command names a recipe: those that are in no list are in a file."""
    return f"--quant {recipe}" if recipe in RECIPES else f"--recipe FILE (of recipe '{recipe}')"


def _check_meaning(recipe: Recipe, parts: tuple[str, ...], name: str, place: str) -> None:
    """Refuse a quantizer other than `nearest` for parts that store nothing it finds."""
    stored = [form for part in parts for form in _formats(recipe, part)]
    if name == "nearest" or any(finds(name, form) for form in stored):
        return
    said = f"quantizer '{name}' has no meaning for {place}recipe '{recipe.name}', which stores "
    said += f"{', '.join(dict.fromkeys(form.name for form in stored))}: it finds groupwise integers"
    if any(form.is_block for form in stored):
        raise RecipeError(
            f"{said}. GGUF's blocks have ggml's search, weighed with --imatrix FILE, "
            f"or {', '.join(ON_INPUTS)}: ossicle quantize CHECKPOINT --quantizer gptq {option(recipe.name)} --out FILE"
        )
    having = [name for name, one in RECIPES.items() if groupwise_integers(one.decoder)]
    raise RecipeError(f"{said} (those have: {', '.join(having)})")


def _formats(recipe: Recipe, part: str) -> list[WeightFormat]:
    """What matrices of a part are stored in; those of the projector as those of the encoder."""
    held = "encoder" if part == "projector" else part
    return [getattr(recipe, held), *(one.format for one in recipe.overrides if one.part == held)]


def _known(name: str) -> str:
    if name not in QUANTIZERS:
        raise RecipeError(f"quantizer '{name}' is unknown (there are: {', '.join(QUANTIZERS)}). See docs/quality.md")
    return name


def groupwise_integers(form: WeightFormat) -> bool:
    """Whether a format is one that every target may hold integers of."""
    return not form.is_float and not form.kind


def finds(name: str, form: WeightFormat) -> bool:
    """Whether a quantizer has something to find in a format: where it sees no inputs, blocks are left to ggml's search."""
    return groupwise_integers(form) or (form.is_block and QUANTIZERS[name].on_inputs)


def without_inputs(name: str) -> str:
    """The quantizer of a matrix whose inputs nobody saw."""
    return QUANTIZERS[name].otherwise


def left(name: str, form: WeightFormat, *, linear: bool) -> float:
    """The share of a tensor's loss that is left by a quantizer that sees inputs, where the tensor has some."""
    return QUANTIZERS[name].left if linear and not form.is_float else 1.0


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


def found(values: Float32, form: WeightFormat, quantizer: str, importance: Float32 | None) -> Found:
    """Rows of a matrix [N, K] as groupwise integers, or as GGUF's blocks by ggml's search.

    Raises:
        ValueError: a weight is not finite, or too large for a float16 scale.
    """
    if form.is_block:
        return kquants.quantize(values, form.kind, importance)
    return codes(rows(0, values, form, quantizer, importance), form)


def numbers(found: Found, form: WeightFormat) -> Float32:
    """What integers or blocks of a format stand for [N, K]."""
    if isinstance(found, Codes):
        return rounding.dequantize(found, form.group)
    return kquants.dequantize(found, form.kind)


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
