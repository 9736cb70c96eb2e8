"""How large a target's files come out, reckoned from the shapes of the weights: nothing is traced and no number is read."""

from collections.abc import Sequence
from math import prod

from ..kernels import palettes
from . import coreml, gguf, gguf_blocks, tensorrt
from .contract import Recipe, WeightFormat, WeightStore
from .recipes import FLOAT8, INT3, PALETTES

_HEAD = 12_000
_BESIDE = {  # bytes a layer of the audio encoder, and of the decoder
    "onnx": (32_000, 14_000),
    "openvino": (72_000, 220_000),
    "gguf": (2_000, 4_000),
    "coreml": (20_000, 50_000),
    "tensorrt": (30_000, 40_000),
}
# Bytes a matrix of an adapter in its file, and a matrix that any adapter changes in the graph that it is added in.
_BESIDE_ADAPTERS = {"onnx": (300, 900), "gguf": (250, 0)}
_VOCABULARIES = {("gguf", gguf.DECODER): 1, ("openvino", gguf.EMBEDDING): 2}  # how often a file repeats the vocabulary
_HALF_SCALES = ("openvino", "coreml")  # whose scales are float16 whatever they compute in


def stage_bytes(target: str, stage: str, names: Sequence[str], recipe: Recipe, weights: WeightStore) -> int:
    """Bytes of the weights `names` that a target stores for a stage; metadata and tables of positions are not among them."""
    if target == "gguf":
        return gguf.stage_bytes(stage, names, weights)
    width = 4 if computes_in(target, recipe) == "float32" else 2
    scale = 2 if target in _HALF_SCALES else width
    whole = (target, stage) != ("onnx", gguf.EMBEDDING)  # whose rows end where the columns do
    return sum(tensor_bytes(weights.source(name).shape, weights.format(name), width, scale, whole) for name in names)


def weight_bytes(target: str, stage: str, name: str, recipe: Recipe, weights: WeightStore) -> int:
    """Bytes of one of a stage's weights alone."""
    if target != "gguf" or stage == gguf.AUDIO_ENCODER:
        return stage_bytes(target, stage, (name,), recipe, weights)
    embedding = gguf.stage_bytes(gguf.DECODER, (), weights)  # which lies in the decoder's file
    return embedding if stage == gguf.EMBEDDING else gguf.stage_bytes(stage, (name,), weights) - embedding


def beside_weights(target: str, stage: str, layers: int, tokenizer: int) -> int:
    """Bytes to set apart for what an artifact holds beside its weights: its graph, the gaps between weights, its tokenizer.

    Of so many layers, and a vocabulary that takes `tokenizer` bytes. A little more than bundles of the shipped model have.
    """
    layer = _BESIDE[target][stage != gguf.AUDIO_ENCODER]
    return (
        _HEAD + (0 if stage == gguf.EMBEDDING else layers * layer) + tokenizer * _VOCABULARIES.get((target, stage), 0)
    )


def adapter_bytes(target: str, numbers: int, recipe: Recipe) -> int:
    """Bytes of run-time adapters of so many numbers; 0 where a target keeps none."""
    width = {"onnx": 4 if computes_in("onnx", recipe) == "float32" else 2, "gguf": 4}
    return numbers * width.get(target, 0)


def beside_adapters(target: str, held: int, changed: int) -> int:
    """Bytes to set apart beside the numbers of adapters that hold so many matrices and change so many of a decoder's."""
    in_file, in_graph = _BESIDE_ADAPTERS.get(target, (0, 0))
    return held * in_file + changed * in_graph


def unfolded_bytes(target: str, names: Sequence[str], weights: WeightStore) -> int:
    """Bytes that a target's engine holds beyond those stored: OpenVINO has four bits of three in memory."""
    if target != "openvino":
        return 0
    held = [weights.source(name).shape for name in names if weights.format(name) == INT3]
    numbers = sum(int(prod(shape[:-1])) * -(-shape[-1] // INT3.group) * INT3.group for shape in held)
    return numbers // 8


def embedding_bytes(target: str, name: str, recipe: Recipe, weights: WeightStore) -> int:
    """Bytes of the token embedding, whichever file of the target it is in."""
    if target == "gguf":
        return gguf.stage_bytes(gguf.DECODER, (), weights)
    return stage_bytes(target, gguf.EMBEDDING, (name,), recipe, weights)


def table_width(target: str, width: int) -> int:
    """Bytes of a sine or cosine in the decoder's table, where floats have `width`; llama.cpp computes them itself."""
    return {"gguf": 0, "openvino": 4}.get(target, width)


def positions(target: str, recipe: Recipe) -> int:
    """Positions that a target's decoder has a table for, where nobody asks for others."""
    return min(recipe.context, coreml.CONTEXT) if target == "coreml" else recipe.context


def computes_in(target: str, recipe: Recipe) -> str:
    """What a target's floats are stored in and its engine computes with: "float32" or "float16"."""
    return tensorrt.compute(recipe) if target in ("coreml", "tensorrt") else recipe.compute


def bits(form: WeightFormat) -> float:
    """Bits that a format has for a number, with its share of scales in float16: the same in every target that holds it."""
    block = gguf_blocks.holding(form) if form.is_block else None
    if block:
        return 8 * block.size / block.block
    shared = 16 + (0 if form.symmetric else form.bits)
    return form.bits + (shared / form.group if form.group else 0.0)


def tensor_bytes(shape: tuple[int, ...], form: WeightFormat, width: int, scale: int, whole: bool) -> int:
    """Bytes of one weight; `width` is that of a float, `scale` that of a scale, `whole`: the last group is filled up."""
    if form == FLOAT8:
        return prod(shape) + shape[0] * width
    if form in PALETTES:
        tables = shape[0] // palettes.height(shape[0])
        return -(-prod(shape) * form.bits // 8) + tables * 2 * (1 << form.bits)
    if form.is_float:
        return prod(shape) * min(width, form.bits // 8)
    rows, groups = prod(shape[:-1]), -(-shape[-1] // form.group)
    zero_points = 0 if form.symmetric else -(-groups * form.bits // 8)
    columns = groups * form.group if whole else shape[-1]
    return rows * (columns * form.bits // 8 + groups * scale + zero_points)
