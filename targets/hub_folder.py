"""The configs that make a bundle's ONNX files a folder that transformers.js loads as it is.

    config.json  generation_config.json  preprocessor_config.json  tokenizer.json  tokenizer_config.json
    onnx/audio_encoder{suffix}.onnx  onnx/embed_tokens{suffix}.onnx  onnx/decoder_model_merged{suffix}.onnx
    onnx/<any of these>_data, _data_1, ...

What its loader asks for, and where that was read: docs/interop.md. Same inputs give the same bytes.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .contract import BuildError
from .manifest import AudioFormat

FOLDER = "onnx"
AUDIO_ENCODER = "audio_encoder"
EMBED_TOKENS = "embed_tokens"
DECODER = "decoder_model_merged"
STEMS = (AUDIO_ENCODER, EMBED_TOKENS, DECODER)

# What transformers.js calls a precision -> what it appends to a file's stem.
SUFFIXES = {"fp32": "", "fp16": "_fp16", "int8": "_int8", "q8": "_quantized", "q4": "_q4", "q4f16": "_q4f16"}

MAX_CHUNKS = 100
CHUNK_BYTES = 2_000_000_000  # a browser reads each file into one buffer of less than 2 GiB

CONFIGS = (
    "config.json",
    "generation_config.json",
    "preprocessor_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
)

# Without a length of its own, generate() of transformers.js stops at 20 tokens, prompt included.
_MAX_NEW_TOKENS = 1024


def model_file(stem: str, dtype: str) -> str:
    """Path of a model file within the folder: ("embed_tokens", "q4") is onnx/embed_tokens_q4.onnx.

    Raises:
        BuildError: transformers.js has no such stem or precision.
    """
    if stem not in STEMS:
        raise BuildError(f"'{stem}' is no file of a Voxtral in transformers.js (its files: {', '.join(STEMS)})")
    if dtype not in SUFFIXES:
        raise BuildError(f"'{stem}' cannot be {dtype!r} in transformers.js (it can: {', '.join(SUFFIXES)})")
    return f"{FOLDER}/{stem}{SUFFIXES[dtype]}.onnx"


def data_file(stem: str, dtype: str, chunk: int = 0) -> str:
    """Path of a chunk of a model's external data; in the model its tensors name the last part of it."""
    return f"{model_file(stem, dtype)}_data" + (f"_{chunk}" if chunk else "")


def write_configs(
    folder: Path,
    config: Mapping[str, Any],
    generation_config: Mapping[str, Any],
    audio: AudioFormat,
    dtypes: Mapping[str, str],
    external: Mapping[str, int],
    tokenizer_json: Path,
) -> tuple[str, ...]:
    """Names of the files written under `folder`.

    Args:
        config: transformers' configuration of the model, whole.
        generation_config: transformers' too; {} where the checkpoint has none.
        dtypes: precision of each model file, by stem: all of `STEMS`.
        external: number of external data chunks by stem; 0 where left out.

    Raises:
        BuildError: what transformers.js needs is missing, all of it listed.
    """
    faults = [*_config_faults(config), *_file_faults(dtypes, external)]
    if faults:
        raise BuildError(f"'{folder}' cannot be made a folder for transformers.js: " + "; ".join(faults))
    tokenizer = tokenizer_json.read_bytes()
    documents = {
        "config.json": _config(config, dtypes, external),
        "generation_config.json": _generation_config(config["text_config"], generation_config),
        "preprocessor_config.json": _preprocessor_config(audio),
        "tokenizer_config.json": _tokenizer_config(config["text_config"], generation_config, json.loads(tokenizer)),
    }
    for name, document in documents.items():
        text = json.dumps(document, indent=2, sort_keys=True, ensure_ascii=False)
        (folder / name).write_text(text + "\n", encoding="utf-8")
    (folder / "tokenizer.json").write_bytes(tokenizer)
    return CONFIGS


def _config_faults(config: Mapping[str, Any]) -> list[str]:
    text = config.get("text_config") or {}
    needed = ("model_type", "num_hidden_layers", "num_attention_heads", "hidden_size")
    faults = [f"the configuration has no text_config.{name}" for name in needed if name not in text]
    if config.get("model_type") != "voxtral":
        faults.append(f"it loads model_type 'voxtral', not {config.get('model_type')!r}")
    if config.get("audio_token_id") is None:
        faults.append("the configuration has no audio_token_id")
    return faults


def _file_faults(dtypes: Mapping[str, str], external: Mapping[str, int]) -> list[str]:
    faults = [f"the precision of '{stem}' is not given" for stem in STEMS if stem not in dtypes]
    faults += [f"'{stem}' is no file of it" for stem in sorted({*dtypes, *external} - {*STEMS})]
    faults += [
        f"'{stem}' cannot be {dtypes[stem]!r} (it can: {', '.join(SUFFIXES)})"
        for stem in STEMS
        if stem in dtypes and dtypes[stem] not in SUFFIXES
    ]
    return faults + [
        f"'{stem}' has {count} data files, of which 0 to {MAX_CHUNKS} are read"
        for stem, count in sorted(external.items())
        if not 0 <= count <= MAX_CHUNKS
    ]


def _config(config: Mapping[str, Any], dtypes: Mapping[str, str], external: Mapping[str, int]) -> dict[str, Any]:
    # `ignore_index` would be taken for the audio token, and a path is nobody else's business.
    kept = {key: value for key, value in config.items() if key not in ("ignore_index", "_name_or_path")}
    loading: dict[str, Any] = {"dtype": {stem: dtypes[stem] for stem in STEMS}}
    if chunks := {stem: count for stem, count in external.items() if count}:
        loading["use_external_data_format"] = chunks
    return {"architectures": ["VoxtralForConditionalGeneration"], **kept, "transformers.js_config": loading}


def _generation_config(text: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    inherited = {name: text[name] for name in _IDS if text.get(name) is not None}
    document = {**inherited, **{key: value for key, value in given.items() if not key.startswith("_")}}
    if "max_new_tokens" not in document and "max_length" not in document:
        document["max_new_tokens"] = _MAX_NEW_TOKENS
    return document


_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")


def _preprocessor_config(audio: AudioFormat) -> dict[str, Any]:
    samples = audio.window_frames * audio.hop
    return {
        "processor_class": "VoxtralProcessor",
        "feature_extractor_type": "WhisperFeatureExtractor",
        "chunk_length": samples // audio.sample_rate,
        "dither": 0.0,
        "feature_size": audio.mel_bins,
        "hop_length": audio.hop,
        "n_fft": audio.fft,
        "n_samples": samples,
        "nb_max_frames": audio.window_frames,
        "padding_side": "right",
        "padding_value": 0.0,
        "return_attention_mask": False,
        "sampling_rate": audio.sample_rate,
    }


def _tokenizer_config(
    text: Mapping[str, Any], generation: Mapping[str, Any], tokenizer: Mapping[str, Any]
) -> dict[str, Any]:
    names = {entry["id"]: entry["content"] for entry in tokenizer.get("added_tokens") or ()}
    ids = {name: _first(generation.get(name, text.get(name))) for name in _IDS}
    special = {name.removesuffix("_id"): names[id] for name, id in ids.items() if id in names}
    if "<unk>" in names.values():
        special["unk_token"] = "<unk>"
    document = {"tokenizer_class": "PreTrainedTokenizerFast", "add_bos_token": False, "add_eos_token": False, **special}
    document |= {"clean_up_tokenization_spaces": False}
    if context := text.get("max_position_embeddings"):
        document["model_max_length"] = context
    return document


def _first(id: Any) -> Any:
    return id[0] if isinstance(id, list) else id
