"""The named precisions: what `--quant` takes."""

from collections.abc import Mapping

from . import gguf_mixes
from .contract import Recipe, RecipeError, Thresholds, WeightFormat
from .gguf_mixes import BFLOAT16, Q2_K, Q3_K, Q4_K, Q5_K, Q6_K

FLOAT32 = WeightFormat(32)
FLOAT16 = WeightFormat(16)
INT8 = WeightFormat(8, 32)
INT8_G64, INT8_WIDE = WeightFormat(8, 64), WeightFormat(8, 128)
INT4 = WeightFormat(4, 32)
INT4_ASYMMETRIC = WeightFormat(4, 32, symmetric=False)
INT4_WIDE = WeightFormat(4, 128)
INT3 = WeightFormat(3, 32)
FLOAT8 = WeightFormat(8, kind="float8_e4m3fn")  # with a float16 scale for every row
PALETTE4 = WeightFormat(4, kind="palette4")  # codes into sixteen float16 levels, which sixteen rows share
PALETTE3 = WeightFormat(3, kind="palette3")  # into eight
PALETTES = (PALETTE4, PALETTE3)

# Engines add float32 numbers up in their own order. ONNX Runtime stays within 1e-4 of torch on the shipped model,
# llama.cpp goes a little beyond in long recordings.
_FLOAT32_LOGITS = 3e-4


def _integers(name: str, form: WeightFormat, *, kl_stored: float = 8e-4, wer: float = 0.02) -> Recipe:
    """Few bits for what is read at every token; eight for the encoder, and for the embedding, which is only looked up."""
    return Recipe(
        name,
        encoder=INT8,
        embedding=INT8,
        decoder=form,
        lm_head=form,
        integer_activations=True,
        thresholds=Thresholds(kl=0.05, embeddings_stored=1e-2, kl_stored=kl_stored, top1=0.95, wer=wer),
    )


def _palette(name: str, form: WeightFormat, *, wer: float) -> Recipe:
    """Core ML's own: codes into tables for what is read at every token, the rest as the integer recipes have it."""
    return Recipe(
        name,
        encoder=INT8,
        embedding=INT8,
        decoder=form,
        lm_head=form,
        compute="float16",
        thresholds=Thresholds(kl=0.05, embeddings_stored=1e-2, kl_stored=8e-4, top1=0.95, wer=wer),
    )


def _k_quant(name: str, form: WeightFormat, *, kl: float, top1: float, wer: float, kl_stored: float = 8e-4) -> Recipe:
    """One of llama.cpp's mixes: its own format for most of the decoder, six bits for the head.

    The encoder is that of the integer recipes, which another engine than llama.cpp can run.
    """
    return Recipe(
        name,
        encoder=INT8,
        embedding=form,
        decoder=form,
        lm_head=Q6_K,
        integer_activations=True,
        thresholds=Thresholds(kl=kl, embeddings_stored=1e-2, kl_stored=kl_stored, top1=top1, wer=wer),
        overrides=gguf_mixes.overrides(name),
    )


RECIPES: Mapping[str, Recipe] = {
    recipe.name: recipe
    for recipe in (
        Recipe(
            "fp32",
            encoder=FLOAT32,
            embedding=FLOAT32,
            decoder=FLOAT32,
            lm_head=FLOAT32,
            thresholds=Thresholds(embeddings=1e-4, logits=_FLOAT32_LOGITS, same_text=True),
        ),
        Recipe(
            "fp16",
            encoder=FLOAT16,
            embedding=FLOAT16,
            decoder=FLOAT16,
            lm_head=FLOAT16,
            compute="float16",
            thresholds=Thresholds(embeddings=1e-2, kl=1e-4, kl_stored=1e-4, top1=0.99, wer=0.01),
        ),
        Recipe(
            "int8",
            encoder=INT8,
            embedding=INT8,
            decoder=INT8,
            lm_head=INT8,
            integer_activations=True,
            thresholds=Thresholds(kl=2e-3, embeddings_stored=1e-2, kl_stored=8e-4, top1=0.98, wer=0.01),
        ),
        _integers("int4", INT4),
        _integers("int4-asymmetric", INT4_ASYMMETRIC),
        _integers("int4-g128", INT4_WIDE),
        _integers("int3", INT3, kl_stored=2e-3, wer=0.04),
        Recipe(
            "fp8",
            encoder=FLOAT8,
            embedding=INT8,
            decoder=FLOAT8,
            lm_head=FLOAT8,
            compute="float16",
            thresholds=Thresholds(kl=0.02, embeddings_stored=1e-2, kl_stored=8e-4, top1=0.95, wer=0.02),
        ),
        _palette("palette4", PALETTE4, wer=0.02),
        _palette("palette3", PALETTE3, wer=0.04),
        Recipe(
            "bf16",
            encoder=FLOAT32,  # which holds bfloat16 exactly, and which other engines than llama.cpp can run
            embedding=BFLOAT16,
            decoder=BFLOAT16,
            lm_head=BFLOAT16,
            thresholds=Thresholds(embeddings=1e-4, kl=1e-4, kl_stored=1e-4, top1=0.99, wer=0.01),
        ),
        _k_quant("q2_k", Q2_K, kl=0.1, kl_stored=2e-3, top1=0.95, wer=0.05),
        _k_quant("q3_k_s", Q3_K, kl=0.05, top1=0.95, wer=0.02),
        _k_quant("q3_k_m", Q3_K, kl=0.05, top1=0.95, wer=0.02),
        _k_quant("q3_k_l", Q3_K, kl=0.05, top1=0.95, wer=0.02),
        _k_quant("q4_k_s", Q4_K, kl=0.02, top1=0.97, wer=0.02),
        _k_quant("q4_k_m", Q4_K, kl=0.02, top1=0.97, wer=0.02),
        _k_quant("q5_k_m", Q5_K, kl=5e-3, top1=0.98, wer=0.01),
        _k_quant("q6_k", Q6_K, kl=2e-3, top1=0.99, wer=0.01),
    )
}


def recipe(name: str) -> Recipe:
    """The recipe of this name.

    Raises:
        RecipeError: there is none.
    """
    if name not in RECIPES:
        raise RecipeError(f"precision '{name}' is unknown (there are: {', '.join(RECIPES)}). See: ossicle targets")
    return RECIPES[name]
