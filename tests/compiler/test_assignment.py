"""Which stages each target of a bundle is built for."""

from dataclasses import replace

import pytest
from ossicle.compiler.assignment import assign
from ossicle.targets.contract import STAGES, RecipeError
from ossicle.targets.gguf_mixes import Q4_K
from ossicle.targets.recipes import RECIPES

ENCODER = ("audio_encoder",)


@pytest.mark.parametrize(
    ("targets", "recipe", "expected"),
    [
        (("onnx",), "int4", {"onnx": STAGES}),
        (("gguf", "onnx"), "int4", {"gguf": STAGES, "onnx": STAGES}),
        (("gguf",), "int4", {"onnx": ENCODER, "gguf": STAGES}),
        (("gguf",), "q4_k_m", {"onnx": ENCODER, "gguf": STAGES}),
        (("onnx", "gguf"), "q4_k_m", {"onnx": ENCODER, "gguf": STAGES}),
        (("gguf", "onnx"), "bf16", {"gguf": STAGES, "onnx": ENCODER}),
    ],
)
def test_a_decoder_that_takes_audio_gets_an_encoder_beside(targets, recipe, expected):
    assert list(assign(targets, RECIPES[recipe]).items()) == list(expected.items())


def test_openvino_can_be_the_encoder_beside():
    pytest.importorskip("openvino")
    assert assign(("openvino", "gguf"), RECIPES["q6_k"]) == {"openvino": ENCODER, "gguf": STAGES}


def test_what_no_target_of_a_bundle_holds_is_refused():
    with pytest.raises(RecipeError, match="'onnx' cannot hold Q4_K for embedding, Q4_K for decoder"):
        assign(("onnx",), RECIPES["q4_k_m"])
    with pytest.raises(RecipeError, match="'gguf' cannot hold int4-g128 for decoder"):
        assign(("onnx", "gguf"), RECIPES["int4-g128"])
    with pytest.raises(RecipeError, match="'onnx' cannot hold Q4_K for encoder"):
        assign(("gguf",), replace(RECIPES["q4_k_m"], encoder=Q4_K))
    with pytest.raises(RecipeError, match="target 'tflite' is unknown"):
        assign(("tflite",), RECIPES["int4"])
