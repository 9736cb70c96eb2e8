"""The configs that make a bundle a folder as transformers and transformers.js load it.

    config.json  generation_config.json  preprocessor_config.json  tokenizer.json  tokenizer_config.json
    onnx/audio_encoder{suffix}.onnx  onnx/embed_tokens{suffix}.onnx  onnx/decoder_model_merged{suffix}.onnx

What transformers.js asks for, and where that was read: docs/interop.md. Same inputs give the same bytes.
"""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from .contract import Artifact, BuildError

FOLDER = "onnx"
AUDIO_ENCODER = "audio_encoder"
EMBED_TOKENS = "embed_tokens"
DECODER = "decoder_model_merged"
STEMS = (AUDIO_ENCODER, EMBED_TOKENS, DECODER)

# What transformers.js calls a precision -> what it appends to a file's stem.
SUFFIXES = {"fp32": "", "fp16": "_fp16", "int8": "_int8", "q8": "_quantized", "q4": "_q4", "q4f16": "_q4f16"}

MAX_CHUNKS = 100
CHUNK_BYTES = 2_000_000_000  # a browser reads each file into one buffer of less than 2 GiB

# Whisper's front end, which every Voxtral was trained on.
_SAMPLE_RATE, _HOP, _FFT = 16000, 160, 400  # Hz, samples, samples

# Without a length of its own, generate() of transformers.js stops at 20 tokens, prompt included.
_MAX_NEW_TOKENS = 1024

_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")


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
    artifacts: Iterable[Artifact],
    tokenizer_json: Path,
) -> tuple[str, ...]:
    """Names of the files written under `folder`, where tokenizer.json is expected to stand already.

    Args:
        config: transformers' configuration of the model, whole.
        generation_config: transformers' too; {} where the checkpoint has none.
        artifacts: what the bundle holds; those of target "onnx" are made known to transformers.js.
        tokenizer_json: where the special tokens are read from.

    Raises:
        BuildError: what transformers.js needs is missing or named otherwise, all of it listed.
    """
    loading = _loading([artifact for artifact in artifacts if artifact.target == "onnx"], config)
    tokenizer = json.loads(tokenizer_json.read_bytes())
    documents = {
        "config.json": _config(config, loading),
        "generation_config.json": _generation_config(config["text_config"], generation_config),
        "preprocessor_config.json": _preprocessor_config(config["audio_config"]),
        "tokenizer_config.json": _tokenizer_config(config["text_config"], generation_config, tokenizer),
    }
    for name, document in documents.items():
        text = json.dumps(document, indent=2, sort_keys=True, ensure_ascii=False)
        (folder / name).write_text(text + "\n", encoding="utf-8")
    return tuple(documents)


def _loading(artifacts: list[Artifact], config: Mapping[str, Any]) -> dict[str, Any]:
    """The "transformers.js_config": precision and number of data files of each model file, by stem."""
    if all(artifact.stage == "audio_encoder" for artifact in artifacts):
        return {}  # nothing, or what another format's engine takes audio from
    stems = {artifact.stage: _stem(artifact) for artifact in artifacts}
    faults = [*_config_faults(config), *(fault for artifact in artifacts for fault in _file_faults(artifact))]
    faults += [f"no artifact is '{stem}'" for stem in STEMS if stem not in stems.values()]
    if faults:
        raise BuildError(
            f"transformers.js would not load what was built for target 'onnx': {'; '.join(faults)}. See docs/interop.md"
        )
    loading: dict[str, Any] = {"dtype": {stems[artifact.stage]: artifact.precision for artifact in artifacts}}
    if chunks := {stems[artifact.stage]: len(artifact.files) - 1 for artifact in artifacts if len(artifact.files) > 1}:
        loading["use_external_data_format"] = chunks
    return loading


def _stem(artifact: Artifact) -> str:
    """What its model file is called without the precision."""
    path = PurePosixPath(artifact.files[0].path)
    return path.stem.removesuffix(SUFFIXES.get(artifact.precision, ""))


def _file_faults(artifact: Artifact) -> list[str]:
    """What keeps transformers.js from finding an artifact's files, in the order model, data, data..."""
    stem, chunks = _stem(artifact), len(artifact.files) - 1
    if chunks > MAX_CHUNKS:
        return [f"'{stem}' has {chunks} data files, of which {MAX_CHUNKS} are read"]
    try:
        model = model_file(stem, artifact.precision)
    except BuildError as reason:
        return [str(reason)]
    looked_for = [model, *(data_file(stem, artifact.precision, chunk) for chunk in range(chunks))]
    found = [file.path for file in artifact.files]
    return [f"'{path}' should be '{name}'" for path, name in zip(found, looked_for, strict=True) if path != name]


def _config_faults(config: Mapping[str, Any]) -> list[str]:
    text = config.get("text_config") or {}
    needed = ("model_type", "num_hidden_layers", "num_attention_heads", "hidden_size")
    faults = [f"the configuration has no text_config.{name}" for name in needed if name not in text]
    if config.get("model_type") != "voxtral":
        faults.append(f"it loads model_type 'voxtral', not {config.get('model_type')!r}")
    if config.get("audio_token_id") is None:
        faults.append("the configuration has no audio_token_id")
    return faults


def _config(config: Mapping[str, Any], loading: Mapping[str, Any]) -> dict[str, Any]:
    # `ignore_index` would be taken for the audio token, and a path is nobody else's business.
    kept = {key: value for key, value in config.items() if key not in ("ignore_index", "_name_or_path")}
    document = {"architectures": ["VoxtralForConditionalGeneration"], **kept}
    return {**document, "transformers.js_config": loading} if loading else document


def _generation_config(text: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    inherited = {name: text[name] for name in _IDS if text.get(name) is not None}
    document = {**inherited, **{key: value for key, value in given.items() if not key.startswith("_")}}
    if "max_new_tokens" not in document and "max_length" not in document:
        document["max_new_tokens"] = _MAX_NEW_TOKENS
    return document


def _preprocessor_config(audio: Mapping[str, Any]) -> dict[str, Any]:
    frames = 2 * audio["max_source_positions"]
    samples = frames * _HOP
    return {
        "processor_class": "VoxtralProcessor",
        "feature_extractor_type": "WhisperFeatureExtractor",
        "chunk_length": samples // _SAMPLE_RATE,
        "dither": 0.0,
        "feature_size": audio["num_mel_bins"],
        "hop_length": _HOP,
        "n_fft": _FFT,
        "n_samples": samples,
        "nb_max_frames": frames,
        "padding_side": "right",
        "padding_value": 0.0,
        "return_attention_mask": False,
        "sampling_rate": _SAMPLE_RATE,
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
