"""What OpenVINO is told for a stage: arithmetic as the recipe has it, in the form that is fastest here."""

import os
from collections.abc import Mapping, Sequence
from typing import Any

from .options import Options
from .processor import processor

CACHE = "OSSICLE_OPENVINO_CACHE"
GROUP = 128  # neighbours that share a scale where activations are quantized on the fly beside floats
KV_CACHES = {"float32": "f32", "float16": "f16", "int8": "u8"}
BFLOAT16 = frozenset({"avx512_bf16", "amx_bf16"})  # instruction sets that multiply in it
_PARTS = {"audio_encoder": "encoder", "embed_tokens": "embedding", "decoder": "decoder"}


def settings(
    recipe: Mapping[str, Any], options: Options, devices: Sequence[str] = ("CPU",), *, stage: str = "decoder"
) -> dict[str, Any]:
    """What the engine is told; with "auto", for each of the devices that it may choose."""
    chosen: dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY"}
    if options.provider == "auto":
        chosen["DEVICE_PROPERTIES"] = {
            device: _of_device(recipe, options, device.split(".")[0].lower(), stage) for device in devices
        }
    else:
        chosen |= _of_device(recipe, options, options.provider, stage)
    if cache := os.environ.get(CACHE):
        chosen["CACHE_DIR"] = cache
    return chosen


def _of_device(recipe: Mapping[str, Any], options: Options, device: str, stage: str) -> dict[str, Any]:
    """Coarser than float32 only where the recipe allows it. An NPU has float16 alone.

    Activations are quantized in the groups of the weights: larger ones are slower and coarser.
    """
    if device not in ("cpu", "gpu"):
        return {}
    group = recipe[_PARTS[stage]]["group"] or GROUP
    chosen = {
        "INFERENCE_PRECISION_HINT": _precision(recipe, device, stage),
        "KV_CACHE_PRECISION": KV_CACHES[options.kv_cache or ("float16" if _is_half(recipe) else "float32")],
        "DYNAMIC_QUANTIZATION_GROUP_SIZE": group if recipe["integer_activations"] else 0,
    }
    if device == "cpu" and options.threads:
        chosen["INFERENCE_NUM_THREADS"] = options.threads
    return chosen


def _precision(recipe: Mapping[str, Any], device: str, stage: str) -> str:
    """What is computed in where it is not integers.

    Where activations may be integers, a GPU takes float16, and a CPU that multiplies in bfloat16 takes that for the audio
    encoder. A decoder's steps gain nothing from it there.
    """
    integers = recipe["integer_activations"]
    if device == "gpu":
        return "f16" if integers or _is_half(recipe) else "f32"
    if integers and stage == "audio_encoder" and BFLOAT16 & set(processor().instruction_sets):
        return "bf16"
    return "f32"


def _is_half(recipe: Mapping[str, Any]) -> bool:
    return bool(recipe["compute"] == "float16")
